"""A host without Python gets one: whole, of the right kind, or not at all."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from harness.errors import ProvisionError, TransferError, UsageError
from harness.hosts.hostfile import bring_file
from harness.hosts.provision import Provisioner
from harness.hosts.pythonlayout import PythonLayout
from harness.hosts.pythonstep import BringPython, Python, installed_python
from harness.hosts.restarts import RestartPatience
from harness.hosts.steps import Options
from harness.hosts.systemsteps import Root
from harness.remote.deadline import Deadline
from harness.remote.winrm import WinRM
from harness.winrmd.knobs import Strike, Trouble
from harness.winrmd.programs import Program
from tests.harness.hosts.pretend import Pretend, pretend_host
from tests.harness.hosts.supplies import X86, layout_files, program, write_zip
from tests.harness.hosts.test_provision import ROOT

FAST = RestartPatience(timeout_s=30, sessions=2, interval_s=0.02, delay_s=0, lost_s=20)


def open_layout(path: Path, tmp_path: Path) -> PythonLayout:
    return PythonLayout.open(path, least=(3, 12), into=tmp_path)


def changed(**files: bytes | None) -> dict[str, bytes]:
    """The layout with files added (by name, underscores for slashes) or taken away (None)."""
    found = layout_files()
    for name, data in files.items():
        path = "tools/" + name.replace("__", "/").replace("_dot_", ".")
        if data is None:
            del found[path]
        else:
            found[path] = data
    return found


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {**layout_files(), "tools/python312._pth": b"python312.zip"},
            "embeddable build: its ._pth file",
        ),
        (layout_files(minor=11), "Python 3.11; 3.12 is needed"),
        (layout_files(machine=X86), "its python.exe is 32-bit x86"),
        (changed(python_dot_exe=b"#!/bin/sh"), "no Windows program"),
        (changed(Lib__os_dot_py=None), "no full layout"),
        (changed(python312_dot_dll=None), "no full layout"),
        ({"readme.txt": b""}, r"no python\.exe"),
        ({**layout_files(), "../out": b""}, "leads out"),
        ({**layout_files(), "C:/out": b""}, "leads out"),
    ],
)
def test_what_will_not_do_is_refused_before_it_is_sent(
    tmp_path: Path, files: dict[str, bytes], said: str
) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        open_layout(write_zip(tmp_path / "p.zip", files), tmp_path)
    assert "NuGet" in str(refused.value) or "leads out" in said


def test_an_installer_is_refused_with_what_to_take_instead(tmp_path: Path) -> None:
    (tmp_path / "python-3.13-amd64.exe").write_bytes(program())
    with pytest.raises(UsageError, match=r"neither a zip nor a folder.*NuGet"):
        open_layout(tmp_path / "python-3.13-amd64.exe", tmp_path)


def test_a_folder_is_packed_the_same_every_time(tmp_path: Path) -> None:
    for name, data in layout_files().items():
        file = tmp_path / "layout" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = open_layout(tmp_path / "layout", tmp_path / "one")
    two = open_layout(tmp_path / "layout", tmp_path / "two")
    assert (one.sha256, one.version, str(one.folder)) == (two.sha256, (3, 12), "tools")


def provisioner(pretend: Pretend, winrm: WinRM, layout: PythonLayout | None) -> Provisioner:
    options = Options(ROOT, port=pretend.port, layout=layout, least_python=(3, 11))
    return Provisioner(winrm, options, steps=(Root(), Python()), patience=FAST)


def test_a_host_gets_its_python_once_and_another_when_it_changes(tmp_path: Path) -> None:
    first = open_layout(write_zip(tmp_path / "a.nupkg", layout_files()), tmp_path)
    second = open_layout(write_zip(tmp_path / "b.zip", layout_files(minor=13)), tmp_path)
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        ran = provisioner(pretend, winrm, first).apply().ran
        assert [text.split()[0] for text in ran[-3:]] == ["copy", "Expand-Archive", "compare"]
        soon = Deadline.after(60)
        there = installed_python(winrm, ROOT, deadline=soon)
        assert there is not None
        assert there.path == ROOT.inside("python", first.name, "tools", "python.exe")
        folder = pretend.host.local_path(ROOT.inside("python", first.name))
        for name, data in layout_files().items():
            assert (folder / name).read_bytes() == data
        assert not provisioner(pretend, winrm, first).apply().changed
        # Without a layout what is there is used, and nothing on PATH.
        assert not provisioner(pretend, winrm, None).apply().changed
        provisioner(pretend, winrm, second).apply()
        after = installed_python(winrm, ROOT, deadline=soon)
        assert after is not None
        assert after.sha256 == second.sha256


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl: apt-get install curl")
@pytest.mark.parametrize("curl", [True, False])
def test_a_host_fetches_its_first_python_itself_where_it_can(tmp_path: Path, curl: bool) -> None:
    large = {**layout_files(), "tools/python312.zip": random.Random(5).randbytes(5 << 20)}
    layout = open_layout(write_zip(tmp_path / "a.nupkg", large), tmp_path)
    none: dict[str, Program] = {} if curl else {"curl": ()}
    said: list[str] = []
    with pretend_host(tmp_path / "host", programs=none) as pretend, pretend.connect() as winrm:
        Provisioner(winrm, Options(ROOT, port=1), steps=(Root(),), patience=FAST).apply()
        before = pretend.knobs.requests()
        BringPython(ROOT, layout, said.append).run(winrm, deadline=Deadline.after(60))
        cost = pretend.knobs.requests() - before
        there = pretend.host.local_path(ROOT.inside("cache", f"python-{layout.sha256}.zip"))
        assert there.read_bytes() == layout.archive.read_bytes()
    assert any("over WinRM, which takes longer" in each for each in said) is not curl
    # Over WinRM a request carries 256 KiB at the most, and is followed by others.
    assert (cost < 40) is curl


def test_a_python_that_is_not_all_there_never_becomes_the_hosts(tmp_path: Path) -> None:
    layout = open_layout(write_zip(tmp_path / "a.zip", layout_files()), tmp_path)
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        folder = pretend.host.local_path(ROOT.inside("python", layout.name))
        action = Python()._install(provisioner(pretend, winrm, layout)._look(), layout)
        provisioner(pretend, winrm, layout)  # nothing yet
        Provisioner(winrm, Options(ROOT, port=1), steps=(Root(),), patience=FAST).apply()
        for each in action[:2]:
            each.run(winrm, deadline=Deadline.after(60))
        (folder / "tools/Lib/os.py").write_bytes(b"# on\n" * 50)
        with pytest.raises(TransferError, match=r"tools/Lib/os\.py differs"):
            action[2].run(winrm, deadline=Deadline.after(60))
        assert installed_python(winrm, ROOT, deadline=Deadline.after(60)) is None
        provisioner(pretend, winrm, layout).apply()  # unpacks it again
        assert (folder / "tools/Lib/os.py").read_bytes() == b"# os\n" * 50


def test_a_host_whose_python_is_too_old_is_told_what_to_give(tmp_path: Path) -> None:
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        options = Options(ROOT, port=pretend.port, least_python=(3, 99))
        with pytest.raises(ProvisionError, match=r"too old, 3\.99 is needed: give a full layout"):
            Provisioner(winrm, options, steps=(Root(), Python()), patience=FAST).apply()
        options = Options(ROOT, port=pretend.port, python="C:\\none\\python.exe")
        with pytest.raises(ProvisionError, match=r"none\\python\.exe does not run: give"):
            Provisioner(winrm, options, steps=(Root(), Python()), patience=FAST).apply()


@pytest.mark.parametrize("trouble", [Trouble.DROP_AFTER, Trouble.DROP_BEFORE])
def test_a_file_arrives_whole_over_a_connection_that_drops(
    tmp_path: Path, trouble: Trouble
) -> None:
    source = tmp_path / "file"
    source.write_bytes(bytes(range(256)) * 40)
    target = "C:\\Windows\\Temp\\file.zip"
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        # What another left there is no beginning of ours.
        local = pretend.host.local_path(target)
        local.write_bytes(b"other")
        for nth in (9, 16, 24):
            pretend.knobs.plan(Strike(trouble, "Command", nth=nth))
            pretend.knobs.plan(Strike(trouble, "Receive", nth=nth + 5))
        moved = bring_file(
            winrm,
            source,
            target,
            deadline=Deadline.after(60),
            report=lambda _line: None,
            chunk=1000,
        )
        assert local.read_bytes() == source.read_bytes()
        assert moved <= source.stat().st_size
        again = bring_file(
            winrm, source, target, deadline=Deadline.after(60), report=print, chunk=1000
        )
        assert again == 0

"""A host without Python gets its first file by its own curl, checked by its own certutil."""

from __future__ import annotations

import random
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import TransferError
from harness.remote.bootstrap import Bootstrap
from harness.remote.deadline import Deadline
from harness.remote.winrm import WinRM
from harness.winrmd.knobs import Strike, Trouble
from harness.winrmd.pretendmachine import PretendMachine, open_machine
from tests.harness.remote.conftest import PretendHost, pretend_host

ROOT = "C:\\ProgramData\\lcowlab"

pytestmark = pytest.mark.skipif(
    shutil.which("curl") is None, reason="curl is not installed: apt-get install curl"
)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[PretendMachine]:
    """A whole Windows host, but for Python."""
    (tmp_path / "disk").mkdir()
    with open_machine(tmp_path / "disk", programs={"python": (), "py": ()}) as opened:
        yield opened


@pytest.fixture
def bare(tmp_path: Path, machine: PretendMachine) -> Iterator[PretendHost]:
    with pretend_host(tmp_path, machine=machine) as host:
        yield host


@pytest.fixture
def win(bare: PretendHost) -> Iterator[WinRM]:
    with bare.connect() as transport:
        yield transport


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "python.nupkg"
    with zipfile.ZipFile(path, "w") as writing:
        writing.writestr("tools/python.exe", random.Random(3).randbytes(3 << 20))
        writing.writestr("tools/Lib/os.py", "import sys\n")
    return path


def soon() -> Deadline:
    return Deadline.after(60)


def folder(host: PretendHost) -> Path:
    return host.root / "ProgramData" / "lcowlab" / "bootstrap"


def test_a_file_is_fetched_checked_and_leaves_no_secret(
    bare: PretendHost, win: WinRM, archive: Path
) -> None:
    assert "not recognized" in win.run(["python", "-V"], deadline=soon()).stderr.decode()
    steps: list[tuple[int, int]] = []
    size = archive.stat().st_size
    fetched = Bootstrap(win, ROOT).fetch(
        archive,
        deadline=soon(),
        progress=lambda *step: steps.append(step),
    )
    assert (fetched.moved, fetched.size, steps[-1]) == (size, size, (size, size))
    (there,) = folder(bare).iterdir()
    assert (there.name, there.read_bytes()) == (f"{fetched.sha256}.zip", archive.read_bytes())
    assert Bootstrap(win, ROOT).fetch(archive, deadline=soon()).moved == 0


def test_a_fetch_goes_on_from_what_is_there(bare: PretendHost, win: WinRM, archive: Path) -> None:
    whole = Bootstrap(win, ROOT).fetch(archive, deadline=soon())
    there = folder(bare) / f"{whole.sha256}.zip"
    there.write_bytes(archive.read_bytes()[: 1 << 20])
    again = Bootstrap(win, ROOT).fetch(archive, deadline=soon())
    assert again.moved == whole.size - (1 << 20)
    assert there.read_bytes() == archive.read_bytes()


def test_a_dropped_connection_does_not_end_a_fetch(
    bare: PretendHost, win: WinRM, archive: Path
) -> None:
    bare.server.config.knobs.plan(Strike(Trouble.DROP_AFTER, "Receive", nth=2, times=2))
    path = Bootstrap(win, ROOT).fetch(archive, deadline=soon()).path
    assert (folder(bare) / path.rsplit("\\", 1)[-1]).read_bytes() == archive.read_bytes()


def test_what_arrived_damaged_is_removed_and_told(
    bare: PretendHost, win: WinRM, archive: Path
) -> None:
    whole = Bootstrap(win, ROOT).fetch(archive, deadline=soon())
    there = folder(bare) / f"{whole.sha256}.zip"
    there.write_bytes(b"\0" + archive.read_bytes()[1 : 1 << 20])
    with pytest.raises(TransferError, match="did not arrive"):
        Bootstrap(win, ROOT).fetch(archive, deadline=soon())
    assert not there.exists()
    assert Bootstrap(win, ROOT).fetch(archive, deadline=soon()).moved == whole.size


def test_an_address_of_ours_that_the_host_does_not_reach_says_what_to_do(
    win: WinRM, archive: Path
) -> None:
    with pytest.raises(TransferError, match="cannot offer"):
        replace(Bootstrap(win, ROOT), address="192.0.2.1").fetch(archive, deadline=soon())

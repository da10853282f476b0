"""A bundle is whole or unusable; a deployment copies what changed and is proved by imports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.errors import ProvisionError, UsageError
from harness.hosts.bundle import LIST, Bundle
from harness.hosts.deploy import Deployed, deploy_wheels
from harness.hosts.hostscripts import HostScripts
from harness.hosts.protectedroot import ProtectedRoot
from harness.remote.deadline import Deadline
from harness.remote.winrm import WinRM
from tests.harness.hosts.pretend import pretend_host
from tests.harness.hosts.supplies import native, write_zip

ROOT = ProtectedRoot("C:\\ProgramData\\lcowlab")


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    return write_zip(folder / f"{name}-1.0-py3-none-any.whl", files)


def bundle(tmp_path: Path, name: str, version: bytes, *, extension: bytes) -> Bundle:
    wheels = tmp_path / f"{name}-wheels"
    wheel(wheels, "ours", {"ours/__init__.py": b"VERSION = " + version})
    wheel(wheels, "native", {f"native.data/platlib/{native().name}": extension})
    return Bundle.create(tmp_path / name, {"wheels": wheels})


def deploy(winrm: WinRM, opened: Bundle) -> Deployed:
    return deploy_wheels(
        winrm,
        ROOT,
        HostScripts(winrm, "python"),
        opened,
        deadline=Deadline.after(60),
        report=lambda _line: None,
        imports=("ours",),
    )


def test_a_deployment_copies_what_changed_and_a_broken_one_leaves_the_former(
    tmp_path: Path,
) -> None:
    good = native().read_bytes()
    with pretend_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        for action in ROOT.mend(ROOT.read(winrm, deadline=Deadline.after(20)), host="win-01"):
            action.run(winrm, deadline=Deadline.after(20))
        one = bundle(tmp_path, "one", b"1", extension=good)
        first = deploy(winrm, one)
        assert first.new
        assert first.modules == ("_cffi_backend", "ours")
        assert len(first.pushed.copied) == 2

        again = deploy(winrm, one)
        assert (again.new, again.pushed.copied, again.name) == (False, (), first.name)

        second = deploy(winrm, bundle(tmp_path, "two", b"2", extension=good))
        assert second.pushed.copied == ("wheels/ours-1.0-py3-none-any.whl",)

        broken = bundle(tmp_path, "broken", b"3", extension=b"no extension")
        with pytest.raises(ProvisionError, match="_cffi_backend: ImportError"):
            deploy(winrm, broken)
        folder = pretend.host.local_path(ROOT.inside("deploy"))
        current = json.loads((folder / "current.json").read_bytes())
        assert Path(current["path"]).name == second.name
        assert Path(current["path"], "ours", "__init__.py").read_bytes() == b"VERSION = 2"


def test_a_part_that_is_given_takes_the_place_of_the_bundles(tmp_path: Path) -> None:
    wheel(tmp_path / "w", "a", {"a.py": b""})
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.img").write_bytes(name.encode())
    sources = {"wheels": tmp_path / "w", "boot": tmp_path / "old"}
    opened = Bundle.create(tmp_path / "bundle", sources)
    mixed = opened.with_part("boot", tmp_path / "new").with_part("image", tmp_path / "old/old.img")
    assert [each.path for each in mixed.part("boot")] == ["boot/new.img"]
    assert [mixed.local(each).read_bytes() for each in mixed.part("boot")] == [b"new"]
    assert [mixed.local(each).read_bytes() for each in mixed.part("image")] == [b"old"]
    (kept,) = mixed.part("wheels")
    assert mixed.local(kept) == tmp_path / "bundle" / kept.path
    with pytest.raises(UsageError, match="no files for image"):
        opened.with_part("image", tmp_path / "nothing")


@pytest.mark.parametrize("damage", ["changed", "missing", "added", "escaping"])
def test_a_bundle_that_is_not_as_listed_is_refused(tmp_path: Path, damage: str) -> None:
    wheel(tmp_path / "w", "a", {"a.py": b""})
    folder = Bundle.create(tmp_path / "bundle", {"wheels": tmp_path / "w"}).folder
    file = next((folder / "wheels").iterdir())
    if damage == "changed":
        file.write_bytes(b"x" * file.stat().st_size)
    elif damage == "missing":
        file.unlink()
    elif damage == "added":
        (folder / "wheels" / "new.whl").write_bytes(b"")
    else:
        text = (folder / LIST).read_text("utf-8")
        (folder / LIST).write_text(text.replace("wheels/", "wheels/../../"), "utf-8")
    with pytest.raises(UsageError, match=r"cannot be used|no bundle"):
        Bundle.open(folder)

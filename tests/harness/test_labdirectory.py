"""The directory of a lab: whose it is, and what becomes of those that nobody owns any more."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from harness.labdirectory import LabDirectory
from snapshotter.errors import UnavailableError


def told_nothing(text: str) -> None:
    raise AssertionError(text)


def test_it_is_empty_but_for_its_lock_and_gone_after_its_removal(tmp_path: Path) -> None:
    made = LabDirectory.create(tmp_path / "labs", tell=told_nothing)
    assert [path.name for path in made.path.iterdir()] == ["lock"]
    (made.path / "folder").mkdir()
    made.remove()
    assert list((tmp_path / "labs").iterdir()) == []


def test_that_of_a_living_owner_stays(tmp_path: Path) -> None:
    first = LabDirectory.create(tmp_path, tell=told_nothing)
    second = LabDirectory.create(tmp_path, tell=told_nothing)
    assert first.path.exists()
    for each in (first, second):
        each.remove()


def test_one_that_was_kept_is_never_swept(tmp_path: Path) -> None:
    kept = LabDirectory.create(tmp_path, tell=told_nothing)
    (kept.path / "evidence").write_text("x")
    kept.keep()
    LabDirectory.create(tmp_path, tell=told_nothing).remove()
    assert (kept.path / "evidence").read_text() == "x"


OWNER = """
import sys, time
from pathlib import Path
from harness.labdirectory import LabDirectory
made = LabDirectory.create(Path(sys.argv[1]), tell=print)
print(made.path, flush=True)
time.sleep(600)
"""


def dead_owners(base: Path) -> Path:
    """Return the directory of a process that was killed."""
    command = [sys.executable, "-c", OWNER, str(base)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        path = Path(owner.stdout.readline().strip())
        owner.kill()
    return path


def test_that_of_a_killed_owner_is_swept_by_the_next(tmp_path: Path) -> None:
    dead = dead_owners(tmp_path)
    assert dead.exists()
    made = LabDirectory.create(tmp_path, tell=told_nothing)
    assert not dead.exists()
    made.remove()


@pytest.mark.root
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts need root")
def test_what_cannot_be_swept_is_told_and_keeps_nobody_from_working(tmp_path: Path) -> None:
    dead = dead_owners(tmp_path)
    (dead / "mounted").mkdir()
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(dead / "mounted")]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("no mounts here")
    told: list[str] = []
    try:
        LabDirectory.create(tmp_path, tell=told.append).remove()
        assert len(told) == 1
        assert str(dead) in told[0]
    finally:
        subprocess.run(["umount", str(dead / "mounted")], check=True)


def test_many_at_once_each_get_their_own(tmp_path: Path) -> None:
    """A new one has no lock for a moment; whoever sweeps then must not take it away."""
    made: list[LabDirectory] = []
    errors: list[BaseException] = []

    def make() -> None:
        try:
            for _ in range(10):
                made.append(LabDirectory.create(tmp_path, tell=told_nothing))
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len({each.path for each in made}) == 60
    assert all((each.path / "lock").exists() for each in made)
    for each in made:
        each.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_none_can_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UnavailableError, match=r"cannot make a lab in .*file"):
        LabDirectory.create(tmp_path / "file" / "labs", tell=told_nothing)

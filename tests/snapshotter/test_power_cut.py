"""What is on the disk at the moment of an answer, by the kernel's own file systems.

The power cut is a copy of the block device's bytes while the file system is mounted: what was not
written out by then is missing in it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter import Snapshotter
from snapshotter.labels import DEFAULT_SCRATCH_SIZE
from snapshotter.platform.posix import PosixPlatform
from snapshotter.scratch.template import verify_scratch
from snapshotter.units import MIB

_SIZE = 400 * MIB
_SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
FORMATS = {
    "ext4": ["mkfs.ext4", "-q"],
    "ext4 without a journal": ["mkfs.ext4", "-q", "-O", "^has_journal"],
    "xfs": ["mkfs.xfs", "-q"],
}


@contextlib.contextmanager
def mounted(image: Path, at: Path, *options: str) -> Iterator[Path]:
    """Yield the mount point of a loop mount, or skip with the reason why there is none."""
    at.mkdir()
    command = ["mount", "-o", ",".join(["loop", *options]), str(image), str(at)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop mounts here: {done.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="loop mounts need root")
@pytest.mark.parametrize("kind", FORMATS)
def test_a_prepared_disk_is_there_after_a_power_cut(tmp_path: Path, kind: str) -> None:
    """One flush a disk: its own keeps the names that lead to it."""
    program, *options = FORMATS[kind]
    found = shutil.which(program, path=_SEARCH)
    if found is None:
        pytest.skip(f"{program} is not installed")
    image, cut = tmp_path / "image", tmp_path / "cut"
    with image.open("wb") as file:
        file.truncate(_SIZE)
    subprocess.run([found, *options, str(image)], check=True, capture_output=True)
    keys = [f"p{number}" for number in range(4)]
    with mounted(image, tmp_path / "before") as before, Snapshotter.open(before / "root") as store:
        assert PosixPlatform().file_flush_keeps_path(before)
        for key in keys:
            store.prepare(key)
            if key == keys[1]:
                store.warm()  # from now on a commit's flush writes no more than its own bytes
        subprocess.run(["cp", "--sparse=always", str(image), str(cut)], check=True)
    if program != "mkfs.xfs":
        repair = ["e2fsck", "-fy", str(cut)]
        assert subprocess.run(repair, capture_output=True, check=False).returncode <= 1
    with mounted(cut, tmp_path / "after") as after, Snapshotter.open(after / "root") as store:
        for key in keys:
            disk = store.shared_disk(key)
            assert disk is not None
            verify_scratch(disk.path, size=DEFAULT_SCRATCH_SIZE)
            assert (store.directory(key) / "sandbox.vhdx").resolve(strict=True) == disk.path


def test_a_file_system_that_nobody_knows_is_not_trusted(tmp_path: Path) -> None:
    assert not PosixPlatform().file_flush_keeps_path(Path("/proc"))
    assert not PosixPlatform().file_flush_keeps_path(tmp_path / "missing")

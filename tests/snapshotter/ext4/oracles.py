"""What judges our file systems: e2fsck, debugfs, and the kernel's own ext4 by a loop mount."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.blockio import DiskContent


class MemoryDisk:
    """Bytes as a BlockReader."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data

    @property
    def size(self) -> int:
        return len(self.data)

    def read_at(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])


class ContentDisk:
    """A DiskContent as a BlockReader; what it leaves open reads as 0xAA."""

    def __init__(self, content: DiskContent) -> None:
        self._content = content

    @property
    def size(self) -> int:
        return self._content.size

    def read_at(self, offset: int, length: int) -> bytes:
        length = max(min(length, self.size - offset), 0)
        out = bytearray(b"\xaa" * length)
        zeros = [
            (at, bytes(min(count, offset + length - at)))
            for at, count in self._content.zeros
            if at < offset + length and at + count > offset
        ]
        for at, data in [*zeros, *self._content.pieces]:
            start, stop = max(at, offset), min(at + len(data), offset + length)
            if start < stop:
                out[start - offset : stop - offset] = data[start - at : stop - at]
        return bytes(out)


def write_raw(content: DiskContent, path: Path) -> Path:
    """Write a sparse raw disk."""
    with path.open("wb") as file:
        file.truncate(content.size)
        for offset, data in content.pieces:
            file.seek(offset)
            file.write(data)
    return path


@contextlib.contextmanager
def vast_file() -> Iterator[Path]:
    """Yield a path for a sparse file that ext4, where tests usually are, is too small for."""
    place = Path("/dev/shm")
    if not place.is_dir():
        pytest.skip("no tmpfs at /dev/shm for a file of 16 TiB")
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder, "disk.raw")


def fsck(path: Path) -> None:
    """Fail with what e2fsck says unless it finds nothing to say."""
    if not shutil.which("e2fsck"):
        pytest.skip("e2fsck is not installed (package e2fsprogs)")
    result = subprocess.run(["e2fsck", "-fn", path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def debugfs(path: Path, command: str) -> str:
    """Return what a debugfs command prints."""
    if not shutil.which("debugfs"):
        pytest.skip("debugfs is not installed (package e2fsprogs)")
    return subprocess.run(
        ["debugfs", "-R", command, path], capture_output=True, text=True, check=True
    ).stdout


@contextlib.contextmanager
def mounted(image: Path, at: Path, options: str) -> Iterator[Path]:
    """Yield the mount point of a loop mount, or skip with the reason why there is none."""
    if os.geteuid() != 0:
        pytest.skip("loop mounts need root")
    at.mkdir(exist_ok=True)
    result = subprocess.run(
        ["mount", "-t", "ext4", "-o", f"loop,{options}", image, at],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        if "superblock" in result.stderr or "wrong fs" in result.stderr:
            pytest.fail(f"the kernel refuses the file system: {result.stderr}")
        pytest.skip(f"no loop mounts here: {result.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)

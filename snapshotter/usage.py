"""Disk space of directories."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from snapshotter.metastore.model import Usage

_BLOCK = 512
"""Unit of st_blocks, whatever the file system's own block size is (POSIX stat)."""

EMPTY_INODES: Final = 1
"""The inodes of a directory with nothing in it: its own."""


def disk_usage(directory: Path) -> Usage:
    """Bytes allocated to everything below and including `directory`, each inode once.

    Links are not followed. What vanishes meanwhile counts nothing, as does a directory that does
    not exist. Blocks that files share (reflinks) count in each of them, as with du. Where the
    system does not say what is allocated (Windows), lengths are summed.
    """
    seen: set[tuple[int, int]] = set()
    size = 0
    pending = [os.fspath(directory)]
    while pending:
        path = pending.pop()
        try:
            status = os.lstat(path)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            size += _allocated(status)
            if stat.S_ISDIR(status.st_mode):
                names = os.listdir(path)  # noqa: PTH208 (texts: there may be very many)
                pending.extend(os.path.join(path, name) for name in names)
        except FileNotFoundError:
            continue
    return Usage(size, len(seen))


def _allocated(status: os.stat_result) -> int:
    blocks: int | None = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else blocks * _BLOCK

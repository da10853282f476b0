r"""Which disk a path means: the file's identity, whatever way it is spelled.

A disk is its file: the volume and the file's number on it (Linux: st_dev and st_ino; Windows:
volume serial and the 128-bit file id, which `os.stat` gives since Python 3.12). Symbolic links,
hard links, short names, other case on a volume that ignores it and the ``\\?\`` prefix all meet
in one identity. The canonical path is what the compute service opens and what people read.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from harness.errors import DiskError


@dataclass(frozen=True, slots=True)
class DiskIdentity:
    """A file's identity: equal exactly for two names of one file that exists."""

    volume: int
    file: int


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk file: its identity, and the canonical path it was found by."""

    identity: DiskIdentity
    path: Path


def identify(path: str | os.PathLike[str]) -> Disk:
    """Return the disk that `path` names, links resolved. Raises DiskError."""
    try:
        canonical = os.path.realpath(path, strict=True)
        status = os.stat(canonical)
    except OSError as error:
        raise DiskError(
            f"cannot use {os.fspath(path)} as a disk: {error.strerror or error}; "
            "check that the file (and what its links point to) exists and can be read"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise DiskError(f"cannot use {canonical} as a disk: it is not a regular file")
    return Disk(DiskIdentity(status.st_dev, status.st_ino), Path(canonical))

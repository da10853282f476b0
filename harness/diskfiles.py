"""What is on a container's disk, seen from the host while no virtual machine has it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from snapshotter.ext4.reader import Ext4
from snapshotter.vhdx import VhdxDisk


class DiskFiles(Protocol):
    """Files by path. Raises snapshotter.errors.NotFoundError for what is not there."""

    def listdir(self, path: str) -> list[str]:
        """Return the names in a directory."""
        ...

    def read(self, path: str) -> bytes:
        """Return a file's content."""
        ...


@contextlib.contextmanager
def files_in_vhdx(path: str | os.PathLike[str]) -> Iterator[DiskFiles]:
    """Open the ext4 in a VHDX; a log that waits for its replay is replayed in memory."""
    with VhdxDisk.open(Path(path)) as disk:
        yield Ext4.open(disk)

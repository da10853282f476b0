"""A disk file of any kind, open for reading: raw, VHDX (with its parents), or fixed VHD."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from snapshotter.blockio import BlockReader, LocalBlockFile
from snapshotter.diskformat import DiskFormat
from snapshotter.errors import InvalidArgumentError
from snapshotter.vhd import FixedVhd
from snapshotter.vhdx import open_chain


class SparseDisk(BlockReader, Protocol):
    """A disk that knows where it may have data."""

    def allocated_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) in ascending order; everything between reads as zeros."""
        ...


@runtime_checkable
class StoredDisk(SparseDisk, Protocol):
    """A disk whose bytes lie in one file as they are."""

    @property
    def file(self) -> LocalBlockFile | None:
        """The file, None where the disk is made up of more than that."""
        ...

    def file_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (file offset or -1, length) of a stretch of the disk; -1 reads as zeros."""
        ...


class FlatDisk:
    """The first `size` bytes of a file are the disk."""

    def __init__(self, file: LocalBlockFile, size: int) -> None:
        self.file = file
        self.size = size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; fewer only where the end is reached."""
        if offset < 0 or length < 0:
            raise InvalidArgumentError(f"cannot read {length} bytes at {offset}")
        return self.file.read_at(offset, max(0, min(length, self.size - offset)))

    def allocated_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of what is not a hole, ascending."""
        for offset, length in self.file.data_ranges():
            if offset < self.size:
                yield offset, min(length, self.size - offset)

    def file_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield where a stretch of the disk lies: where it is."""
        yield offset, length


@contextmanager
def open_disk(
    path: str | os.PathLike[str], *, disk_format: DiskFormat | None = None
) -> Iterator[SparseDisk]:
    """Give the disk in the file at `path`, of the format that it shows unless one is named.

    The file is not changed: a VHDX with a dirty log is replayed in memory, a differencing one is
    read together with its parents.

    Raises VhdxError, VhdError, UnavailableError, FileNotFoundError.
    """
    with LocalBlockFile.open(path) as file:
        found = disk_format or DiskFormat.detect(file)
        if found is DiskFormat.RAW:
            yield FlatDisk(file, file.size)
        elif found is DiskFormat.VHD:
            yield FlatDisk(file, FixedVhd.load(file).size)
        else:
            with open_chain(path) as disk:
                yield disk

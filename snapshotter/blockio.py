"""Files and disks addressed by byte offset, and the content of a disk that is still to be written.

`BlockReader` is what readers of a disk take (a raw file, a VHDX, a slice of either);
`BlockFile` adds what writers need. `DiskContent` describes a whole disk sparsely, so that a
formatted disk of any size can be handed from the file-system code to an image writer in memory.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from snapshotter.errors import UnavailableError


class BlockReader(Protocol):
    """Something that can be read at any byte offset."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; fewer only where the end is reached."""
        ...


class BlockFile(BlockReader, Protocol):
    """A `BlockReader` that can be changed."""

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at `offset`, growing the file where needed."""
        ...

    def truncate(self, size: int) -> None:
        """Set the length to `size` bytes."""
        ...

    def flush(self) -> None:
        """Return only when everything written so far would survive a power cut."""
        ...


@dataclass(frozen=True, slots=True)
class DiskContent:
    """A whole disk, sparsely.

    `pieces` are (offset, bytes) in ascending order without overlap. `zeros` are (offset, length)
    ranges that must read as zeros. Everything else is free: it may read as anything.
    """

    size: int
    pieces: tuple[tuple[int, bytes], ...]
    zeros: tuple[tuple[int, int], ...] = ()


if sys.platform == "win32":
    # No positional I/O there: seek and transfer are one step under a lock for all files.
    _seeking = threading.Lock()

    def _pread(descriptor: int, length: int, offset: int) -> bytes:
        with _seeking:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.read(descriptor, length)

    def _pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        with _seeking:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.write(descriptor, data)

else:
    _pread, _pwrite = os.pread, os.pwrite


if sys.platform == "linux":

    def _next_data(descriptor: int, position: int, end: int) -> tuple[int, int]:
        """Return (start, end) of the first stretch from `position` that is not a hole."""
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
            return min(start, end), min(os.lseek(descriptor, start, os.SEEK_HOLE), end)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return end, end
            if error.errno in (errno.EINVAL, errno.ENOTSUP):  # a file system without holes
                return position, end
            raise

else:

    def _next_data(descriptor: int, position: int, end: int) -> tuple[int, int]:
        """Return all of it: other systems tell by calls of their own."""
        return position, end


class LocalBlockFile:
    """A regular file on this host as a `BlockFile`; a context manager."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self.path = path

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, writable: bool = False) -> Self:
        """Open an existing file.

        Raises UnavailableError where the system refuses, FileNotFoundError where it is missing.
        """
        target = Path(path)
        flags = (os.O_RDWR if writable else os.O_RDONLY) | getattr(os, "O_BINARY", 0)
        try:
            return cls(os.open(target, flags | getattr(os, "O_CLOEXEC", 0)), target)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UnavailableError(f"cannot open {target}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Length in bytes."""
        return os.fstat(self._descriptor).st_size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; fewer only at the end. Raises UnavailableError."""
        try:
            data = _pread(self._descriptor, length, offset)
            while 0 < len(data) < length:
                more = _pread(self._descriptor, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise UnavailableError(f"cannot read {self.path}: {error.strerror}") from error
        return data

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at `offset`. Raises UnavailableError (disk full, I/O error)."""
        view = memoryview(data)
        try:
            while view:
                written = _pwrite(self._descriptor, view, offset)
                view = view[written:]
                offset += written
        except OSError as error:
            raise UnavailableError(f"cannot write {self.path}: {error.strerror}") from error

    def truncate(self, size: int) -> None:
        """Set the length to `size` bytes. Raises UnavailableError."""
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            raise UnavailableError(f"cannot resize {self.path}: {error.strerror}") from error

    def flush(self) -> None:
        """Make everything written so far durable. Raises UnavailableError."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise UnavailableError(f"cannot flush {self.path}: {error.strerror}") from error

    def fileno(self) -> int:
        """Return the descriptor, for calls that no method here makes."""
        return self._descriptor

    def data_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the stretches that are not holes, ascending.

        All of the file is one stretch where the file system knows no holes.
        """
        position, end = 0, self.size
        while position < end:
            start, stop = self._next_data(position, end)
            if start < stop:
                yield start, stop - start
            position = stop

    def _next_data(self, position: int, end: int) -> tuple[int, int]:
        try:
            return _next_data(self._descriptor, position, end)
        except OSError as error:
            raise UnavailableError(f"cannot read {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

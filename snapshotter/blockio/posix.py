"""A file on a POSIX host: pread, pwrite, preadv, pwritev, fsync; holes on Linux."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import struct
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Final, Protocol, Self, cast

from snapshotter.blockio import lock
from snapshotter.blockio.contract import LARGEST_FILE
from snapshotter.errors import UnavailableError
from snapshotter.units import MIB

assert sys.platform != "win32"  # tells the type checker

# <linux/falloc.h>
_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02
# <linux/fs.h>
_FICLONERANGE: Final = 0x4020_940D
_CLONE_RANGE: Final = struct.Struct("@qQQQ")
_NO_HOLES: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)
_MOST_BUFFERS: Final = 1024  # IOV_MAX of Linux
_ZEROS: Final = bytes(MIB)
_pread = os.pread  # looked up for every read


class PosixBlockFile:
    """A regular file as a `BlockFile`; a context manager."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self.path = path

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, writable: bool = False) -> Self:
        """Open an existing file; no second one may have it open with `writable`.

        Raises FailedPreconditionError where somebody writes to it already, UnavailableError where
        the system refuses, FileNotFoundError where it is missing.
        """
        target = Path(path)
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
        try:
            descriptor = os.open(target, flags)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UnavailableError(f"cannot open {target}: {error.strerror}") from error
        if writable:
            try:
                lock.lock_for_writing(descriptor, target)
            except BaseException:
                os.close(descriptor)
                raise
        return cls(descriptor, target)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Length in bytes, of a block device too."""
        with self._explained("ask the size of"):
            found = os.fstat(self._descriptor)
            if stat.S_ISBLK(found.st_mode):
                return os.lseek(self._descriptor, 0, os.SEEK_END)
            return found.st_size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; fewer only at the end. Raises UnavailableError."""
        try:
            data = _pread(self._descriptor, length, offset)
            if len(data) == length:
                return data
            while 0 < len(data) < length:
                more = _pread(self._descriptor, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except (OSError, OverflowError) as error:
            if offset + length > LARGEST_FILE:
                return b""
            raise UnavailableError(f"cannot read {self.path}: {_reason(error)}") from error
        return data

    def read_into(self, offset: int, buffers: Sequence[bytearray | memoryview]) -> int:
        """Fill `buffers` from `offset` in one go (preadv); return how many bytes there were."""
        done = 0
        pending = [memoryview(buffer) for buffer in buffers]
        if offset + sum(map(len, pending)) > LARGEST_FILE:
            return 0
        with self._explained("read"):
            while pending:
                count = os.preadv(self._descriptor, pending[:_MOST_BUFFERS], offset + done)
                if not count:
                    break
                done += count
                pending = _rest(pending, count)
        return done

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at `offset`. Raises UnavailableError (disk full, I/O error)."""
        try:
            written = os.pwrite(self._descriptor, data, offset)
            if written < len(data):  # rare: the disk is nearly full, or a signal came
                view = memoryview(data)
                while written < len(view):
                    written += os.pwrite(self._descriptor, view[written:], offset + written)
        # Not _explained: a context costs as much as a short write.
        except (OSError, OverflowError) as error:
            raise UnavailableError(f"cannot write {self.path}: {_reason(error)}") from error

    def write_from(self, offset: int, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Write `buffers` one behind the other at `offset` (pwritev). Raises UnavailableError."""
        pending = [memoryview(buffer) for buffer in buffers]
        with self._explained("write"):
            while pending:
                count = os.pwritev(self._descriptor, pending[:_MOST_BUFFERS], offset)
                offset += count
                pending = _rest(pending, count)

    def write_zeros(self, offset: int, length: int) -> None:
        """Make a stretch within the file read as zeros, as a hole where there are holes.

        Raises UnavailableError.
        """
        if length <= 0 or _punch_hole(self._descriptor, offset, length):
            return
        view = memoryview(_ZEROS)
        for start in range(0, length, MIB):
            self.write_at(offset + start, view[: min(MIB, length - start)])

    def truncate(self, size: int) -> None:
        """Set the length to `size` bytes. Raises UnavailableError."""
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:  # not _explained, as above
            raise UnavailableError(f"cannot resize {self.path}: {error.strerror}") from error

    def flush(self) -> None:
        """Make everything written so far durable. Raises UnavailableError."""
        with self._explained("flush"):
            os.fsync(self._descriptor)

    def data_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the stretches that are not holes, ascending.

        All of the file is one stretch where the system tells of no holes. Raises UnavailableError.
        """
        position, end = 0, self.size
        while position < end:
            with self._explained("read"):
                start, stop = _next_data(self._descriptor, position, end)
            if start < stop:
                yield start, stop - start
            position = stop

    def reserve(self, offset: int, length: int) -> bool:
        """Take room for a stretch that will be written; say whether there is a way to.

        It reads as zeros; the file grows to hold it.
        """
        fallocate = _fallocate()
        return fallocate is not None and fallocate(self._descriptor, 0, offset, length) == 0

    def share_from(
        self, source: PosixBlockFile, source_offset: int, offset: int, length: int
    ) -> bool:
        """Make a stretch share its blocks with one of another file; say whether that worked.

        It takes no time and no room where the file system can (btrfs, XFS, not ext4) and all three
        numbers are multiples of its blocks. Nothing has changed where it did not work.
        """
        if not sys.platform.startswith("linux"):
            return False
        request = _CLONE_RANGE.pack(source._descriptor, source_offset, length, offset)
        try:
            fcntl.ioctl(self._descriptor, _FICLONERANGE, request)
        except OSError:  # another file system, one that cannot, no room: a copy will tell
            return False
        return True

    def close(self) -> None:
        """Close the descriptor, and with it the lock; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @contextlib.contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            if self._descriptor < 0:  # fsync(-1) would be a ValueError
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            yield
        except (OSError, OverflowError) as error:
            raise UnavailableError(f"cannot {verb} {self.path}: {_reason(error)}") from error


def _reason(error: OSError | OverflowError) -> str:
    return "no file is so long" if isinstance(error, OverflowError) else str(error.strerror)


def _rest(pending: list[memoryview], count: int) -> list[memoryview]:
    """Return what is left of `pending` after its first `count` bytes."""
    at = 0
    while at < len(pending) and count >= len(pending[at]):
        count -= len(pending[at])
        at += 1
    return [pending[at][count:], *pending[at + 1 :]] if at < len(pending) else []


def _next_data(descriptor: int, position: int, end: int) -> tuple[int, int]:
    """Return (start, end) of the first stretch from `position` that is not a hole."""
    if not hasattr(os, "SEEK_DATA"):
        return position, end
    try:
        start = os.lseek(descriptor, position, os.SEEK_DATA)
        return min(start, end), min(os.lseek(descriptor, start, os.SEEK_HOLE), end)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a hole up to the end
            return end, end
        if error.errno in _NO_HOLES:
            return position, end
        raise


class _Fallocate(Protocol):
    def __call__(self, descriptor: int, mode: int, offset: int, length: int) -> int: ...


@cache
def _fallocate() -> _Fallocate | None:
    """Return fallocate(2) of the C library: Python has posix_fallocate alone."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None, use_errno=True)
    function = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if function is None:
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    function.restype = ctypes.c_int
    return cast("_Fallocate", function)


def _punch_hole(descriptor: int, offset: int, length: int) -> bool:
    """Say whether the stretch is a hole now; False where it has to be written."""
    fallocate = _fallocate()
    if fallocate is None:
        return False
    while fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, offset, length):
        number = ctypes.get_errno()
        if number in _NO_HOLES:
            return False
        if number != errno.EINTR:
            raise UnavailableError(f"cannot punch a hole: {os.strerror(number)}")
    return True

"""kernel32 over files of this host: what `WindowsBlockFile` calls, with Windows's rules.

Share modes are checked as CreateFileW does: each open's access against what the others share, and
their access against what it shares. Reads at the end fail with ERROR_HANDLE_EOF, as they do with
an OVERLAPPED.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, field
from typing import cast

from snapshotter.blockio import windows as w
from snapshotter.platform.kernel32 import FSCTL_DUPLICATE_EXTENTS_TO_FILE, DuplicateExtents

_SHARED = {w.GENERIC_READ: w.FILE_SHARE_READ, w.GENERIC_WRITE: w.FILE_SHARE_WRITE}
ERROR_DISK_FULL = 112
ERROR_INVALID_PARAMETER = 87


@dataclass
class _Open:
    descriptor: int
    identity: tuple[int, int]
    access: int
    share: int


@dataclass
class StandInKernel32:
    """One computer's kernel32: all opens through one of these see each other."""

    zero_data: bool = True
    clusters: int = 0
    """Bytes of a cluster of a volume whose files can share them; 0: NTFS."""
    shared: list[tuple[int, int, int]] = field(default_factory=list)
    failing: dict[str, int] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    _opens: dict[int, _Open] = field(default_factory=dict)
    _error: int = 0

    def last_error(self) -> int:
        return self._error

    @property
    def open_handles(self) -> int:
        return len(self._opens)

    def CreateFileW(  # noqa: N802
        self,
        name: str,
        access: int,
        share: int,
        security: None,
        how: int,
        flags: int,
        template: None,
    ) -> int | None:
        assert (security, how, template) == (None, w.OPEN_EXISTING, None)
        assert flags == w.FILE_ATTRIBUTE_NORMAL
        if self._fails("CreateFileW"):
            return w.INVALID_HANDLE
        try:
            mode = os.O_RDWR if access & w.GENERIC_WRITE else os.O_RDONLY
            descriptor = os.open(name, mode)
        except FileNotFoundError:
            self._error = w.ERROR_FILE_NOT_FOUND
            return w.INVALID_HANDLE
        found = os.fstat(descriptor)
        new = _Open(descriptor, (found.st_dev, found.st_ino), access, share)
        for other in self._opens.values():
            if other.identity == new.identity and not (_fits(new, other) and _fits(other, new)):
                os.close(descriptor)
                self._error = w.ERROR_SHARING_VIOLATION
                return w.INVALID_HANDLE
        self._opens[descriptor] = new
        return descriptor

    def ReadFile(  # noqa: N802
        self, handle: int, buffer: object, length: int, done: object, overlapped: object
    ) -> int:
        if self._fails("ReadFile"):
            return 0
        target = cast("ctypes.Array[ctypes.c_char]", buffer)
        assert ctypes.sizeof(target) == length
        data = os.pread(handle, length, _offset(overlapped))
        if not data and length:
            self._error = w.ERROR_HANDLE_EOF
            return 0
        ctypes.memmove(target, data, len(data))
        _count(done).contents.value = len(data)
        return 1

    def WriteFile(  # noqa: N802
        self, handle: int, buffer: object, length: int, done: object, overlapped: object
    ) -> int:
        if self._fails("WriteFile"):
            return 0
        assert isinstance(buffer, bytes)
        assert len(buffer) == length
        assert self._opens[handle].access & w.GENERIC_WRITE
        # As little as half may go at a time: the caller has to go on.
        part = buffer[: max(1, length // 2)] if length > 100_000 else buffer
        _count(done).contents.value = os.pwrite(handle, part, _offset(overlapped))
        return 1

    def FlushFileBuffers(self, handle: int) -> int:  # noqa: N802
        if self._fails("FlushFileBuffers"):
            return 0
        os.fsync(handle)
        return 1

    def GetFileSizeEx(self, handle: int, size: object) -> int:  # noqa: N802
        if self._fails("GetFileSizeEx"):
            return 0
        cast("ctypes._Pointer[ctypes.c_int64]", size).contents.value = os.fstat(handle).st_size
        return 1

    def SetFileInformationByHandle(  # noqa: N802
        self, handle: int, kind: int, information: object, length: int
    ) -> int:
        if self._fails("SetFileInformationByHandle"):
            return 0
        assert (kind, length) == (w.FILE_END_OF_FILE_INFO, 8)
        os.ftruncate(handle, cast("ctypes._Pointer[ctypes.c_int64]", information).contents.value)
        return 1

    def DeviceIoControl(  # noqa: N802
        self,
        handle: int,
        code: int,
        given: object,
        given_length: int,
        taken: None,
        taken_length: int,
        done: object,
        overlapped: None,
    ) -> int:
        assert (taken, taken_length, done is not None, overlapped) == (None, 0, True, None)
        if code == FSCTL_DUPLICATE_EXTENTS_TO_FILE:
            return self._duplicate(handle, given, given_length)
        assert (code, given_length) == (w.FSCTL_SET_ZERO_DATA, 16)
        if not self.zero_data:
            self._error = w.ERROR_INVALID_FUNCTION
            return 0
        if self._fails("DeviceIoControl"):
            return 0
        asked = cast("ctypes._Pointer[w.ZeroData]", given).contents
        start, end = asked.FileOffset, min(asked.BeyondFinalZero, os.fstat(handle).st_size)
        os.pwrite(handle, bytes(end - start), start)
        return 1

    def _duplicate(self, target: int, given: object, given_length: int) -> int:
        """As ReFS does it: whole clusters below 4 GiB, within both files."""
        assert given_length == 32
        if not self.clusters:
            self._error = w.ERROR_INVALID_FUNCTION
            return 0
        asked = cast("ctypes._Pointer[DuplicateExtents]", given).contents
        start, end, count = asked.SourceFileOffset, asked.TargetFileOffset, asked.ByteCount
        assert self._opens[target].access & w.GENERIC_WRITE
        fits = start + count <= os.fstat(asked.FileHandle).st_size
        fits = fits and end + count <= os.fstat(target).st_size
        if not fits or count >= 4 << 30 or any(n % self.clusters for n in (start, end, count)):
            self._error = ERROR_INVALID_PARAMETER
            return 0
        self.shared.append((start, end, count))
        os.pwrite(target, os.pread(asked.FileHandle, count, start), end)
        return 1

    def CloseHandle(self, handle: int) -> int:  # noqa: N802
        os.close(self._opens.pop(handle).descriptor)
        return 1

    def _fails(self, name: str) -> bool:
        self.calls.append(name)
        self._error = self.failing.get(name, 0)
        return name in self.failing


def _fits(new: _Open, other: _Open) -> bool:
    return all(not new.access & access or other.share & share for access, share in _SHARED.items())


def _offset(overlapped: object) -> int:
    where = cast("ctypes._Pointer[w.Overlapped]", overlapped).contents
    return int(where.OffsetHigh) << 32 | int(where.Offset)


def _count(done: object) -> ctypes._Pointer[ctypes.c_uint32]:
    return cast("ctypes._Pointer[ctypes.c_uint32]", done)

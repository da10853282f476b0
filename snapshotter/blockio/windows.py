"""A file on Windows: ReadFile and WriteFile at the offset in an OVERLAPPED, nothing shared.

The handle is synchronous: the calls block, and take their offset from OVERLAPPED without moving
a file pointer that threads would have to share. Prototypes and numbers: Windows SDK fileapi.h,
winbase.h, winioctl.h.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, Self

from snapshotter.blockio.contract import LARGEST_FILE
from snapshotter.errors import FailedPreconditionError, UnavailableError
from snapshotter.platform.kernel32 import FSCTL_DUPLICATE_EXTENTS_TO_FILE, DuplicateExtents
from snapshotter.units import GIB, MIB

GENERIC_READ: Final = 0x8000_0000
GENERIC_WRITE: Final = 0x4000_0000
FILE_SHARE_READ: Final = 1
FILE_SHARE_WRITE: Final = 2
FILE_SHARE_DELETE: Final = 4
OPEN_EXISTING: Final = 3
FILE_ATTRIBUTE_NORMAL: Final = 0x80
FILE_END_OF_FILE_INFO: Final = 6
FSCTL_SET_ZERO_DATA: Final = 0x0009_80C8
INVALID_HANDLE: Final = ctypes.c_void_p(-1).value

ERROR_INVALID_FUNCTION: Final = 1
ERROR_FILE_NOT_FOUND: Final = 2
ERROR_PATH_NOT_FOUND: Final = 3
ERROR_INVALID_HANDLE: Final = 6
ERROR_SHARING_VIOLATION: Final = 32
ERROR_HANDLE_EOF: Final = 38
ERROR_NOT_SUPPORTED: Final = 50

_MOST_BYTES: Final = 64 * MIB  # a transfer: a DWORD, and drivers lock the pages of all of it
_MOST_SHARED: Final = GIB  # at once; the system takes less than 4 GiB
_ZEROS: Final = bytes(MIB)


class Overlapped(ctypes.Structure):
    """OVERLAPPED: here only the offset matters."""

    _fields_: ClassVar = [
        ("Internal", ctypes.c_size_t),
        ("InternalHigh", ctypes.c_size_t),
        ("Offset", ctypes.c_uint32),
        ("OffsetHigh", ctypes.c_uint32),
        ("hEvent", ctypes.c_void_p),
    ]


class ZeroData(ctypes.Structure):
    """FILE_ZERO_DATA_INFORMATION."""

    _fields_: ClassVar = [("FileOffset", ctypes.c_int64), ("BeyondFinalZero", ctypes.c_int64)]


assert ctypes.sizeof(Overlapped) == 8 + 3 * ctypes.sizeof(ctypes.c_void_p)
assert ctypes.sizeof(ZeroData) == 16


class Kernel32(Protocol):
    """The functions of kernel32.dll in use; they return 0 on failure, `last_error` says why."""

    def CreateFileW(  # noqa: N802
        self,
        name: str,
        access: int,
        share: int,
        security: None,
        how: int,
        flags: int,
        template: None,
    ) -> int | None: ...

    def ReadFile(  # noqa: N802
        self, handle: int, buffer: object, length: int, done: object, overlapped: object
    ) -> int: ...

    def WriteFile(  # noqa: N802
        self, handle: int, buffer: object, length: int, done: object, overlapped: object
    ) -> int: ...

    def FlushFileBuffers(self, handle: int) -> int: ...  # noqa: N802

    def GetFileSizeEx(self, handle: int, size: object) -> int: ...  # noqa: N802

    def SetFileInformationByHandle(  # noqa: N802
        self, handle: int, kind: int, information: object, length: int
    ) -> int: ...

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
    ) -> int: ...

    def CloseHandle(self, handle: int) -> int: ...  # noqa: N802

    def last_error(self) -> int: ...


_HANDLE, _DWORD, _POINTER = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p

PROTOTYPES: Final[dict[str, tuple[Any, ...]]] = {
    "CreateFileW": (
        *(_HANDLE, ctypes.c_wchar_p, _DWORD, _DWORD),
        *(_POINTER, _DWORD, _DWORD, _HANDLE),
    ),
    "ReadFile": (ctypes.c_int, _HANDLE, _POINTER, _DWORD, _POINTER, _POINTER),
    "WriteFile": (ctypes.c_int, _HANDLE, _POINTER, _DWORD, _POINTER, _POINTER),
    "FlushFileBuffers": (ctypes.c_int, _HANDLE),
    "GetFileSizeEx": (ctypes.c_int, _HANDLE, _POINTER),
    "SetFileInformationByHandle": (ctypes.c_int, _HANDLE, ctypes.c_int, _POINTER, _DWORD),
    "DeviceIoControl": (
        *(ctypes.c_int, _HANDLE, _DWORD, _POINTER, _DWORD),
        *(_POINTER, _DWORD, _POINTER, _POINTER),
    ),
    "CloseHandle": (ctypes.c_int, _HANDLE),
}
"""Result and arguments of each function."""

if sys.platform == "win32":

    def _load() -> Kernel32:
        library: Any = ctypes.WinDLL("kernel32", use_last_error=True)
        for name, (result, *arguments) in PROTOTYPES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        library.last_error = ctypes.get_last_error
        loaded: Kernel32 = library
        return loaded

    def _text(code: int) -> str:
        return ctypes.FormatError(code)

else:

    def _load() -> Kernel32:
        raise UnavailableError("kernel32.dll is on Windows alone")

    def _text(code: int) -> str:
        return f"error {code}"


class WindowsBlockFile:
    """A regular file as a `BlockFile`; a context manager.

    Whoever has it open for writing shares it for reading and deleting alone, so that there is one
    writer; readers share everything.
    """

    def __init__(self, handle: int, path: Path, kernel32: Kernel32) -> None:
        self._handle: int | None = handle
        self.path = path
        self._kernel32 = kernel32

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        writable: bool = False,
        kernel32: Kernel32 | None = None,
    ) -> Self:
        """Open an existing file; no second one may have it open with `writable`.

        Raises FailedPreconditionError where somebody writes to it already, UnavailableError where
        the system refuses, FileNotFoundError where it is missing.
        """
        target = Path(path)
        functions = kernel32 or _load()
        share = FILE_SHARE_READ | FILE_SHARE_DELETE | (0 if writable else FILE_SHARE_WRITE)
        access = GENERIC_READ | (GENERIC_WRITE if writable else 0)
        handle = functions.CreateFileW(
            str(target), access, share, None, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, None
        )
        if handle is not None and handle != INVALID_HANDLE:
            return cls(handle, target, functions)
        code = functions.last_error()
        if code in (ERROR_FILE_NOT_FOUND, ERROR_PATH_NOT_FOUND):
            raise FileNotFoundError(f"{target}: {_text(code)}")
        if code == ERROR_SHARING_VIOLATION:
            raise FailedPreconditionError(
                f"{target} is open in another program or virtual machine that does not share it;"
                " detach it there first"
            )
        raise UnavailableError(f"cannot open {target}: {_text(code)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def size(self) -> int:
        """Length in bytes."""
        found = ctypes.c_int64()
        if not self._kernel32.GetFileSizeEx(self._open_handle(), ctypes.pointer(found)):
            raise self._failure("ask the size of")
        return found.value

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; fewer only at the end. Raises UnavailableError."""
        buffer = bytearray(length)
        count = self.read_into(offset, [buffer])
        return bytes(buffer if count == length else buffer[:count])

    def read_into(self, offset: int, buffers: Sequence[bytearray | memoryview]) -> int:
        """Fill `buffers` from `offset`, one after the other; return how many bytes there were."""
        start = offset
        for buffer in buffers:
            view = memoryview(buffer)
            while view:
                count = self._read(offset, view[:_MOST_BYTES])
                if not count:
                    return offset - start
                offset += count
                view = view[count:]
        return offset - start

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at `offset`. Raises UnavailableError (disk full, I/O error)."""
        view = memoryview(data)
        if offset + len(view) > LARGEST_FILE:
            raise UnavailableError(f"cannot write {self.path}: no file is so long")
        while view:
            part = bytes(view[:_MOST_BYTES])
            done = ctypes.c_uint32()
            if not self._kernel32.WriteFile(
                self._open_handle(),
                part,
                len(part),
                ctypes.pointer(done),
                ctypes.pointer(_at(offset)),
            ):
                raise self._failure("write")
            offset += done.value
            view = view[done.value :]

    def write_from(self, offset: int, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Write `buffers` one behind the other at `offset`. Raises UnavailableError."""
        for buffer in buffers:
            self.write_at(offset, buffer)
            offset += len(buffer)

    def write_zeros(self, offset: int, length: int) -> None:
        """Make a stretch within the file read as zeros; a sparse file gives the room back.

        Raises UnavailableError.
        """
        if length <= 0:
            return
        if self._control(FSCTL_SET_ZERO_DATA, ZeroData(offset, offset + length)):
            return
        if self._kernel32.last_error() not in (ERROR_INVALID_FUNCTION, ERROR_NOT_SUPPORTED):
            raise self._failure("zero a part of")
        for start in range(0, length, MIB):
            self.write_at(offset + start, memoryview(_ZEROS)[: min(MIB, length - start)])

    def truncate(self, size: int) -> None:
        """Set the length to `size` bytes. Raises UnavailableError."""
        wanted = ctypes.c_int64(size)
        if not self._kernel32.SetFileInformationByHandle(
            self._open_handle(), FILE_END_OF_FILE_INFO, ctypes.pointer(wanted), 8
        ):
            raise self._failure("resize")

    def flush(self) -> None:
        """Make everything written so far durable. Raises UnavailableError."""
        if not self._kernel32.FlushFileBuffers(self._open_handle()):
            raise self._failure("flush")

    def data_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of what may hold data: all of the file."""
        size = self.size
        if size:
            yield 0, size

    def reserve(self, offset: int, length: int) -> bool:
        """Say that room cannot be taken in advance."""
        return False

    def share_from(
        self, source: WindowsBlockFile, source_offset: int, offset: int, length: int
    ) -> bool:
        """Make a stretch share its blocks with one of another file; say whether that worked.

        It takes no time and no room on ReFS, not on NTFS, where all three numbers are multiples of
        the volume's clusters. Where it did not work the file has its length from before.
        """
        if source._handle is None:
            return False
        size = self.size
        if offset + length > size:  # a clone does not make a file longer
            self.truncate(offset + length)
        for start in range(0, length, _MOST_SHARED):
            count = min(_MOST_SHARED, length - start)
            asked = DuplicateExtents(source._handle, source_offset + start, offset + start, count)
            if not self._control(FSCTL_DUPLICATE_EXTENTS_TO_FILE, asked):
                self.truncate(size)
                return False
        return True

    def close(self) -> None:
        """Close the handle; a second call does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._kernel32.CloseHandle(handle)

    def _control(self, code: int, asked: ctypes.Structure) -> bool:
        """Call DeviceIoControl, which answers nothing; say whether it succeeded."""
        done = ctypes.c_uint32()
        return bool(
            self._kernel32.DeviceIoControl(
                self._open_handle(),
                code,
                ctypes.pointer(asked),
                ctypes.sizeof(asked),
                None,
                0,
                ctypes.pointer(done),
                None,
            )
        )

    def _open_handle(self) -> int:
        if self._handle is None:
            raise UnavailableError(f"{self.path} is closed")
        return self._handle

    def _read(self, offset: int, view: memoryview) -> int:
        if offset + len(view) > LARGEST_FILE:
            return 0
        buffer = (ctypes.c_char * len(view)).from_buffer(view)
        done = ctypes.c_uint32()
        if self._kernel32.ReadFile(
            self._open_handle(),
            buffer,
            len(view),
            ctypes.pointer(done),
            ctypes.pointer(_at(offset)),
        ):
            return done.value
        if self._kernel32.last_error() == ERROR_HANDLE_EOF:
            return 0
        raise self._failure("read")

    def _failure(self, verb: str) -> UnavailableError:
        return UnavailableError(f"cannot {verb} {self.path}: {_text(self._kernel32.last_error())}")


def _at(offset: int) -> Overlapped:
    return Overlapped(Offset=offset & 0xFFFF_FFFF, OffsetHigh=offset >> 32)

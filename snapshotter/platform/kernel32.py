"""The kernel32 calls that the store needs: prototypes in ctypes, and OSErrors from their results.

Source: Microsoft's fileapi.h, winbase.h, winioctl.h as documented on learn.microsoft.com.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import wintypes
from typing import Any, Final, Protocol

from snapshotter.platform.winerror import windows_error

MOVEFILE_REPLACE_EXISTING: Final = 0x1
MOVEFILE_WRITE_THROUGH: Final = 0x8
SYMBOLIC_LINK_FLAG_ALLOW_UNPRIVILEGED_CREATE: Final = 0x2
FILE_ATTRIBUTE_NORMAL: Final = 0x80
GENERIC_READ: Final = 0x80000000
GENERIC_WRITE: Final = 0x40000000
DELETE: Final = 0x10000
FILE_SHARE_READ: Final = 0x1
CREATE_NEW: Final = 1
OPEN_EXISTING: Final = 3
FSCTL_DUPLICATE_EXTENTS_TO_FILE: Final = 0x98344
"""CTL_CODE(FILE_DEVICE_FILE_SYSTEM, 209, METHOD_BUFFERED, FILE_WRITE_DATA)."""
FILE_END_OF_FILE_INFO: Final = 6
"""FileEndOfFileInfo of FILE_INFO_BY_HANDLE_CLASS."""

INVALID_HANDLE: Final = ctypes.c_void_p(-1).value


class DuplicateExtents(ctypes.Structure):
    """DUPLICATE_EXTENTS_DATA of winioctl.h."""

    _fields_ = (
        ("FileHandle", wintypes.HANDLE),
        ("SourceFileOffset", ctypes.c_int64),
        ("TargetFileOffset", ctypes.c_int64),
        ("ByteCount", ctypes.c_int64),
    )


class Kernel32(Protocol):
    """Calls by their Windows names in our spelling. Each raises OSError with its `winerror`."""

    def create_directory(self, path: str) -> None:
        """CreateDirectoryW."""
        ...

    def move_file(self, source: str, target: str, flags: int) -> None:
        """MoveFileExW."""
        ...

    def delete_file(self, path: str) -> None:
        """DeleteFileW."""
        ...

    def remove_directory(self, path: str) -> None:
        """RemoveDirectoryW."""
        ...

    def set_attributes(self, path: str, attributes: int) -> None:
        """SetFileAttributesW."""
        ...

    def create_symbolic_link(self, link: str, target: str, flags: int) -> None:
        """CreateSymbolicLinkW."""
        ...

    def create_hard_link(self, link: str, target: str) -> None:
        """CreateHardLinkW."""
        ...

    def free_bytes(self, directory: str) -> int:
        """GetDiskFreeSpaceExW: what is left to the caller."""
        ...

    def cluster_size(self, directory: str) -> int:
        """GetDiskFreeSpaceW: bytes of a cluster."""
        ...

    def create_file(self, path: str, access: int, share: int, disposition: int) -> int:
        """CreateFileW: a handle."""
        ...

    def close_handle(self, handle: int) -> None:
        """CloseHandle."""
        ...

    def set_file_size(self, handle: int, size: int) -> None:
        """SetFileInformationByHandle(FileEndOfFileInfo)."""
        ...

    def duplicate_extents(
        self, target: int, source: int, *, source_offset: int, target_offset: int, length: int
    ) -> None:
        """DeviceIoControl(FSCTL_DUPLICATE_EXTENTS_TO_FILE); all three in whole clusters."""
        ...


PROTOTYPES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "CreateDirectoryW": (wintypes.BOOL, (wintypes.LPCWSTR, ctypes.c_void_p)),
    "MoveFileExW": (wintypes.BOOL, (wintypes.LPCWSTR, wintypes.LPCWSTR, wintypes.DWORD)),
    "DeleteFileW": (wintypes.BOOL, (wintypes.LPCWSTR,)),
    "RemoveDirectoryW": (wintypes.BOOL, (wintypes.LPCWSTR,)),
    "SetFileAttributesW": (wintypes.BOOL, (wintypes.LPCWSTR, wintypes.DWORD)),
    "CreateSymbolicLinkW": (
        ctypes.c_ubyte,  # BOOLEAN, not BOOL: the upper bytes of the register are undefined
        (wintypes.LPCWSTR, wintypes.LPCWSTR, wintypes.DWORD),
    ),
    "CreateHardLinkW": (wintypes.BOOL, (wintypes.LPCWSTR, wintypes.LPCWSTR, ctypes.c_void_p)),
    "GetDiskFreeSpaceExW": (
        wintypes.BOOL,
        (
            wintypes.LPCWSTR,
            ctypes.POINTER(ctypes.c_uint64),
            ctypes.POINTER(ctypes.c_uint64),
            ctypes.POINTER(ctypes.c_uint64),
        ),
    ),
    "GetDiskFreeSpaceW": (
        wintypes.BOOL,
        (wintypes.LPCWSTR, *(ctypes.POINTER(wintypes.DWORD),) * 4),
    ),
    "CreateFileW": (
        wintypes.HANDLE,
        (
            wintypes.LPCWSTR,
            wintypes.DWORD,
            wintypes.DWORD,
            ctypes.c_void_p,
            wintypes.DWORD,
            wintypes.DWORD,
            wintypes.HANDLE,
        ),
    ),
    "CloseHandle": (wintypes.BOOL, (wintypes.HANDLE,)),
    "SetFileInformationByHandle": (
        wintypes.BOOL,
        (wintypes.HANDLE, ctypes.c_int, ctypes.c_void_p, wintypes.DWORD),
    ),
    "DeviceIoControl": (
        wintypes.BOOL,
        (
            wintypes.HANDLE,
            wintypes.DWORD,
            ctypes.c_void_p,
            wintypes.DWORD,
            ctypes.c_void_p,
            wintypes.DWORD,
            ctypes.POINTER(wintypes.DWORD),
            ctypes.c_void_p,
        ),
    ),
}
"""Result and arguments of each function."""


class Kernel32Dll:
    """`Kernel32` on the DLL: `library` gives its functions, `last_error` the thread's error."""

    def __init__(self, library: object, last_error: Callable[[], int]) -> None:
        self._last_error = last_error
        self._functions: dict[str, Any] = {}
        for name, (result, arguments) in PROTOTYPES.items():
            function = getattr(library, name)
            function.restype = result
            function.argtypes = arguments
            self._functions[name] = function

    def create_directory(self, path: str) -> None:
        """CreateDirectoryW."""
        self._call("CreateDirectoryW", path, path, None)

    def move_file(self, source: str, target: str, flags: int) -> None:
        """MoveFileExW."""
        self._call("MoveFileExW", source, source, target, flags)

    def delete_file(self, path: str) -> None:
        """DeleteFileW."""
        self._call("DeleteFileW", path, path)

    def remove_directory(self, path: str) -> None:
        """RemoveDirectoryW."""
        self._call("RemoveDirectoryW", path, path)

    def set_attributes(self, path: str, attributes: int) -> None:
        """SetFileAttributesW."""
        self._call("SetFileAttributesW", path, path, attributes)

    def create_symbolic_link(self, link: str, target: str, flags: int) -> None:
        """CreateSymbolicLinkW."""
        self._call("CreateSymbolicLinkW", link, link, target, flags)

    def create_hard_link(self, link: str, target: str) -> None:
        """CreateHardLinkW."""
        self._call("CreateHardLinkW", link, link, target, None)

    def free_bytes(self, directory: str) -> int:
        """GetDiskFreeSpaceExW."""
        free = ctypes.c_uint64()
        self._call("GetDiskFreeSpaceExW", directory, directory, ctypes.byref(free), None, None)
        return free.value

    def cluster_size(self, directory: str) -> int:
        """GetDiskFreeSpaceW, whose path must end in a backslash."""
        values = [wintypes.DWORD() for _ in range(4)]
        path = directory.rstrip("\\") + "\\"
        self._call("GetDiskFreeSpaceW", path, path, *map(ctypes.byref, values))
        return values[0].value * values[1].value

    def create_file(self, path: str, access: int, share: int, disposition: int) -> int:
        """CreateFileW."""
        handle = self._functions["CreateFileW"](
            path, access, share, None, disposition, FILE_ATTRIBUTE_NORMAL, None
        )
        if handle is None or handle == INVALID_HANDLE:
            raise windows_error(self._last_error(), path)
        return int(handle)

    def close_handle(self, handle: int) -> None:
        """CloseHandle."""
        self._call("CloseHandle", "", handle)

    def set_file_size(self, handle: int, size: int) -> None:
        """SetFileInformationByHandle."""
        end = ctypes.c_int64(size)
        self._call(
            "SetFileInformationByHandle",
            *("", handle, FILE_END_OF_FILE_INFO, ctypes.byref(end), ctypes.sizeof(end)),
        )

    def duplicate_extents(
        self, target: int, source: int, *, source_offset: int, target_offset: int, length: int
    ) -> None:
        """DeviceIoControl."""
        data = DuplicateExtents(source, source_offset, target_offset, length)
        returned = wintypes.DWORD()
        self._call(
            "DeviceIoControl",
            *("", target, FSCTL_DUPLICATE_EXTENTS_TO_FILE, ctypes.byref(data)),
            *(ctypes.sizeof(data), None, 0, ctypes.byref(returned), None),
        )

    def _call(self, name: str, path: str, *arguments: object) -> None:
        if not self._functions[name](*arguments):
            raise windows_error(self._last_error(), path)

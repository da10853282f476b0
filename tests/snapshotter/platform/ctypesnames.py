"""What prototypes here use for the C types of Windows's headers."""

from __future__ import annotations

import ctypes
from ctypes import wintypes
from typing import Any, Final

C_TYPES: Final[dict[str, Any]] = {
    "BOOLEAN": ctypes.c_ubyte,
    "DWORD": wintypes.DWORD,
    "FILE_INFO_BY_HANDLE_CLASS": ctypes.c_int,
    "HANDLE": wintypes.HANDLE,
    "HLOCAL": ctypes.c_void_p,
    "LPCVOID": ctypes.c_void_p,
    "LPCWSTR": wintypes.LPCWSTR,
    "LPDWORD": ctypes.POINTER(wintypes.DWORD),
    "LPOVERLAPPED": ctypes.c_void_p,
    "LPSECURITY_ATTRIBUTES": ctypes.c_void_p,
    "LPVOID": ctypes.c_void_p,
    "PSECURITY_DESCRIPTOR*": ctypes.POINTER(ctypes.c_void_p),
    "PULARGE_INTEGER": ctypes.POINTER(ctypes.c_uint64),
    "PULONG": ctypes.POINTER(wintypes.ULONG),
    "WINBOOL": wintypes.BOOL,
}

"""The kernel32 and advapi32 calls behind a named pipe: prototypes in ctypes, and codes as results.

Every transfer is overlapped, with an event of its own: a handle that is not overlapped does one
transfer at a time, so that a thread that reads would keep another one from writing.

Source: Microsoft's namedpipeapi.h, fileapi.h, ioapiset.h, synchapi.h, sddl.h, winbase.h as
documented on learn.microsoft.com.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import wintypes
from typing import Any, ClassVar, Final

from snapshotter.platform.kernel32 import INVALID_HANDLE
from snapshotter.platform.winerror import windows_error

PIPE_ACCESS_DUPLEX: Final = 0x3
FILE_FLAG_OVERLAPPED: Final = 0x40000000
FILE_FLAG_FIRST_PIPE_INSTANCE: Final = 0x80000
PIPE_TYPE_BYTE: Final = 0x0
PIPE_READMODE_BYTE: Final = 0x0
PIPE_WAIT: Final = 0x0
PIPE_REJECT_REMOTE_CLIENTS: Final = 0x8
SDDL_REVISION_1: Final = 1


class Overlapped(ctypes.Structure):
    """OVERLAPPED of minwinbase.h."""

    _fields_: ClassVar = [
        ("Internal", ctypes.c_size_t),
        ("InternalHigh", ctypes.c_size_t),
        ("Offset", ctypes.c_uint32),
        ("OffsetHigh", ctypes.c_uint32),
        ("hEvent", wintypes.HANDLE),
    ]


class SecurityAttributes(ctypes.Structure):
    """SECURITY_ATTRIBUTES of minwinbase.h."""

    _fields_: ClassVar = [
        ("nLength", ctypes.c_uint32),
        ("lpSecurityDescriptor", wintypes.LPVOID),
        ("bInheritHandle", ctypes.c_int32),
    ]


assert ctypes.sizeof(Overlapped) == 8 + 3 * ctypes.sizeof(ctypes.c_void_p)
assert ctypes.sizeof(SecurityAttributes) == 3 * ctypes.sizeof(ctypes.c_void_p)

KERNEL32_PROTOTYPES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "CreateNamedPipeW": (
        wintypes.HANDLE,
        (wintypes.LPCWSTR, *(wintypes.DWORD,) * 6, ctypes.c_void_p),
    ),
    "ConnectNamedPipe": (wintypes.BOOL, (wintypes.HANDLE, ctypes.c_void_p)),
    "ReadFile": (
        wintypes.BOOL,
        (
            wintypes.HANDLE,
            ctypes.c_void_p,
            wintypes.DWORD,
            ctypes.POINTER(wintypes.DWORD),
            ctypes.c_void_p,
        ),
    ),
    "WriteFile": (
        wintypes.BOOL,
        (
            wintypes.HANDLE,
            ctypes.c_void_p,
            wintypes.DWORD,
            ctypes.POINTER(wintypes.DWORD),
            ctypes.c_void_p,
        ),
    ),
    "GetOverlappedResult": (
        wintypes.BOOL,
        (wintypes.HANDLE, ctypes.c_void_p, ctypes.POINTER(wintypes.DWORD), wintypes.BOOL),
    ),
    "CancelIoEx": (wintypes.BOOL, (wintypes.HANDLE, ctypes.c_void_p)),
    "CreateEventW": (
        wintypes.HANDLE,
        (ctypes.c_void_p, wintypes.BOOL, wintypes.BOOL, wintypes.LPCWSTR),
    ),
    "CloseHandle": (wintypes.BOOL, (wintypes.HANDLE,)),
    "LocalFree": (ctypes.c_void_p, (ctypes.c_void_p,)),
}
ADVAPI32_PROTOTYPES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "ConvertStringSecurityDescriptorToSecurityDescriptorW": (
        wintypes.BOOL,
        (
            wintypes.LPCWSTR,
            wintypes.DWORD,
            ctypes.POINTER(ctypes.c_void_p),
            ctypes.POINTER(wintypes.ULONG),
        ),
    ),
}
"""Result and arguments of each function."""


class PipeCalls:
    """The calls by what they do. Transfers and cancellation return a Windows code, 0 for success.

    The libraries give the functions, `last_error` the thread's error.
    """

    def __init__(self, kernel32: object, advapi32: object, last_error: Callable[[], int]) -> None:
        self._last_error = last_error
        self._functions: dict[str, Any] = {}
        for library, prototypes in (
            (kernel32, KERNEL32_PROTOTYPES),
            (advapi32, ADVAPI32_PROTOTYPES),
        ):
            for name, (result, arguments) in prototypes.items():
                function = getattr(library, name)
                function.restype = result
                function.argtypes = arguments
                self._functions[name] = function

    def security_descriptor(self, sddl: str) -> int:
        """Return the address of the descriptor of a text; `free` it. Raises OSError."""
        found = ctypes.c_void_p()
        converted = self._functions["ConvertStringSecurityDescriptorToSecurityDescriptorW"](
            sddl, SDDL_REVISION_1, ctypes.byref(found), None
        )
        if not converted or found.value is None:
            raise windows_error(self._last_error(), sddl)
        return found.value

    def free(self, address: int) -> None:
        """LocalFree."""
        self._functions["LocalFree"](address)

    def create_pipe(
        self, path: str, *, flags: int, instances: int, buffer_size: int, security: int
    ) -> int:
        """Return the handle of a new instance of a duplex byte pipe for this machine's clients.

        `flags` are added to the open mode; `security` is a descriptor's address. Raises OSError.
        """
        attributes = SecurityAttributes(ctypes.sizeof(SecurityAttributes), security, 0)
        handle = self._functions["CreateNamedPipeW"](
            path,
            PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED | flags,
            PIPE_TYPE_BYTE | PIPE_READMODE_BYTE | PIPE_WAIT | PIPE_REJECT_REMOTE_CLIENTS,
            instances,
            buffer_size,
            buffer_size,
            0,  # the default time-out of WaitNamedPipe
            ctypes.byref(attributes),
        )
        return self._handle(handle, path)

    def create_event(self) -> int:
        """Return the handle of a new event that stays signalled until it is reset.

        The start of a transfer resets its event. Raises OSError.
        """
        return self._handle(self._functions["CreateEventW"](None, 1, 0, None), "event")

    def connect(self, handle: int, overlapped: Overlapped) -> int:
        """Start to wait for a client."""
        return self._code("ConnectNamedPipe", handle, ctypes.byref(overlapped))

    def read(self, handle: int, buffer: object, length: int, overlapped: Overlapped) -> int:
        """Start to read at most `length` bytes into a ctypes buffer that lives until the end."""
        return self._code("ReadFile", handle, buffer, length, None, ctypes.byref(overlapped))

    def write(self, handle: int, buffer: object, length: int, overlapped: Overlapped) -> int:
        """Start to write `length` bytes of a ctypes buffer that lives until the end."""
        return self._code("WriteFile", handle, buffer, length, None, ctypes.byref(overlapped))

    def result(self, handle: int, overlapped: Overlapped) -> tuple[int, int]:
        """Wait for the end of a transfer, and return its code and how many bytes it moved."""
        count = wintypes.DWORD()
        code = self._code(
            "GetOverlappedResult", handle, ctypes.byref(overlapped), ctypes.byref(count), 1
        )
        return code, count.value

    def cancel(self, handle: int) -> int:
        """Have every transfer of the handle end now."""
        return self._code("CancelIoEx", handle, None)

    def close(self, handle: int) -> None:
        """CloseHandle. What was written stays for the client to read."""
        code = self._code("CloseHandle", handle)
        if code:
            raise windows_error(code, "handle")

    def _code(self, name: str, *arguments: object) -> int:
        return 0 if self._functions[name](*arguments) else self._last_error()

    def _handle(self, handle: int | None, path: str) -> int:
        if handle is None or handle == INVALID_HANDLE:
            raise windows_error(self._last_error(), path)
        return int(handle)

"""computecore.dll: prototypes, structures, and calls that return what they gave.

Handles are numbers here, HRESULTs unsigned, strings Python's. A string that the library made is
copied and freed at once. Nothing is interpreted: that is `harness.hcs.hcsapi`'s part.
Source: computecore.h and computedefs.h of the Windows SDK, as documented in MicrosoftDocs
`virtualization/api/hcs/Reference`.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import sys
from collections.abc import Callable
from typing import Any, Final, Protocol

from harness.errors import ComputeServiceError, UsageError
from harness.hcs.hresult import unsigned

GENERIC_ALL: Final = 0x10000000

Handle = ctypes.c_void_p
_Text = ctypes.c_wchar_p
_Result = ctypes.c_int32  # HRESULT; ctypes.HRESULT would raise an OSError without the document
_TextOut = ctypes.POINTER(ctypes.c_void_p)  # PWSTR*: an address, to be read and freed
_HandleOut = ctypes.POINTER(Handle)


class EventType(enum.IntEnum):
    """HCS_EVENT_TYPE, as far as systems have them."""

    SYSTEM_EXITED = 1
    SYSTEM_CRASH_INITIATED = 2
    SYSTEM_CRASH_REPORT = 3
    GUEST_CONNECTION_CLOSED = 6
    SERVICE_DISCONNECT = 0x02000000


class HcsEvent(ctypes.Structure):
    """HCS_EVENT: valid only while the callback runs."""

    _fields_ = (
        ("Type", ctypes.c_uint32),
        ("EventData", ctypes.c_wchar_p),
        ("Operation", Handle),
    )


# CALLBACK is stdcall, which is the one convention of x64 and ARM64.
EVENT_CALLBACK: Final = ctypes.CFUNCTYPE(None, ctypes.POINTER(HcsEvent), ctypes.c_void_p)
OPERATION_CALLBACK: Final = ctypes.CFUNCTYPE(None, Handle, ctypes.c_void_p)

PROTOTYPES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "HcsCreateOperation": (Handle, (ctypes.c_void_p, OPERATION_CALLBACK)),
    "HcsCloseOperation": (None, (Handle,)),
    "HcsCancelOperation": (_Result, (Handle,)),
    "HcsGetOperationResult": (_Result, (Handle, _TextOut)),
    "HcsWaitForOperationResult": (_Result, (Handle, ctypes.c_uint32, _TextOut)),
    "HcsCreateComputeSystem": (_Result, (_Text, _Text, Handle, ctypes.c_void_p, _HandleOut)),
    "HcsOpenComputeSystem": (_Result, (_Text, ctypes.c_uint32, _HandleOut)),
    "HcsCloseComputeSystem": (None, (Handle,)),
    "HcsStartComputeSystem": (_Result, (Handle, Handle, _Text)),
    "HcsShutDownComputeSystem": (_Result, (Handle, Handle, _Text)),
    "HcsTerminateComputeSystem": (_Result, (Handle, Handle, _Text)),
    "HcsModifyComputeSystem": (_Result, (Handle, Handle, _Text, Handle)),
    "HcsGetComputeSystemProperties": (_Result, (Handle, Handle, _Text)),
    "HcsEnumerateComputeSystems": (_Result, (_Text, Handle)),
    "HcsSetComputeSystemCallback": (
        _Result,
        (Handle, ctypes.c_uint32, ctypes.c_void_p, EVENT_CALLBACK),
    ),
    "HcsGetServiceProperties": (_Result, (_Text, _TextOut)),
    "HcsGrantVmAccess": (_Result, (_Text, _Text)),
    "HcsRevokeVmAccess": (_Result, (_Text, _Text)),
}
"""Result and arguments of each function; all are there since Windows 10 1809 and Server 2019."""


class Library(Protocol):
    """Where functions come from: `ctypes.WinDLL`, or one that stands in for it."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - a foreign function
        """Return the function of that name. Raises AttributeError."""
        ...


class ComputeCore:
    """The library's functions. `local_free` frees a string by its address (LocalFree)."""

    def __init__(self, library: Library, local_free: Callable[[int], object]) -> None:
        """Raises ComputeServiceError for a function that is missing: Windows is too old."""
        self._local_free = local_free
        self._functions: dict[str, Any] = {}
        for name, (result, arguments) in PROTOTYPES.items():
            try:
                function = getattr(library, name)
            except AttributeError as error:
                raise ComputeServiceError(
                    f"computecore.dll has no {name}: Windows 10 1809 or Server 2019 is needed"
                ) from error
            function.restype = result
            function.argtypes = arguments
            self._functions[name] = function

    def call(self, name: str, *arguments: object) -> int:
        """Return the HRESULT of a function."""
        return unsigned(self._functions[name](*arguments))

    def call_for_text(self, name: str, *arguments: object) -> tuple[int, str]:
        """Return the HRESULT and the document of a function whose last argument takes one."""
        out = ctypes.c_void_p()
        hresult = self.call(name, *arguments, ctypes.byref(out))
        if not out.value:
            return hresult, ""
        try:
            return hresult, ctypes.wstring_at(out.value)
        finally:
            self._local_free(out.value)

    def call_for_handle(self, name: str, *arguments: object) -> tuple[int, int]:
        """Return the HRESULT and the handle (0: none) of a function whose last argument is it."""
        out = Handle()
        hresult = self.call(name, *arguments, ctypes.byref(out))
        return hresult, out.value or 0

    def create_operation(self) -> int:
        """Return a new operation. Raises ComputeServiceError when there are no resources left."""
        operation: int | None = self._functions["HcsCreateOperation"](None, OPERATION_CALLBACK())
        if not operation:
            raise ComputeServiceError("HcsCreateOperation: the system has no resources left")
        return operation

    def close_operation(self, operation: int) -> None:
        """Free an operation."""
        self._functions["HcsCloseOperation"](operation)

    def close_system(self, system: int) -> None:
        """Free a handle of a system."""
        self._functions["HcsCloseComputeSystem"](system)


@functools.cache
def load_computecore() -> ComputeCore:
    """Return Windows' own library, for as long as this process lives.

    Raises UsageError elsewhere, ComputeServiceError on a Windows without it.
    """
    if sys.platform != "win32":
        raise UsageError(
            "backend hcs needs Windows with Hyper-V: run it on a host (docs/hosts.md), or choose "
            "qemu or model here"
        )
    else:  # noqa: RET506 - mypy understands platforms in this form only
        try:
            # From the system's folder alone (LOAD_LIBRARY_SEARCH_SYSTEM32).
            library = ctypes.WinDLL("computecore.dll", winmode=0x800)
        except OSError as error:
            raise ComputeServiceError(
                f"computecore.dll cannot be loaded ({error}): enable Hyper-V and Containers "
                "(lcowlab provision does)"
            ) from error
        free = ctypes.WinDLL("kernel32.dll", winmode=0x800).LocalFree
        free.restype = ctypes.c_void_p
        free.argtypes = (ctypes.c_void_p,)
        return ComputeCore(library, free)

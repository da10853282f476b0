"""virtdisk.dll: what Windows itself finds in a disk file, to be held against our own reading.

The disk is opened for its facts alone: nothing is attached, nothing is written.
Source: virtdisk.h of the Windows SDK; learn.microsoft.com, OpenVirtualDisk (with version 2 of its
parameters the access mask must be none) and GET_VIRTUAL_DISK_INFO.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from harness.errors import ComputeServiceError, UsageError
from harness.hcs.computecore import Library

_MICROSOFT: Final = uuid.UUID("ec984aec-a0f9-47e9-901f-71415a66345b")
_VERSION_2: Final = 2
_WIN32: Final = 0x80070000  # HRESULT_FROM_WIN32


class StorageType(enum.IntEnum):
    """VIRTUAL_STORAGE_TYPE_DEVICE_*."""

    VHD = 2
    VHDX = 3


class InfoVersion(enum.IntEnum):
    """GET_VIRTUAL_DISK_INFO_VERSION: which fact is asked for."""

    SIZE = 1
    PROVIDER_SUBTYPE = 7
    VIRTUAL_DISK_ID = 14


class Subtype(enum.IntEnum):
    """How a disk's file is laid out."""

    FIXED = 2
    DYNAMIC = 3
    DIFFERENCING = 4


class VirtualStorageType(ctypes.Structure):
    """VIRTUAL_STORAGE_TYPE."""

    _fields_ = (("DeviceId", ctypes.c_uint32), ("VendorId", ctypes.c_ubyte * 16))


class OpenParameters(ctypes.Structure):
    """OPEN_VIRTUAL_DISK_PARAMETERS, version 2."""

    _fields_ = (
        ("Version", ctypes.c_uint32),
        ("GetInfoOnly", ctypes.c_int32),
        ("ReadOnly", ctypes.c_int32),
        ("ResiliencyGuid", ctypes.c_ubyte * 16),
    )


class _Size(ctypes.Structure):
    _fields_ = (
        ("VirtualSize", ctypes.c_uint64),
        ("PhysicalSize", ctypes.c_uint64),
        ("BlockSize", ctypes.c_uint32),
        ("SectorSize", ctypes.c_uint32),
    )


class _Facts(ctypes.Union):
    _fields_ = (
        ("Size", _Size),
        ("ProviderSubtype", ctypes.c_uint32),
        ("VirtualDiskId", ctypes.c_ubyte * 16),
    )


class DiskInfo(ctypes.Structure):
    """GET_VIRTUAL_DISK_INFO, with the members that are asked for here."""

    _fields_ = (("Version", ctypes.c_uint32), ("Facts", _Facts))


PROTOTYPES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "OpenVirtualDisk": (
        ctypes.c_uint32,
        (
            ctypes.POINTER(VirtualStorageType),
            ctypes.c_wchar_p,
            ctypes.c_uint32,
            ctypes.c_uint32,
            ctypes.POINTER(OpenParameters),
            ctypes.POINTER(ctypes.c_void_p),
        ),
    ),
    "GetVirtualDiskInformation": (
        ctypes.c_uint32,
        (
            ctypes.c_void_p,
            ctypes.POINTER(ctypes.c_uint32),
            ctypes.POINTER(DiskInfo),
            ctypes.POINTER(ctypes.c_uint32),
        ),
    ),
}
"""Result (a Win32 error, no HRESULT) and arguments of each function."""


@dataclass(frozen=True, slots=True)
class NativeDisk:
    """What Windows says of a disk; sizes in bytes, `identifier` only of a VHDX."""

    size: int
    block_size: int
    sector_size: int
    subtype: Subtype
    identifier: uuid.UUID | None


class VirtDisk:
    """The library's functions; `close_handle` is CloseHandle."""

    def __init__(self, library: Library, close_handle: Callable[[int], object]) -> None:
        self._close_handle = close_handle
        self._functions: dict[str, Any] = {}
        for name, (result, arguments) in PROTOTYPES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            self._functions[name] = function

    def inspect(self, path: str, storage: StorageType) -> NativeDisk:
        """Return what Windows finds in a file. Raises ComputeServiceError: why it opens none."""
        kind = VirtualStorageType(storage, (ctypes.c_ubyte * 16)(*_MICROSOFT.bytes_le))
        parameters = OpenParameters(_VERSION_2, GetInfoOnly=1, ReadOnly=1)
        handle = ctypes.c_void_p()
        error = self._functions["OpenVirtualDisk"](
            ctypes.byref(kind), path, 0, 0, ctypes.byref(parameters), ctypes.byref(handle)
        )
        if error or not handle.value:
            raise _refused("OpenVirtualDisk", path, error)
        try:
            size = self._ask(handle, InfoVersion.SIZE, path).Size
            subtype = self._ask(handle, InfoVersion.PROVIDER_SUBTYPE, path).ProviderSubtype
            identifier = None
            if storage is StorageType.VHDX:
                raw = bytes(self._ask(handle, InfoVersion.VIRTUAL_DISK_ID, path).VirtualDiskId)
                identifier = uuid.UUID(bytes_le=raw)
            return NativeDisk(
                int(size.VirtualSize),
                int(size.BlockSize),
                int(size.SectorSize),
                Subtype(subtype),
                identifier,
            )
        finally:
            self._close_handle(handle.value)

    def _ask(self, handle: ctypes.c_void_p, version: InfoVersion, path: str) -> Any:  # noqa: ANN401 - a ctypes union
        info = DiskInfo(version)
        length = ctypes.c_uint32(ctypes.sizeof(info))
        error = self._functions["GetVirtualDiskInformation"](
            handle, ctypes.byref(length), ctypes.byref(info), None
        )
        if error:
            raise _refused(f"GetVirtualDiskInformation {version.name}", path, error)
        return info.Facts


@functools.cache
def load_virtdisk() -> VirtDisk:
    """Return Windows' own library. Raises UsageError elsewhere."""
    if sys.platform != "win32":
        raise UsageError("virtdisk.dll is Windows'")
    else:  # noqa: RET506 - mypy understands platforms in this form only
        close = ctypes.WinDLL("kernel32.dll", winmode=0x800).CloseHandle
        close.argtypes = (ctypes.c_void_p,)
        return VirtDisk(ctypes.WinDLL("virtdisk.dll", winmode=0x800), close)


def _refused(call: str, path: str, error: int) -> ComputeServiceError:
    return ComputeServiceError(f"{call} of {path}", hresult=_WIN32 | error & 0xFFFF)

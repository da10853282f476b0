"""The functions of virtdisk.dll: structures and prototypes in ctypes.

Source: virtdisk.h as documented on learn.microsoft.com. PhysicalSectorSizeInBytes of
CREATE_VIRTUAL_DISK_PARAMETERS is documented there, and is in go-winio's vhd package;
mingw-w64's header does not have it.
"""

from __future__ import annotations

import ctypes
import enum
from ctypes import wintypes
from typing import Any, ClassVar, Final, Self
from uuid import UUID

MICROSOFT: Final = UUID("ec984aec-a0f9-47e9-901f-71415a66345b")
"""VIRTUAL_STORAGE_TYPE_VENDOR_MICROSOFT."""

ACCESS_NONE: Final = 0x0
"""What Version2 of the parameters asks for: they say themselves what the handle is for."""
ACCESS_METAOPS: Final = 0x00200000
ATTACH_READ_ONLY: Final = 0x1
ATTACH_NO_DRIVE_LETTER: Final = 0x2
CREATE_NONE: Final = 0x0
CREATE_FULL_PHYSICAL_ALLOCATION: Final = 0x1


class DeviceId(enum.IntEnum):
    """VIRTUAL_STORAGE_TYPE_DEVICE_*."""

    UNKNOWN = 0
    ISO = 1
    VHD = 2
    VHDX = 3


class Subtype(enum.IntEnum):
    """GET_VIRTUAL_DISK_INFO.ProviderSubtype."""

    FIXED = 2
    DYNAMIC = 3
    DIFFERENCING = 4


class InfoVersion(enum.IntEnum):
    """GET_VIRTUAL_DISK_INFO_VERSION: what is asked for."""

    SIZE = 1
    IDENTIFIER = 2
    PARENT_LOCATION = 3
    VIRTUAL_STORAGE_TYPE = 6
    PROVIDER_SUBTYPE = 7
    VHD_PHYSICAL_SECTOR_SIZE = 10
    VIRTUAL_DISK_ID = 14


class Guid(ctypes.Structure):
    """GUID of guiddef.h."""

    _fields_: ClassVar = [
        ("Data1", ctypes.c_uint32),
        ("Data2", ctypes.c_uint16),
        ("Data3", ctypes.c_uint16),
        ("Data4", ctypes.c_ubyte * 8),
    ]

    @classmethod
    def of(cls, value: UUID) -> Self:
        """Return the structure of a UUID."""
        return cls.from_buffer_copy(value.bytes_le)

    def uuid(self) -> UUID:
        """Return the UUID in it."""
        return UUID(bytes_le=bytes(self))


class StorageType(ctypes.Structure):
    """VIRTUAL_STORAGE_TYPE."""

    _fields_: ClassVar = [("DeviceId", ctypes.c_uint32), ("VendorId", Guid)]


class _OpenVersion1(ctypes.Structure):
    _fields_: ClassVar = [("RWDepth", ctypes.c_uint32)]


class _OpenVersion2(ctypes.Structure):
    _fields_: ClassVar = [
        ("GetInfoOnly", ctypes.c_int32),
        ("ReadOnly", ctypes.c_int32),
        ("ResiliencyGuid", Guid),
    ]


class _OpenVersions(ctypes.Union):
    _fields_: ClassVar = [("Version1", _OpenVersion1), ("Version2", _OpenVersion2)]


class OpenParameters(ctypes.Structure):
    """OPEN_VIRTUAL_DISK_PARAMETERS."""

    _fields_: ClassVar = [("Version", ctypes.c_uint32), ("Of", _OpenVersions)]


class _CreateVersion2(ctypes.Structure):
    _fields_: ClassVar = [
        ("UniqueId", Guid),
        ("MaximumSize", ctypes.c_uint64),
        ("BlockSizeInBytes", ctypes.c_uint32),
        ("SectorSizeInBytes", ctypes.c_uint32),
        ("PhysicalSectorSizeInBytes", ctypes.c_uint32),
        ("ParentPath", ctypes.c_wchar_p),
        ("SourcePath", ctypes.c_wchar_p),
        ("OpenFlags", ctypes.c_uint32),
        ("ParentVirtualStorageType", StorageType),
        ("SourceVirtualStorageType", StorageType),
        ("ResiliencyGuid", Guid),
    ]


class CreateParameters(ctypes.Structure):
    """CREATE_VIRTUAL_DISK_PARAMETERS; Version2 is the larger one, and in use."""

    _fields_: ClassVar = [("Version", ctypes.c_uint32), ("Version2", _CreateVersion2)]


class AttachParameters(ctypes.Structure):
    """ATTACH_VIRTUAL_DISK_PARAMETERS."""

    _fields_: ClassVar = [("Version", ctypes.c_uint32), ("Reserved", ctypes.c_uint32)]


class _MergeVersion1(ctypes.Structure):
    _fields_: ClassVar = [("MergeDepth", ctypes.c_uint32)]


class _MergeVersion2(ctypes.Structure):
    _fields_: ClassVar = [
        ("MergeSourceDepth", ctypes.c_uint32),
        ("MergeTargetDepth", ctypes.c_uint32),
    ]


class _MergeVersions(ctypes.Union):
    _fields_: ClassVar = [("Version1", _MergeVersion1), ("Version2", _MergeVersion2)]


class MergeParameters(ctypes.Structure):
    """MERGE_VIRTUAL_DISK_PARAMETERS."""

    _fields_: ClassVar = [("Version", ctypes.c_uint32), ("Of", _MergeVersions)]


class _Size(ctypes.Structure):
    _fields_: ClassVar = [
        ("VirtualSize", ctypes.c_uint64),
        ("PhysicalSize", ctypes.c_uint64),
        ("BlockSize", ctypes.c_uint32),
        ("SectorSize", ctypes.c_uint32),
    ]


class _ParentLocation(ctypes.Structure):
    _fields_: ClassVar = [
        ("ParentResolved", ctypes.c_int32),
        ("ParentLocationBuffer", ctypes.c_uint16 * 1),  # and as many as there are
    ]


class _Info(ctypes.Union):
    _fields_: ClassVar = [
        ("Size", _Size),
        ("ParentLocation", _ParentLocation),
        ("VirtualStorageType", StorageType),
        ("ProviderSubtype", ctypes.c_uint32),
        ("VhdPhysicalSectorSize", ctypes.c_uint32),
        ("VirtualDiskId", Guid),
    ]


class DiskInfo(ctypes.Structure):
    """GET_VIRTUAL_DISK_INFO, those members that are in use."""

    _fields_: ClassVar = [("Version", ctypes.c_uint32), ("Of", _Info)]


PARENT_TEXT_OFFSET: Final = DiskInfo.Of.offset + _ParentLocation.ParentLocationBuffer.offset

assert ctypes.sizeof(StorageType) == 20
assert ctypes.sizeof(OpenParameters) == 28
assert ctypes.sizeof(CreateParameters) == 128
assert ctypes.sizeof(DiskInfo) == 32

_HANDLE_OUT: Final = ctypes.POINTER(wintypes.HANDLE)
_COUNT: Final = ctypes.POINTER(wintypes.ULONG)

PROTOTYPES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "OpenVirtualDisk": (
        wintypes.DWORD,
        (
            *(ctypes.POINTER(StorageType), wintypes.LPCWSTR, ctypes.c_int, ctypes.c_int),
            *(ctypes.POINTER(OpenParameters), _HANDLE_OUT),
        ),
    ),
    "CreateVirtualDisk": (
        wintypes.DWORD,
        (
            *(ctypes.POINTER(StorageType), wintypes.LPCWSTR, ctypes.c_int, ctypes.c_void_p),
            *(ctypes.c_int, wintypes.ULONG, ctypes.POINTER(CreateParameters), ctypes.c_void_p),
            _HANDLE_OUT,
        ),
    ),
    "AttachVirtualDisk": (
        wintypes.DWORD,
        (
            *(wintypes.HANDLE, ctypes.c_void_p, ctypes.c_int, wintypes.ULONG),
            *(ctypes.POINTER(AttachParameters), ctypes.c_void_p),
        ),
    ),
    "DetachVirtualDisk": (wintypes.DWORD, (wintypes.HANDLE, ctypes.c_int, wintypes.ULONG)),
    "GetVirtualDiskInformation": (
        wintypes.DWORD,
        (wintypes.HANDLE, _COUNT, ctypes.POINTER(DiskInfo), _COUNT),
    ),
    "GetVirtualDiskPhysicalPath": (wintypes.DWORD, (wintypes.HANDLE, _COUNT, ctypes.c_void_p)),
    "MergeVirtualDisk": (
        wintypes.DWORD,
        (
            *(wintypes.HANDLE, ctypes.c_int, ctypes.POINTER(MergeParameters)),
            ctypes.c_void_p,
        ),
    ),
}
"""Result and arguments of each function of virtdisk.dll; CloseHandle is kernel32's."""

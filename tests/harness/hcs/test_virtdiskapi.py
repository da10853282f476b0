"""virtdisk.dll's structures and prototypes against mingw-w64's header."""

from __future__ import annotations

import ctypes
import enum
from ctypes import wintypes
from typing import Any
from uuid import UUID

import pytest

from harness.hcs import virtdiskapi as api
from harness.hcs.virtdiskapi import PROTOTYPES, Guid
from tests.headers import constant, layout, needs_headers, prototype, structure

HEADER = "virtdisk.h"
ENUMS = (
    *("VIRTUAL_DISK_ACCESS_MASK", "OPEN_VIRTUAL_DISK_FLAG", "CREATE_VIRTUAL_DISK_FLAG"),
    *("ATTACH_VIRTUAL_DISK_FLAG", "DETACH_VIRTUAL_DISK_FLAG", "MERGE_VIRTUAL_DISK_FLAG"),
)
ARGUMENTS: dict[str, Any] = {
    **dict.fromkeys(ENUMS, ctypes.c_int),
    "DWORD": wintypes.DWORD,
    "HANDLE": wintypes.HANDLE,
    "LPOVERLAPPED": ctypes.c_void_p,
    "PATTACH_VIRTUAL_DISK_PARAMETERS": ctypes.POINTER(api.AttachParameters),
    "PCREATE_VIRTUAL_DISK_PARAMETERS": ctypes.POINTER(api.CreateParameters),
    "PCWSTR": wintypes.LPCWSTR,
    "PGET_VIRTUAL_DISK_INFO": ctypes.POINTER(api.DiskInfo),
    "PHANDLE": ctypes.POINTER(wintypes.HANDLE),
    "PMERGE_VIRTUAL_DISK_PARAMETERS": ctypes.POINTER(api.MergeParameters),
    "POPEN_VIRTUAL_DISK_PARAMETERS": ctypes.POINTER(api.OpenParameters),
    "PSECURITY_DESCRIPTOR": ctypes.c_void_p,
    "PULONG": ctypes.POINTER(wintypes.ULONG),
    "PVIRTUAL_STORAGE_TYPE": ctypes.POINTER(api.StorageType),
    "PWSTR": ctypes.c_void_p,
    "ULONG": wintypes.ULONG,
}
FIELDS: dict[str, Any] = {
    **{
        f"{name}_VIRTUAL_DISK_{kind}": ctypes.c_uint32
        for name in ("OPEN", "CREATE", "ATTACH", "MERGE", "GET")
        for kind in ("VERSION", "FLAG", "INFO_VERSION")
    },
    "GUID": Guid,
    "PCWSTR": ctypes.c_wchar_p,
    "ULONG": ctypes.c_uint32,
    "ULONGLONG": ctypes.c_uint64,
    "VIRTUAL_STORAGE_TYPE": api.StorageType,
    "WCHAR": ctypes.c_uint16,
    "WINBOOL": ctypes.c_int32,
}


@needs_headers
@pytest.mark.parametrize("name", sorted(PROTOTYPES))
def test_prototypes_are_those_of_the_windows_header(name: str) -> None:
    result, arguments = prototype(name, HEADER)
    ours = PROTOTYPES[name]
    assert ours == (ARGUMENTS[result], tuple(ARGUMENTS[each] for each in arguments))


def _spelled(kind: type[ctypes.Structure]) -> dict[str, tuple[int, int]]:
    """The layout with the names of unions left out: theirs have none."""
    return {
        ".".join(part for part in name.split(".") if part not in ("Of", "DUMMYUNIONNAME")): place
        for name, place in layout(kind).items()
        if name not in ("Of", "DUMMYUNIONNAME")
    }


@needs_headers
@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("VIRTUAL_STORAGE_TYPE", api.StorageType),
        ("OPEN_VIRTUAL_DISK_PARAMETERS", api.OpenParameters),
        ("MERGE_VIRTUAL_DISK_PARAMETERS", api.MergeParameters),
        ("GET_VIRTUAL_DISK_INFO", api.DiskInfo),
    ],
)
def test_structures_are_laid_out_as_the_windows_header_says(
    name: str, ours: type[ctypes.Structure]
) -> None:
    theirs = _spelled(structure(name, HEADER, FIELDS))
    assert len(_spelled(ours)) > 2
    for field, place in _spelled(ours).items():
        assert theirs[field] == place, field


@needs_headers
def test_attach_parameters_are_two_numbers() -> None:
    theirs = layout(structure("ATTACH_VIRTUAL_DISK_PARAMETERS", HEADER, FIELDS))
    assert [place for name, place in theirs.items() if not name or "." not in name][:2] == [
        *(layout(api.AttachParameters)[name] for name in ("", "Version")),
    ]
    assert theirs["DUMMYUNIONNAME.Version1.Reserved"] == (4, 4)
    assert layout(api.AttachParameters)["Reserved"] == (4, 4)


@needs_headers
def test_create_parameters_have_the_member_that_the_header_lacks() -> None:
    theirs = _spelled(structure("CREATE_VIRTUAL_DISK_PARAMETERS", HEADER, FIELDS))
    ours = _spelled(api.CreateParameters)
    added = "Version2.PhysicalSectorSizeInBytes"
    shift = 0 if added in theirs else 8  # 4 for it, 4 to align the pointers behind it
    assert ours[added] == (40, 4)
    assert ours[""] == (0, theirs[""][1] + shift)
    for field, (offset, size) in ours.items():
        if field.startswith("Version2.") and field != added:
            behind = offset > 40
            assert theirs[field] == (offset - shift * behind, size), field


def test_create_parameters_are_as_long_as_go_winio_has_them() -> None:
    # CreateVirtualDiskParameters of its package vhd, by Go's alignment on amd64.
    offsets = {name: place[0] for name, place in _spelled(api.CreateParameters).items()}
    assert offsets["Version2.UniqueId"] == 8
    assert offsets["Version2.ParentPath"] == 48
    assert offsets["Version2.ParentVirtualStorageType"] == 68
    assert offsets["Version2.SourceVirtualStorageType"] == 88
    assert offsets["Version2.ResiliencyGuid"] == 108
    assert ctypes.sizeof(api.CreateParameters) == 128


@needs_headers
def test_numbers_are_those_of_the_windows_header() -> None:
    kinds: list[tuple[type[enum.IntEnum], str]] = [
        (api.DeviceId, "VIRTUAL_STORAGE_TYPE_DEVICE_"),
        (api.InfoVersion, "GET_VIRTUAL_DISK_INFO_"),
    ]
    for members, prefix in kinds:
        for member in members:
            assert member == constant(f"{prefix}{member.name}", HEADER), member
    for ours, theirs in (
        (api.ACCESS_NONE, "VIRTUAL_DISK_ACCESS_NONE"),
        (api.ACCESS_METAOPS, "VIRTUAL_DISK_ACCESS_METAOPS"),
        (api.ATTACH_READ_ONLY, "ATTACH_VIRTUAL_DISK_FLAG_READ_ONLY"),
        (api.ATTACH_NO_DRIVE_LETTER, "ATTACH_VIRTUAL_DISK_FLAG_NO_DRIVE_LETTER"),
        (api.CREATE_NONE, "CREATE_VIRTUAL_DISK_FLAG_NONE"),
        (
            api.CREATE_FULL_PHYSICAL_ALLOCATION,
            "CREATE_VIRTUAL_DISK_FLAG_FULL_PHYSICAL_ALLOCATION",
        ),
    ):
        assert ours == constant(theirs, HEADER), theirs


def test_a_guid_is_stored_as_windows_stores_it() -> None:
    value = UUID("ec984aec-a0f9-47e9-901f-71415a66345b")
    assert bytes(Guid.of(value)) == bytes.fromhex("ec4a98ecf9a0e947901f71415a66345b")
    assert Guid.of(value).uuid() == value == api.MICROSOFT

"""Windows' reading of our disks: the ctypes layer, against headers and a library of our own."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import CheckFailedError, ComputeServiceError
from harness.hcs.virtdisk import (
    PROTOTYPES,
    DiskInfo,
    InfoVersion,
    OpenParameters,
    StorageType,
    Subtype,
    VirtDisk,
    VirtualStorageType,
)
from harness.nativedisks import check_native_disks
from snapshotter.vhdx.inspect import inspect_vhdx

HEADERS = Path("/usr/share/mingw-w64/include")
_P = ctypes.c_void_p
_D = ctypes.c_uint32
_RAW = ctypes.POINTER(ctypes.c_ubyte)
Raw = ctypes.Array[Any]  # a pointer, as far as types go


class StandInVirtDisk:
    """C functions that answer by `qemu-img info`: another reader of both formats."""

    def __init__(self) -> None:
        self.open: dict[int, tuple[str, dict[str, Any]]] = {}
        self.change: Callable[[bytearray, int], None] = lambda _raw, _version: None
        signatures = {
            "OpenVirtualDisk": (_D, _RAW, ctypes.c_wchar_p, _D, _D, _RAW, ctypes.POINTER(_P)),
            "GetVirtualDiskInformation": (_D, _P, ctypes.POINTER(_D), _RAW, _P),
        }
        self._functions = {
            "OpenVirtualDisk": ctypes.CFUNCTYPE(*signatures["OpenVirtualDisk"])(self._open),
            "GetVirtualDiskInformation": ctypes.CFUNCTYPE(*signatures["GetVirtualDiskInformation"])(
                self._information
            ),
        }

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - a foreign function
        return self.__dict__["_functions"][name]

    def close_handle(self, handle: int) -> None:
        del self.open[handle]

    def _open(self, kind: Raw, path: str, access: int, flags: int, options: Raw, out: Raw) -> int:
        device = int.from_bytes(bytes(kind[:4]), "little")
        vendor = uuid.UUID(bytes_le=bytes(kind[4:20]))
        version, info_only = (
            int.from_bytes(bytes(options[at : at + 4]), "little") for at in (0, 4)
        )
        if (str(vendor), access, flags) != ("ec984aec-a0f9-47e9-901f-71415a66345b", 0, 0):
            return 87  # ERROR_INVALID_PARAMETER
        if version != 2 or not info_only or not Path(path).is_file():
            return 2
        form = {2: "vpc", 3: "vhdx"}[device]
        done = subprocess.run(
            ["qemu-img", "info", "--output=json", "-f", form, path],
            capture_output=True,
            check=False,
        )
        if done.returncode:
            return 1392  # ERROR_FILE_CORRUPT
        handle = 0x100 + len(self.open)
        self.open[handle] = (path, json.loads(done.stdout))
        out[0] = handle
        return 0

    def _information(self, handle: int, length: Raw, raw: Raw, used: int | None) -> int:
        path, info = self.open[handle]
        version = int.from_bytes(bytes(raw[:4]), "little")
        assert (length[0], used) == (32, None)
        if version == InfoVersion.SIZE:
            block = info.get("cluster-size", 0)
            answer = bytearray(info["virtual-size"].to_bytes(8, "little") + bytes(8))
            answer += block.to_bytes(4, "little") + (512).to_bytes(4, "little")
        elif version == InfoVersion.PROVIDER_SUBTYPE:
            kind = Subtype.DYNAMIC if info["format"] == "vhdx" else Subtype.FIXED
            answer = bytearray(kind.to_bytes(4, "little"))
        else:
            answer = bytearray(inspect_vhdx(path)[0].disk_id.bytes_le)
        self.change(answer, version)
        for at, byte in enumerate(answer):
            raw[8 + at] = byte
        return 0


@pytest.fixture
def library() -> StandInVirtDisk:
    return StandInVirtDisk()


@pytest.fixture
def windows(library: StandInVirtDisk) -> VirtDisk:
    return VirtDisk(library, library.close_handle)


def test_our_disks_are_what_another_reader_says(
    windows: VirtDisk, library: StandInVirtDisk, tmp_path: Path
) -> None:
    check_native_disks(tmp_path, windows.inspect)
    assert library.open == {}
    assert list(tmp_path.iterdir()) == []


def test_each_difference_is_named(
    windows: VirtDisk, library: StandInVirtDisk, tmp_path: Path
) -> None:
    def change(raw: bytearray, version: int) -> None:
        if version != InfoVersion.PROVIDER_SUBTYPE:
            raw[0] ^= 1

    library.change = change
    with pytest.raises(CheckFailedError) as caught:
        check_native_disks(tmp_path, windows.inspect)
    told = str(caught.value)
    assert "native.vhdx: size 21474836481, not 21474836480" in told
    assert "native.vhdx: identifier" in told
    assert "native.vhd: size 3145729, not 3145728" in told
    assert "subtype" not in told
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_windows_refuses_is_told_with_its_code(
    windows: VirtDisk, tmp_path: Path
) -> None:
    with pytest.raises(ComputeServiceError, match=r"OpenVirtualDisk of .*gone") as caught:
        windows.inspect(str(tmp_path / "gone.vhdx"), StorageType.VHDX)
    assert caught.value.hresult == 0x80070002
    (tmp_path / "bad.vhdx").write_bytes(b"nothing")
    with pytest.raises(ComputeServiceError) as corrupt:
        windows.inspect(str(tmp_path / "bad.vhdx"), StorageType.VHDX)
    assert corrupt.value.hresult == 0x80070570


def test_structures_have_the_layout_of_x64() -> None:
    assert (ctypes.sizeof(VirtualStorageType), ctypes.sizeof(OpenParameters)) == (20, 28)
    assert (DiskInfo.Facts.offset, ctypes.sizeof(DiskInfo)) == (8, 32)


@pytest.mark.skipif(
    not (HEADERS / "virtdisk.h").is_file(),
    reason="virtdisk.h is not installed: apt install mingw-w64-common",
)
def test_prototypes_and_numbers_are_those_of_the_windows_headers() -> None:
    text = (HEADERS / "virtdisk.h").read_text()
    types: dict[str, Any] = {
        "PVIRTUAL_STORAGE_TYPE": ctypes.POINTER(VirtualStorageType),
        "PCWSTR": ctypes.c_wchar_p,
        "VIRTUAL_DISK_ACCESS_MASK": ctypes.c_uint32,
        "OPEN_VIRTUAL_DISK_FLAG": ctypes.c_uint32,
        "POPEN_VIRTUAL_DISK_PARAMETERS": ctypes.POINTER(OpenParameters),
        "PHANDLE": ctypes.POINTER(ctypes.c_void_p),
        "HANDLE": ctypes.c_void_p,
        "PULONG": ctypes.POINTER(ctypes.c_uint32),
        "PGET_VIRTUAL_DISK_INFO": ctypes.POINTER(DiskInfo),
    }
    for name, (result, arguments) in PROTOTYPES.items():
        found = re.search(rf"DWORD WINAPI {name}\(([^)]*)\)", text)
        assert found is not None, name
        declared = tuple(types[each.split()[0]] for each in found[1].split(","))
        assert (result, arguments) == (ctypes.c_uint32, declared)
    for version in InfoVersion:
        assert re.search(rf"GET_VIRTUAL_DISK_INFO_{version.name}\s+= {int(version)}\b", text)
    for storage in StorageType:
        assert re.search(rf"VIRTUAL_STORAGE_TYPE_DEVICE_{storage.name}\s+{int(storage)}\b", text)

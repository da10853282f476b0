"""virtdisk.dll, played by QEMU: what it says of a disk file is what `qemu-img` says.

Where QEMU's driver stops (differencing disks, sectors of 4096 bytes) a second reader of VHDX
answers, which shares nothing with the product's. What neither can make (the same kinds) the
product makes: there it is the order of the calls alone that is played.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from ctypes import wintypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness.hcs.virtdisk import VirtDisk
from harness.hcs.virtdiskapi import (
    ACCESS_METAOPS,
    MICROSOFT,
    PARENT_TEXT_OFFSET,
    AttachParameters,
    CreateParameters,
    DeviceId,
    DiskInfo,
    Guid,
    InfoVersion,
    MergeParameters,
    OpenParameters,
    StorageType,
    Subtype,
)
from snapshotter.platform.winerror import FILE_NOT_FOUND, INSUFFICIENT_BUFFER
from snapshotter.vhdx import create_child, create_vhdx
from tests.fakes.foreign import ForeignLibrary
from tests.fakes.vhdxreader import PlainVhdx, copy_fixed_vhd

CORRUPT: Final = 0xC03A0005
"""What the stand-in answers for a file that its readers do not take."""


@dataclass
class _Open:
    path: Path
    facts: dict[str, Any]
    attached: Path | None = None
    can_merge: bool = False


class FakeVirtDisk:
    """One computer's virtual disks. `place` holds the devices of attached ones."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.refuse: dict[str, int] = {}
        """The code with which a function fails."""
        self.lies: dict[InfoVersion, Callable[[DiskInfo], None]] = {}
        """What is done to an answer."""
        self.parents: dict[str, Path] = {}
        """Where the parent of a file by that name is said to be."""
        self.spoil: Callable[[Path], None] = lambda device: None
        """What is done to a device when it is attached."""
        self.opens: dict[int, _Open] = {}
        self.calls: list[str] = []
        self._numbers = itertools.count(100)

    def library(self) -> VirtDisk:
        """What a program of this computer works with."""
        library = ForeignLibrary(self)
        return VirtDisk(library, library)

    def OpenVirtualDisk(  # noqa: N802
        self,
        storage: StorageType,
        path: str,
        access: int,
        flags: int,
        parameters: OpenParameters,
        handle: wintypes.HANDLE,
    ) -> int:
        assert (storage.DeviceId, storage.VendorId.uuid().int, flags) == (0, 0, 0)
        if (code := self._called("OpenVirtualDisk")) != 0:
            return code
        if not Path(path).exists():
            return FILE_NOT_FOUND
        if parameters.Version == 2:
            assert (access, parameters.Of.Version2.ReadOnly) == (0, 1)
        else:
            assert (parameters.Version, access) == (1, ACCESS_METAOPS)
        try:
            facts = _facts(Path(path))
        except (ValueError, KeyError, subprocess.CalledProcessError):
            return CORRUPT
        number = next(self._numbers)
        merging = parameters.Version == 1 and parameters.Of.Version1.RWDepth == 2
        self.opens[number] = _Open(Path(path), facts, can_merge=merging)
        handle.value = number
        return 0

    def CloseHandle(self, handle: wintypes.HANDLE) -> int:  # noqa: N802
        opened = self.opens.pop(_number(handle))
        if opened.attached is not None:  # without PERMANENT_LIFETIME it goes with its handle
            opened.attached.unlink()
        return 1

    def GetVirtualDiskInformation(  # noqa: N802
        self,
        handle: wintypes.HANDLE,
        room: wintypes.ULONG,
        info: DiskInfo,
        used: wintypes.ULONG,
    ) -> int:
        if (code := self._called("GetVirtualDiskInformation")) != 0:
            return code
        facts = self.opens[_number(handle)].facts
        what = InfoVersion(info.Version)
        used.value = ctypes.sizeof(DiskInfo)
        if what is InfoVersion.SIZE:
            info.Of.Size.VirtualSize = facts["size"]
            info.Of.Size.PhysicalSize = facts["file_size"]
            info.Of.Size.BlockSize = facts["block_size"]
            info.Of.Size.SectorSize = facts["logical"]
        elif what is InfoVersion.VIRTUAL_STORAGE_TYPE:
            info.Of.VirtualStorageType.DeviceId = facts["device"]
            info.Of.VirtualStorageType.VendorId = Guid.of(MICROSOFT)
        elif what is InfoVersion.PROVIDER_SUBTYPE:
            info.Of.ProviderSubtype = facts["subtype"]
        elif what is InfoVersion.VHD_PHYSICAL_SECTOR_SIZE:
            info.Of.VhdPhysicalSectorSize = facts["physical"]
        elif what is InfoVersion.VIRTUAL_DISK_ID:
            info.Of.VirtualDiskId = Guid.of(facts["disk_id"])
        else:
            assert what is InfoVersion.PARENT_LOCATION
            name = self.opens[_number(handle)].path.name
            text = f"{self.parents.get(name, facts['parent'])}\0\0".encode("utf-16-le")
            if room.value < PARENT_TEXT_OFFSET + len(text):
                return INSUFFICIENT_BUFFER
            info.Of.ParentLocation.ParentResolved = 1
            ctypes.memmove(ctypes.addressof(info) + PARENT_TEXT_OFFSET, text, len(text))
        if what in self.lies:
            self.lies[what](info)
        return 0

    def AttachVirtualDisk(  # noqa: N802
        self,
        handle: wintypes.HANDLE,
        security: None,
        flags: int,
        provider_flags: int,
        parameters: AttachParameters,
        overlapped: None,
    ) -> int:
        assert (security, flags, provider_flags, overlapped) == (None, 0x1 | 0x2, 0, None)
        assert parameters.Version == 1
        if (code := self._called("AttachVirtualDisk")) != 0:
            return code
        opened = self.opens[_number(handle)]
        opened.attached = self.place / f"PhysicalDrive{_number(handle)}"
        _to_raw(opened.path, opened.attached)
        self.spoil(opened.attached)
        return 0

    def DetachVirtualDisk(  # noqa: N802
        self, handle: wintypes.HANDLE, flags: int, provider_flags: int
    ) -> int:
        assert (flags, provider_flags) == (0, 0)
        if (code := self._called("DetachVirtualDisk")) != 0:
            return code
        opened = self.opens[_number(handle)]
        assert opened.attached is not None
        opened.attached.unlink()
        opened.attached = None
        return 0

    def GetVirtualDiskPhysicalPath(  # noqa: N802
        self, handle: wintypes.HANDLE, length: wintypes.ULONG, text: ctypes.Array[ctypes.c_uint16]
    ) -> int:
        if (code := self._called("GetVirtualDiskPhysicalPath")) != 0:
            return code
        attached = self.opens[_number(handle)].attached
        encoded = f"{attached}\0".encode("utf-16-le")
        assert len(encoded) <= length.value == ctypes.sizeof(text)
        ctypes.memmove(text, encoded, len(encoded))
        return 0

    def CreateVirtualDisk(  # noqa: N802
        self,
        storage: StorageType,
        path: str,
        access: int,
        security: None,
        flags: int,
        provider_flags: int,
        parameters: CreateParameters,
        overlapped: None,
        handle: wintypes.HANDLE,
    ) -> int:
        assert storage.VendorId.uuid() == MICROSOFT
        assert (access, security, provider_flags, overlapped) == (0, None, 0, None)
        assert parameters.Version == 2
        if (code := self._called("CreateVirtualDisk")) != 0:
            return code
        asked = parameters.Version2
        if asked.ParentPath is not None:
            assert asked.MaximumSize == 0
            create_child(path, asked.ParentPath)
        elif asked.SectorSizeInBytes == 4096:
            create_vhdx(path, asked.MaximumSize, logical_sector_size=4096)
        else:
            vhd = storage.DeviceId == DeviceId.VHD
            options = ["subformat=fixed"] if flags & 1 else ["subformat=dynamic"]
            options += ["force_size=on"] if vhd else [f"block_size={asked.BlockSizeInBytes}"]
            _qemu_img(
                *("create", "-q", "-f", "vpc" if vhd else "vhdx", "-o", ",".join(options)),
                *(path, str(asked.MaximumSize)),
            )
        number = next(self._numbers)
        self.opens[number] = _Open(Path(path), {})
        handle.value = number
        return 0

    def MergeVirtualDisk(  # noqa: N802
        self, handle: wintypes.HANDLE, flags: int, parameters: MergeParameters, overlapped: None
    ) -> int:
        assert (flags, overlapped) == (0, None)
        assert (parameters.Version, parameters.Of.Version1.MergeDepth) == (1, 1)
        if (code := self._called("MergeVirtualDisk")) != 0:
            return code
        opened = self.opens[_number(handle)]
        assert opened.can_merge
        parent = PlainVhdx.read(opened.path).parent
        assert parent is not None
        with tempfile.TemporaryDirectory(dir=self.place) as name:
            raw, merged = Path(name, "raw"), Path(name, "vhdx")
            _to_raw(opened.path, raw)
            self.spoil(raw)
            _qemu_img("convert", "-f", "raw", "-O", "vhdx", str(raw), str(merged))
            shutil.copyfile(merged, parent)
        return 0

    def _called(self, name: str) -> int:
        self.calls.append(name)
        return self.refuse.get(name, 0)


def _number(handle: wintypes.HANDLE) -> int:
    assert handle.value is not None
    return int(handle.value)


def _qemu_takes(found: PlainVhdx) -> bool:
    return found.parent is None and found.logical == 512


def _facts(path: Path) -> dict[str, Any]:
    file_size = path.stat().st_size
    if path.suffix == ".vhd":
        said = json.loads(_qemu_img("info", "-f", "vpc", "--output", "json", str(path)))
        return {
            "device": DeviceId.VHD,
            "subtype": Subtype.FIXED,
            "size": said["virtual-size"],
            "file_size": file_size,
            "block_size": 0,
            "logical": 512,
        }
    found = PlainVhdx.read(path)
    size, block_size = found.size, found.block_size
    if _qemu_takes(found):
        said = json.loads(_qemu_img("info", "-f", "vhdx", "--output", "json", str(path)))
        size, block_size = said["virtual-size"], said["cluster-size"]
    subtype = Subtype.FIXED if found.fixed else Subtype.DYNAMIC
    return {
        "device": DeviceId.VHDX,
        "subtype": Subtype.DIFFERENCING if found.parent else subtype,
        "size": size,
        "file_size": file_size,
        "block_size": block_size,
        "logical": found.logical,
        "physical": found.physical,
        "disk_id": found.disk_id,
        "parent": found.parent,
    }


def _to_raw(path: Path, raw: Path) -> None:
    if path.suffix == ".vhd":
        copy_fixed_vhd(path, raw)
    elif _qemu_takes(found := PlainVhdx.read(path)):
        _qemu_img("convert", "-f", "vhdx", "-O", "raw", str(path), str(raw))
    else:
        found.to_raw(raw)


def _qemu_img(*arguments: str) -> str:
    return subprocess.run(
        ["qemu-img", *arguments], capture_output=True, text=True, check=True, timeout=60
    ).stdout

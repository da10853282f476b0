"""Disk files as Windows itself opens, attaches, makes and merges them.

Every call is synchronous. A refusal is an OSError whose `winerror` is the code: virtdisk.dll
returns Win32 errors, those of the format itself from 0xC03A0001 on.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from ctypes import wintypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from uuid import UUID

from harness.errors import UsageError
from harness.hcs.virtdiskapi import (
    ACCESS_METAOPS,
    ACCESS_NONE,
    ATTACH_NO_DRIVE_LETTER,
    ATTACH_READ_ONLY,
    CREATE_FULL_PHYSICAL_ALLOCATION,
    CREATE_NONE,
    MICROSOFT,
    PARENT_TEXT_OFFSET,
    PROTOTYPES,
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
from snapshotter.platform.winerror import INSUFFICIENT_BUFFER, windows_error, winerror_of

_MOST_TEXT: Final = 1 << 17
_MOST_PATH: Final = 256


@dataclass(frozen=True, slots=True)
class NativeDisk:
    """What Windows says about a disk file; sizes in bytes.

    `device` is a `DeviceId` and `subtype` a `Subtype` where they are known ones. `block_size` says
    nothing of a fixed disk. `parent` is None where there is none, else the path that Windows found
    it at, "" where it did not. Physical sectors and the identifier are asked of a VHDX alone.
    """

    device: int
    subtype: int
    size: int
    file_size: int
    block_size: int
    sector_size: int
    physical_sector_size: int | None
    disk_id: UUID | None
    parent: str | None


class VirtDisk:
    """virtdisk.dll; `virtdisk` and `kernel32` give the functions."""

    def __init__(self, virtdisk: object, kernel32: object) -> None:
        self._functions: dict[str, Any] = {}
        for name, (result, arguments) in PROTOTYPES.items():
            function = getattr(virtdisk, name)
            function.restype = result
            function.argtypes = arguments
            self._functions[name] = function
        self._close_handle: Any = getattr(kernel32, "CloseHandle")  # noqa: B009, it is no attribute
        self._close_handle.restype = wintypes.BOOL
        self._close_handle.argtypes = (wintypes.HANDLE,)

    @classmethod
    def load(cls) -> Self:
        """Return that of this machine. Raises UsageError off Windows."""
        if sys.platform == "win32":
            return cls(ctypes.WinDLL("virtdisk"), ctypes.WinDLL("kernel32"))
        raise UsageError("virtdisk.dll is on Windows alone; run this on a Hyper-V host")

    @contextlib.contextmanager
    def opened(self, path: Path) -> Iterator[OpenNativeDisk]:
        """Open a disk file for reading; Windows finds out by itself what it is."""
        parameters = OpenParameters(Version=2)
        parameters.Of.Version2.ReadOnly = 1
        with self._open(path, ACCESS_NONE, parameters) as handle:
            yield OpenNativeDisk(self, handle, path)

    def create(
        self,
        path: Path,
        *,
        device: DeviceId = DeviceId.VHDX,
        size: int = 0,
        block_size: int = 0,
        sector_size: int = 0,
        parent: Path | None = None,
        fixed: bool = False,
    ) -> None:
        """Make a new disk file; what is 0 Windows chooses, or takes from the parent."""
        parameters = CreateParameters(Version=2)
        parameters.Version2.MaximumSize = size
        parameters.Version2.BlockSizeInBytes = block_size
        parameters.Version2.SectorSizeInBytes = sector_size
        parameters.Version2.ParentPath = None if parent is None else str(parent)
        handle = wintypes.HANDLE()
        self.call(
            "CreateVirtualDisk",
            path,
            *(ctypes.byref(StorageType(device, Guid.of(MICROSOFT))), str(path), ACCESS_NONE, None),
            *(CREATE_FULL_PHYSICAL_ALLOCATION if fixed else CREATE_NONE, 0),
            *(ctypes.byref(parameters), None, ctypes.byref(handle)),
        )
        self._close(handle)

    def merge_into_parent(self, child: Path) -> None:
        """Write what a differencing disk has of its own into its parent; the child is done then."""
        opening = OpenParameters(Version=1)
        opening.Of.Version1.RWDepth = 2  # the child and the parent
        merging = MergeParameters(Version=1)
        merging.Of.Version1.MergeDepth = 1
        with self._open(child, ACCESS_METAOPS, opening) as handle:
            self.call("MergeVirtualDisk", child, handle, 0, ctypes.byref(merging), None)

    def call(self, name: str, path: Path, *arguments: object) -> None:
        """Call a function of the DLL. Raises OSError."""
        code = int(self._functions[name](*arguments))
        if code:
            raise windows_error(code, str(path))

    @contextlib.contextmanager
    def _open(
        self, path: Path, access: int, parameters: OpenParameters
    ) -> Iterator[wintypes.HANDLE]:
        handle = wintypes.HANDLE()
        self.call(
            "OpenVirtualDisk",
            path,
            *(ctypes.byref(StorageType(DeviceId.UNKNOWN, Guid())), str(path), access, 0),
            *(ctypes.byref(parameters), ctypes.byref(handle)),
        )
        try:
            yield handle
        finally:
            self._close(handle)

    def _close(self, handle: wintypes.HANDLE) -> None:
        self._close_handle(handle)


class OpenNativeDisk:
    """A disk file that Windows has open; made by `VirtDisk.opened`."""

    def __init__(self, library: VirtDisk, handle: wintypes.HANDLE, path: Path) -> None:
        self._library = library
        self._handle = handle
        self._path = path

    def info(self) -> NativeDisk:
        """Return what Windows says about it."""
        size = self._ask(InfoVersion.SIZE)[0].Of.Size
        storage = self._ask(InfoVersion.VIRTUAL_STORAGE_TYPE)[0].Of.VirtualStorageType
        subtype = int(self._ask(InfoVersion.PROVIDER_SUBTYPE)[0].Of.ProviderSubtype)
        physical = disk_id = None
        if storage.DeviceId == DeviceId.VHDX:
            found, _ = self._ask(InfoVersion.VHD_PHYSICAL_SECTOR_SIZE)
            physical = int(found.Of.VhdPhysicalSectorSize)
            disk_id = self._ask(InfoVersion.VIRTUAL_DISK_ID)[0].Of.VirtualDiskId.uuid()
        return NativeDisk(
            device=int(storage.DeviceId),
            subtype=subtype,
            size=size.VirtualSize,
            file_size=size.PhysicalSize,
            block_size=size.BlockSize,
            sector_size=size.SectorSize,
            physical_sector_size=physical,
            disk_id=disk_id,
            parent=self._parent() if subtype == Subtype.DIFFERENCING else None,
        )

    @contextlib.contextmanager
    def attached(self) -> Iterator[str]:
        r"""Attach it to this machine, read-only and without a drive letter, for a while.

        Yields the path of its device, `\\.\PhysicalDriveN`: a text, since pathlib would add a
        backslash that Windows does not take. Needs an administrator.
        """
        parameters = AttachParameters(Version=1)
        self._library.call(
            "AttachVirtualDisk",
            self._path,
            *(self._handle, None, ATTACH_READ_ONLY | ATTACH_NO_DRIVE_LETTER, 0),
            *(ctypes.byref(parameters), None),
        )
        try:
            yield self._physical_path()
        finally:
            self._library.call("DetachVirtualDisk", self._path, self._handle, 0, 0)

    def _physical_path(self) -> str:
        text = (ctypes.c_uint16 * _MOST_PATH)()
        length = wintypes.ULONG(ctypes.sizeof(text))
        self._library.call(
            "GetVirtualDiskPhysicalPath", self._path, self._handle, ctypes.byref(length), text
        )
        return _text(bytes(text))

    def _parent(self) -> str:
        found, raw = self._ask(InfoVersion.PARENT_LOCATION)
        resolved = bool(found.Of.ParentLocation.ParentResolved)
        return _text(raw[PARENT_TEXT_OFFSET:]) if resolved else ""

    def _ask(self, what: InfoVersion) -> tuple[DiskInfo, bytes]:
        """Return an answer as the structure, and as the bytes that go on behind it."""
        room = ctypes.sizeof(DiskInfo)
        while True:
            buffer = bytearray(room)
            info = DiskInfo.from_buffer(buffer)
            info.Version = what
            size, used = wintypes.ULONG(room), wintypes.ULONG()
            try:
                self._library.call(
                    "GetVirtualDiskInformation",
                    self._path,
                    *(self._handle, ctypes.byref(size), ctypes.byref(info), ctypes.byref(used)),
                )
            except OSError as error:
                if winerror_of(error) != INSUFFICIENT_BUFFER or room > _MOST_TEXT:
                    raise
                room *= 2
            else:
                return info, bytes(buffer)


def _text(raw: bytes) -> str:
    """Return the first of the texts in a buffer of UTF-16 that ends in zeros."""
    return raw[: len(raw) // 2 * 2].decode("utf-16-le", "replace").partition("\0")[0]

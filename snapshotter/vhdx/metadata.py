"""The metadata region, [MS-VHDX] 2.6: what kind of disk the file holds."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Final, Self
from uuid import UUID

from snapshotter.errors import VhdxCorruptError, VhdxUnsupportedError
from snapshotter.units import KIB, MIB
from snapshotter.vhdx.format import MAX_DISK_SIZE, SECTOR_SIZES

TABLE_SIZE: Final = 64 * KIB
MIN_BLOCK_SIZE: Final = MIB
MAX_BLOCK_SIZE: Final = 256 * MIB

FILE_PARAMETERS: Final = UUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
VIRTUAL_DISK_SIZE: Final = UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
VIRTUAL_DISK_ID: Final = UUID("BECA12AB-B2E6-4523-93EF-C309E000C746")
LOGICAL_SECTOR_SIZE: Final = UUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
PHYSICAL_SECTOR_SIZE: Final = UUID("CDA348C7-445D-4471-9CC9-E9885251C556")
PARENT_LOCATOR: Final = UUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")

_IS_USER = 1
_IS_VIRTUAL_DISK = 2
_IS_REQUIRED = 4
_LEAVE_BLOCKS_ALLOCATED = 1
_HAS_PARENT = 2

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_FILE_PARAMETERS = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class _Item:
    name: str
    section: str
    length: int
    flags: int


# The items every disk has, in the order in which Windows writes them.
_ITEMS: Final[Mapping[UUID, _Item]] = {
    FILE_PARAMETERS: _Item("File Parameters", "2.6.2.1", 8, _IS_REQUIRED),
    VIRTUAL_DISK_SIZE: _Item("Virtual Disk Size", "2.6.2.2", 8, _IS_REQUIRED | _IS_VIRTUAL_DISK),
    VIRTUAL_DISK_ID: _Item("Virtual Disk ID", "2.6.2.3", 16, _IS_REQUIRED | _IS_VIRTUAL_DISK),
    LOGICAL_SECTOR_SIZE: _Item(
        "Logical Sector Size", "2.6.2.4", 4, _IS_REQUIRED | _IS_VIRTUAL_DISK
    ),
    PHYSICAL_SECTOR_SIZE: _Item(
        "Physical Sector Size", "2.6.2.5", 4, _IS_REQUIRED | _IS_VIRTUAL_DISK
    ),
}


@dataclass(frozen=True, slots=True)
class MetadataEntry:
    """Metadata table entry, [MS-VHDX] 2.6.1.2; `offset` counts from the start of the region."""

    LAYOUT: ClassVar = struct.Struct("<16sIIII")

    item_id: UUID
    offset: int
    length: int
    flags: int

    @property
    def is_user(self) -> bool:
        """Whether it is a user's item: system items may have the same id."""
        return bool(self.flags & _IS_USER)

    def pack(self) -> bytes:
        """Return the 32 bytes of the entry."""
        return self.LAYOUT.pack(self.item_id.bytes_le, self.offset, self.length, self.flags, 0)

    @classmethod
    def unpack(cls, raw: bytes, *, at: int) -> Self:
        """Decode 32 bytes found at file offset `at`. Raises VhdxCorruptError."""
        item_id, offset, length, flags, reserved = cls.LAYOUT.unpack(raw)
        if flags >> 3 or reserved:
            raise VhdxCorruptError(
                "metadata entry reserved bits",
                f"{flags:#x}, {reserved:#x}",
                section="2.6.1.2",
                offset=at + 24,
            )
        if length > MIB:
            raise VhdxCorruptError("metadata Length", length, section="2.6.1.2", offset=at + 20)
        if offset < TABLE_SIZE if length else offset:
            raise VhdxCorruptError("metadata Offset", offset, section="2.6.1.2", offset=at + 16)
        return cls(UUID(bytes_le=item_id), offset, length, flags)


assert MetadataEntry.LAYOUT.size == 32


@dataclass(frozen=True, slots=True)
class MetadataTable:
    """Metadata table, [MS-VHDX] 2.6.1."""

    HEADER: ClassVar = struct.Struct("<8sHH20s")
    SIGNATURE: ClassVar = b"metadata"
    MAX_ENTRIES: ClassVar = (64 * KIB - 32) // 32
    MAX_USER_ENTRIES: ClassVar = 1024

    entries: tuple[MetadataEntry, ...]

    def pack(self) -> bytes:
        """Return the used part of the table: header and entries, without the zeros behind."""
        header = self.HEADER.pack(self.SIGNATURE, 0, len(self.entries), bytes(20))
        return header + b"".join(entry.pack() for entry in self.entries)

    @classmethod
    def unpack(cls, raw: bytes, *, at: int, region_length: int) -> Self:
        """Decode the 64 KiB at the start of the region, which lies at file offset `at`.

        Raises VhdxCorruptError, VhdxUnsupportedError for a required item that is not known.
        """
        if len(raw) < TABLE_SIZE:
            raise VhdxCorruptError(
                "metadata table", "the file ends inside", section="2.6.1", offset=at
            )
        signature, reserved, count, reserved2 = cls.HEADER.unpack_from(raw)
        if signature != cls.SIGNATURE:
            raise VhdxCorruptError(
                "metadata table signature", signature, section="2.6.1.1", offset=at
            )
        if reserved or any(reserved2):
            raise VhdxCorruptError(
                "metadata table reserved bytes", "not zero", section="2.6.1.1", offset=at + 8
            )
        if count > cls.MAX_ENTRIES:
            raise VhdxCorruptError(
                "metadata table EntryCount", count, section="2.6.1.1", offset=at + 10
            )
        entries = tuple(
            MetadataEntry.unpack(raw[start : start + 32], at=at + start)
            for start in range(32, 32 + 32 * count, 32)
        )
        cls._check_entries(entries, at=at, region_length=region_length)
        return cls(entries)

    @classmethod
    def _check_entries(
        cls, entries: tuple[MetadataEntry, ...], *, at: int, region_length: int
    ) -> None:
        def corrupt(entry: MetadataEntry, value: str) -> VhdxCorruptError:
            where = at + 32 + 32 * entries.index(entry)
            return VhdxCorruptError("metadata entry", value, section="2.6.1.2", offset=where)

        seen: set[tuple[UUID, bool]] = set()
        for entry in entries:
            if (entry.item_id, entry.is_user) in seen:
                raise corrupt(entry, f"item {entry.item_id} is listed twice")
            seen.add((entry.item_id, entry.is_user))
            if entry.offset + entry.length > region_length:
                raise corrupt(entry, f"item {entry.item_id} reaches behind the region")
            known = not entry.is_user and (
                entry.item_id in _ITEMS or entry.item_id == PARENT_LOCATOR
            )
            if entry.flags & _IS_REQUIRED and not known:
                raise VhdxUnsupportedError(
                    f"metadata item {entry.item_id} is required and not known"
                )
        if sum(entry.is_user for entry in entries) > cls.MAX_USER_ENTRIES:
            raise VhdxCorruptError(
                "metadata table", "more than 1024 user items", section="2.6.1.2", offset=at
            )
        placed = sorted((entry for entry in entries if entry.length), key=lambda e: e.offset)
        for left, right in pairwise(placed):
            if left.offset + left.length > right.offset:
                raise corrupt(right, f"item {right.item_id} overlaps item {left.item_id}")

    def find(self, item_id: UUID) -> MetadataEntry | None:
        """Return the system item `item_id`, None where the table has none."""
        for entry in self.entries:
            if entry.item_id == item_id and not entry.is_user:
                return entry
        return None

    def locate(self) -> dict[UUID, tuple[int, int]]:
        """Return the (offset in the region, length) of each item that every disk must have.

        Raises VhdxCorruptError for one that is missing or has another length than it must have.
        """
        places: dict[UUID, tuple[int, int]] = {}
        for item_id, item in _ITEMS.items():
            entry = self.find(item_id)
            if entry is None:
                raise VhdxCorruptError(item.name, "missing", section=item.section, offset=None)
            if entry.length != item.length:
                raise VhdxCorruptError(
                    item.name, f"{entry.length} bytes long", section=item.section, offset=None
                )
            places[item_id] = (entry.offset, entry.length)
        return places


assert MetadataTable.HEADER.size == 32


@dataclass(frozen=True, slots=True)
class DiskParameters:
    """What the metadata items say together, [MS-VHDX] 2.6.2; sizes in bytes."""

    disk_size: int
    block_size: int
    logical_sector_size: int
    physical_sector_size: int
    disk_id: UUID
    leave_blocks_allocated: bool = False
    has_parent: bool = False

    def problem(self) -> tuple[UUID, object] | None:
        """Return the item that breaks [MS-VHDX] 2.6.2 and its value, None where all are legal."""
        block_size = self.block_size
        if block_size.bit_count() != 1 or not MIN_BLOCK_SIZE <= block_size <= MAX_BLOCK_SIZE:
            return FILE_PARAMETERS, block_size
        if self.logical_sector_size not in SECTOR_SIZES:
            return LOGICAL_SECTOR_SIZE, self.logical_sector_size
        if self.physical_sector_size not in SECTOR_SIZES:
            return PHYSICAL_SECTOR_SIZE, self.physical_sector_size
        if self.disk_size % self.logical_sector_size or not 0 <= self.disk_size <= MAX_DISK_SIZE:
            return VIRTUAL_DISK_SIZE, self.disk_size
        return None

    def pack_items(self, *, parent_locator: bytes = b"") -> tuple[MetadataTable, bytes]:
        """Return the table of the items and the bytes that follow it at offset 64 KiB.

        `parent_locator` is the packed item of a differencing disk.
        """
        flags = _LEAVE_BLOCKS_ALLOCATED if self.leave_blocks_allocated else 0
        flags |= _HAS_PARENT if self.has_parent else 0
        values = {
            FILE_PARAMETERS: _FILE_PARAMETERS.pack(self.block_size, flags),
            VIRTUAL_DISK_SIZE: _U64.pack(self.disk_size),
            VIRTUAL_DISK_ID: self.disk_id.bytes_le,
            LOGICAL_SECTOR_SIZE: _U32.pack(self.logical_sector_size),
            PHYSICAL_SECTOR_SIZE: _U32.pack(self.physical_sector_size),
        }
        entries: list[MetadataEntry] = []
        offset = TABLE_SIZE
        for item_id, item in _ITEMS.items():
            entries.append(MetadataEntry(item_id, offset, item.length, item.flags))
            offset += item.length
        if self.has_parent:
            entries.append(MetadataEntry(PARENT_LOCATOR, offset, len(parent_locator), _IS_REQUIRED))
            values[PARENT_LOCATOR] = parent_locator
        return MetadataTable(tuple(entries)), b"".join(values.values())

    @classmethod
    def from_items(cls, items: Mapping[UUID, bytes], *, places: Mapping[UUID, int]) -> Self:
        """Decode the items that `MetadataTable.locate` lists; `places` are their file offsets.

        Raises VhdxCorruptError.
        """
        block_size, flags = _FILE_PARAMETERS.unpack(items[FILE_PARAMETERS])
        if flags & ~(_LEAVE_BLOCKS_ALLOCATED | _HAS_PARENT):
            raise VhdxCorruptError(
                "File Parameters reserved bits",
                f"{flags:#x}",
                section="2.6.2.1",
                offset=places[FILE_PARAMETERS] + 4,
            )
        parameters = cls(
            disk_size=_U64.unpack(items[VIRTUAL_DISK_SIZE])[0],
            block_size=block_size,
            logical_sector_size=_U32.unpack(items[LOGICAL_SECTOR_SIZE])[0],
            physical_sector_size=_U32.unpack(items[PHYSICAL_SECTOR_SIZE])[0],
            disk_id=UUID(bytes_le=items[VIRTUAL_DISK_ID]),
            leave_blocks_allocated=bool(flags & _LEAVE_BLOCKS_ALLOCATED),
            has_parent=bool(flags & _HAS_PARENT),
        )
        problem = parameters.problem()
        if problem is not None:
            item_id, value = problem
            item = _ITEMS[item_id]
            raise VhdxCorruptError(item.name, value, section=item.section, offset=places[item_id])
        return parameters

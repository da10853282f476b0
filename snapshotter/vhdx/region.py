"""The region table, [MS-VHDX] 2.2.3: where the BAT and the metadata region lie."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Final, Self
from uuid import UUID

from snapshotter.errors import VhdxCorruptError, VhdxUnsupportedError
from snapshotter.units import KIB
from snapshotter.vhdx.format import ALIGNMENT, HEADER_SECTION_SIZE, structure_checksum

BAT_REGION: Final = UUID("2DC27766-F623-4200-9D64-115E9BFD4A08")
METADATA_REGION: Final = UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E")

_KNOWN_REGIONS = {BAT_REGION: "BAT", METADATA_REGION: "metadata"}


@dataclass(frozen=True, slots=True)
class Extent:
    """A named stretch of the file that nothing else may share."""

    name: str
    offset: int
    length: int

    @property
    def end(self) -> int:
        """File offset of the first byte behind it."""
        return self.offset + self.length


def check_disjoint(extents: Iterable[Extent]) -> None:
    """Raise VhdxCorruptError where two of `extents` overlap, [MS-VHDX] 2.2.3.2."""
    ordered = sorted(extents, key=lambda extent: extent.offset)
    for left, right in pairwise(ordered):
        if left.end > right.offset:
            raise VhdxCorruptError(
                right.name,
                f"overlaps the {left.name} at {left.offset:#x} + {left.length:#x}",
                section="2.2.3.2",
                offset=right.offset,
            )


@dataclass(frozen=True, slots=True)
class RegionEntry:
    """Region table entry, [MS-VHDX] 2.2.3.2; `offset` and `length` are multiples of 1 MiB."""

    LAYOUT: ClassVar = struct.Struct("<16sQII")

    guid: UUID
    offset: int
    length: int
    required: bool

    def pack(self) -> bytes:
        """Return the 32 bytes of the entry."""
        return self.LAYOUT.pack(self.guid.bytes_le, self.offset, self.length, int(self.required))

    @classmethod
    def unpack(cls, raw: bytes, *, at: int) -> Self:
        """Decode 32 bytes found at file offset `at`. Raises VhdxCorruptError.

        Only bit 0 of Required is looked at: QEMU leaves the field 0 in old images.
        """
        guid, offset, length, required = cls.LAYOUT.unpack(raw)
        if offset % ALIGNMENT or offset < HEADER_SECTION_SIZE or offset >= 1 << 63:
            raise VhdxCorruptError(
                "region FileOffset", f"{offset:#x}", section="2.2.3.2", offset=at + 16
            )
        if length % ALIGNMENT:
            raise VhdxCorruptError(
                "region Length", f"{length:#x}", section="2.2.3.2", offset=at + 24
            )
        return cls(UUID(bytes_le=guid), offset, length, bool(required & 1))

    @property
    def extent(self) -> Extent:
        """The stretch of the file that the region takes."""
        return Extent(
            f"{_KNOWN_REGIONS.get(self.guid, str(self.guid))} region", self.offset, self.length
        )


assert RegionEntry.LAYOUT.size == 32


@dataclass(frozen=True, slots=True)
class RegionTable:
    """Region table, [MS-VHDX] 2.2.3."""

    HEADER: ClassVar = struct.Struct("<4sIII")
    SIGNATURE: ClassVar = b"regi"
    SIZE: ClassVar = 64 * KIB
    MAX_ENTRIES: ClassVar = (64 * KIB - 16) // 32

    entries: tuple[RegionEntry, ...]

    def pack(self) -> bytes:
        """Return the 64 KiB of the table, checksum included."""
        raw = bytearray(self.SIZE)
        self.HEADER.pack_into(raw, 0, self.SIGNATURE, 0, len(self.entries), 0)
        packed = b"".join(entry.pack() for entry in self.entries)
        raw[self.HEADER.size : self.HEADER.size + len(packed)] = packed
        struct.pack_into("<I", raw, 4, structure_checksum(bytes(raw)))
        return bytes(raw)

    @property
    def used_size(self) -> int:
        """Length in bytes of the part of the table that is not zero."""
        return self.HEADER.size + len(self.entries) * RegionEntry.LAYOUT.size

    @classmethod
    def unpack(cls, raw: bytes, *, at: int) -> Self:
        """Decode 64 KiB found at file offset `at`.

        Raises VhdxCorruptError, VhdxUnsupportedError for an unknown region that is required.
        """
        if len(raw) < cls.SIZE:
            raise VhdxCorruptError(
                "region table", "the file ends inside", section="2.2.3", offset=at
            )
        signature, checksum, count, _reserved = cls.HEADER.unpack_from(raw)
        if signature != cls.SIGNATURE:
            raise VhdxCorruptError(
                "region table signature", signature, section="2.2.3.1", offset=at
            )
        if structure_checksum(raw) != checksum:
            raise VhdxCorruptError(
                "region table checksum", f"{checksum:#x}", section="2.2.3.1", offset=at + 4
            )
        if count > cls.MAX_ENTRIES:
            raise VhdxCorruptError(
                "region table EntryCount", count, section="2.2.3.1", offset=at + 8
            )
        entries: list[RegionEntry] = []
        seen: set[UUID] = set()
        for start in range(cls.HEADER.size, cls.HEADER.size + 32 * count, 32):
            entry = RegionEntry.unpack(raw[start : start + 32], at=at + start)
            if entry.guid in seen:
                raise VhdxCorruptError(
                    "region Guid",
                    f"{entry.guid} is listed twice",
                    section="2.2.3.2",
                    offset=at + start,
                )
            if entry.required and entry.guid not in _KNOWN_REGIONS:
                raise VhdxUnsupportedError(
                    f"region {entry.guid} at {at + start:#x} is required and not known"
                )
            seen.add(entry.guid)
            entries.append(entry)
        for guid, name in _KNOWN_REGIONS.items():
            if guid not in seen:
                raise VhdxCorruptError(
                    "region table", f"no {name} region", section="2.2.3.2", offset=at
                )
        check_disjoint(entry.extent for entry in entries)
        return cls(tuple(entries))

    def find(self, guid: UUID) -> RegionEntry:
        """Return the entry of a region that `unpack` made sure of. Raises VhdxCorruptError."""
        for entry in self.entries:
            if entry.guid == guid:
                return entry
        raise VhdxCorruptError("region table", f"no region {guid}", section="2.2.3.2", offset=None)

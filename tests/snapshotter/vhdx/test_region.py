from __future__ import annotations

import struct
from dataclasses import replace
from uuid import UUID

import pytest

from snapshotter.crc32c import crc32c
from snapshotter.errors import VhdxCorruptError, VhdxUnsupportedError
from snapshotter.units import KIB, MIB
from snapshotter.vhdx.region import BAT_REGION, METADATA_REGION, RegionEntry, RegionTable

AT = 192 * KIB
BAT = RegionEntry(BAT_REGION, 3 * MIB, 2 * MIB, required=True)
METADATA = RegionEntry(METADATA_REGION, 2 * MIB, MIB, required=True)
OPTIONAL = RegionEntry(UUID(int=5), 9 * MIB, MIB, required=False)


def unpack(*entries: RegionEntry) -> RegionTable:
    return RegionTable.unpack(RegionTable(entries).pack(), at=AT)


@pytest.mark.parametrize(
    "entries", [(BAT, METADATA), (METADATA, BAT), (METADATA, OPTIONAL, BAT)], ids=len
)
def test_a_packed_table_reads_back_in_any_order(entries: tuple[RegionEntry, ...]) -> None:
    table = unpack(*entries)
    assert table.entries == entries
    assert table.find(BAT_REGION) == BAT


def test_the_required_bit_may_be_missing() -> None:
    old_qemu = unpack(replace(BAT, required=False), replace(METADATA, required=False))
    assert old_qemu.find(METADATA_REGION).offset == METADATA.offset


def test_an_unknown_required_region_is_not_supported() -> None:
    with pytest.raises(VhdxUnsupportedError, match=str(OPTIONAL.guid)):
        unpack(BAT, METADATA, replace(OPTIONAL, required=True))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ((BAT,), "no metadata region"),
        ((METADATA,), "no BAT region"),
        ((BAT, METADATA, replace(BAT, offset=8 * MIB)), "listed twice"),
        ((BAT, replace(METADATA, offset=4 * MIB)), "overlaps"),
        ((BAT, METADATA, replace(OPTIONAL, offset=2 * MIB)), "overlaps"),
        ((BAT, replace(METADATA, offset=0)), "FileOffset"),
        ((BAT, replace(METADATA, offset=MIB + 4096)), "FileOffset"),
        ((BAT, replace(METADATA, offset=1 << 63)), "FileOffset"),
        ((BAT, replace(METADATA, length=4096)), "Length"),
    ],
)
def test_each_broken_entry_is_refused(entries: tuple[RegionEntry, ...], message: str) -> None:
    with pytest.raises(VhdxCorruptError, match=message) as caught:
        unpack(*entries)
    assert caught.value.section.startswith("2.2.3")


def test_a_flipped_bit_anywhere_breaks_the_checksum() -> None:
    raw = bytearray(RegionTable((BAT, METADATA)).pack())
    raw[-1] ^= 1
    with pytest.raises(VhdxCorruptError, match="checksum"):
        RegionTable.unpack(bytes(raw), at=AT)


def test_too_many_entries_are_refused_before_they_are_read() -> None:
    raw = bytearray(RegionTable((BAT, METADATA)).pack())
    struct.pack_into("<I", raw, 8, 2048)
    raw[4:8] = bytes(4)
    struct.pack_into("<I", raw, 4, crc32c(bytes(raw)))
    with pytest.raises(VhdxCorruptError, match="EntryCount") as caught:
        RegionTable.unpack(bytes(raw), at=AT)
    assert caught.value.value == 2048
    assert caught.value.offset == AT + 8


def test_a_short_table_is_refused() -> None:
    with pytest.raises(VhdxCorruptError, match="ends inside"):
        RegionTable.unpack(RegionTable((BAT, METADATA)).pack()[:-1], at=AT)

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.errors import VhdxCorruptError, VhdxUnsupportedError
from snapshotter.units import KIB, MIB, TIB
from snapshotter.vhdx.metadata import (
    FILE_PARAMETERS,
    TABLE_SIZE,
    VIRTUAL_DISK_SIZE,
    DiskParameters,
    MetadataEntry,
    MetadataTable,
)

AT = 2 * MIB
PARAMETERS = DiskParameters(
    disk_size=20 << 30,
    block_size=MIB,
    logical_sector_size=512,
    physical_sector_size=4096,
    disk_id=UUID(int=3),
)
TABLE, ITEMS = PARAMETERS.pack_items()


def unpack_table(table: MetadataTable) -> MetadataTable:
    raw = table.pack().ljust(TABLE_SIZE, b"\0")
    return MetadataTable.unpack(raw, at=AT, region_length=MIB)


def read(table: MetadataTable, items: bytes) -> DiskParameters:
    places = unpack_table(table).locate()
    return DiskParameters.from_items(
        {
            item_id: items[offset - TABLE_SIZE : offset - TABLE_SIZE + length]
            for item_id, (offset, length) in places.items()
        },
        places={item_id: AT + offset for item_id, (offset, _length) in places.items()},
    )


def changed(position: int, **fields: object) -> MetadataTable:
    entries = list(TABLE.entries)
    entries[position] = replace(entries[position], **fields)  # type: ignore[arg-type]
    return MetadataTable(tuple(entries))


def with_extra(entry: MetadataEntry) -> MetadataTable:
    return MetadataTable((*TABLE.entries, entry))


@settings(max_examples=50, deadline=None)
@given(
    sector=st.sampled_from((512, 4096)),
    physical=st.sampled_from((512, 4096)),
    sectors=st.integers(1, 64 * TIB // 4096),
    block=st.integers(20, 28).map(lambda n: 1 << n),
    disk_id=st.uuids(),
    fixed=st.booleans(),
)
def test_packed_parameters_read_back(
    sector: int, physical: int, sectors: int, block: int, disk_id: UUID, fixed: bool
) -> None:
    parameters = DiskParameters(sectors * sector, block, sector, physical, disk_id, fixed)
    assert read(*parameters.pack_items()) == parameters


def test_items_may_come_in_any_order_and_place() -> None:
    entries = [
        replace(entry, offset=entry.offset + 1000 * number)
        for number, entry in enumerate(TABLE.entries)
    ]
    items = bytearray(10_000)
    for old, new in zip(TABLE.entries, entries, strict=True):
        data = ITEMS[old.offset - TABLE_SIZE : old.offset - TABLE_SIZE + old.length]
        items[new.offset - TABLE_SIZE : new.offset - TABLE_SIZE + new.length] = data
    assert read(MetadataTable(tuple(reversed(entries))), bytes(items)) == PARAMETERS


def test_user_items_are_no_obstacle_even_under_a_system_id() -> None:
    user = MetadataEntry(FILE_PARAMETERS, 128 * KIB, 10, 1)
    assert read(with_extra(user), ITEMS) == PARAMETERS


def test_an_empty_item_is_present() -> None:
    assert read(with_extra(MetadataEntry(UUID(int=8), 0, 0, 1)), ITEMS) == PARAMETERS


@pytest.mark.parametrize("flags", [4, 5])
def test_an_unknown_required_item_is_not_supported(flags: int) -> None:
    with pytest.raises(VhdxUnsupportedError, match="required"):
        unpack_table(with_extra(MetadataEntry(UUID(int=8), 128 * KIB, 8, flags)))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (changed(0, flags=12), "reserved bits"),
        (changed(0, length=MIB + 1), "Length"),
        (changed(0, offset=TABLE_SIZE - 1), "Offset"),
        (changed(0, length=0), "Offset"),
        (changed(0, offset=MIB - 4), "behind the region"),
        (changed(1, offset=TABLE_SIZE + 4), "overlaps"),
        (with_extra(replace(TABLE.entries[2], offset=128 * KIB)), "listed twice"),
        (
            MetadataTable(
                tuple(MetadataEntry(UUID(int=n), TABLE_SIZE + n, 1, 1) for n in range(1025))
            ),
            "1024 user items",
        ),
    ],
)
def test_each_broken_entry_is_refused(table: MetadataTable, message: str) -> None:
    with pytest.raises(VhdxCorruptError, match=message) as caught:
        unpack_table(table)
    assert caught.value.section.startswith("2.6.1")


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [(0, 0xFF, "signature"), (8, 1, "reserved"), (31, 1, "reserved"), (11, 0xFF, "EntryCount")],
)
def test_a_broken_table_header_is_refused(offset: int, value: int, message: str) -> None:
    raw = bytearray(TABLE.pack().ljust(TABLE_SIZE, b"\0"))
    raw[offset] = value
    with pytest.raises(VhdxCorruptError, match=message):
        MetadataTable.unpack(bytes(raw), at=AT, region_length=MIB)


@pytest.mark.parametrize("position", range(5))
def test_each_missing_item_is_named(position: int) -> None:
    entries = TABLE.entries[:position] + TABLE.entries[position + 1 :]
    with pytest.raises(VhdxCorruptError, match="missing") as caught:
        unpack_table(MetadataTable(entries)).locate()
    assert caught.value.section == f"2.6.2.{position + 1}"


@pytest.mark.parametrize("position", range(5))
def test_each_item_of_another_length_is_named(position: int) -> None:
    table = unpack_table(changed(position, length=TABLE.entries[position].length - 1))
    with pytest.raises(VhdxCorruptError, match="bytes long"):
        table.locate()


@pytest.mark.parametrize(
    ("bad", "structure"),
    [
        (replace(PARAMETERS, block_size=3 * MIB), "File Parameters"),
        (replace(PARAMETERS, block_size=MIB // 2), "File Parameters"),
        (replace(PARAMETERS, block_size=512 * MIB), "File Parameters"),
        (replace(PARAMETERS, block_size=0), "File Parameters"),
        (replace(PARAMETERS, logical_sector_size=0), "Logical Sector Size"),
        (replace(PARAMETERS, logical_sector_size=1024), "Logical Sector Size"),
        (replace(PARAMETERS, physical_sector_size=513), "Physical Sector Size"),
        (replace(PARAMETERS, disk_size=513), "Virtual Disk Size"),
        (replace(PARAMETERS, disk_size=64 * TIB + 512), "Virtual Disk Size"),
    ],
)
def test_each_illegal_parameter_is_named_with_its_place(
    bad: DiskParameters, structure: str
) -> None:
    with pytest.raises(VhdxCorruptError) as caught:
        read(*bad.pack_items())
    assert caught.value.structure == structure
    assert caught.value.offset is not None
    assert caught.value.offset >= AT + TABLE_SIZE


def test_reserved_bits_of_the_file_parameters_are_refused() -> None:
    items = bytearray(ITEMS)
    items[4] |= 8
    with pytest.raises(VhdxCorruptError, match="File Parameters reserved bits"):
        read(TABLE, bytes(items))


def test_a_disk_with_a_parent_says_so() -> None:
    items = bytearray(ITEMS)
    items[4] |= 2
    assert read(TABLE, bytes(items)).has_parent


def test_the_size_item_lies_behind_the_file_parameters() -> None:
    places = unpack_table(TABLE).locate()
    assert places[FILE_PARAMETERS] == (TABLE_SIZE, 8)
    assert places[VIRTUAL_DISK_SIZE] == (TABLE_SIZE + 8, 8)

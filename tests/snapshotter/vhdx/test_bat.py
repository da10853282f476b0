from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.errors import VhdxCorruptError
from snapshotter.units import GIB, MIB, TIB
from snapshotter.vhdx.bat import BatBuilder, BatGeometry, PayloadState
from snapshotter.vhdx.batcheck import BatCheck
from snapshotter.vhdx.battable import BatTable
from snapshotter.vhdx.region import Extent

from .memory import MemoryFile

AT = 3 * MIB
GEOMETRY = BatGeometry(4 * GIB + 5 * MIB, MIB, 512)  # 4101 blocks: one bitmap entry inside
HEADERS = Extent("header section", 0, MIB)


def reader(
    words: dict[int, int], *, size: int = 64 * MIB, geometry: BatGeometry = GEOMETRY
) -> tuple[BatTable, MemoryFile]:
    """A table in which the entries at these indices have these values."""
    file = MemoryFile(size)
    for index, word in words.items():
        file.write_at(AT + 8 * index, struct.pack("<Q", word))
    return BatTable(file, AT, geometry), file


def check(
    table: tuple[BatTable, MemoryFile], structures: Sequence[Extent]
) -> dict[PayloadState, int]:
    bat, file = table
    return BatCheck(bat, file_size=file.size, structures=structures).require().counts


def present(mib: int) -> int:
    return mib << 20 | PayloadState.FULLY_PRESENT


@pytest.mark.parametrize(
    ("disk_size", "block_size", "sector", "ratio", "blocks", "entries"),
    [
        (MIB, MIB, 512, 4096, 1, 1),
        (4 * GIB, MIB, 512, 4096, 4096, 4096),
        (4 * GIB + 512, MIB, 512, 4096, 4097, 4098),
        (20 * GIB, MIB, 512, 4096, 20480, 20484),
        (20 * GIB, MIB, 4096, 32768, 20480, 20480),
        (64 * TIB, MIB, 512, 4096, 1 << 26, (1 << 26) + (1 << 14) - 1),
        (64 * TIB, 256 * MIB, 512, 16, 1 << 18, (1 << 18) + (1 << 14) - 1),
        (0, MIB, 512, 4096, 0, 0),
    ],
)
def test_the_geometry_follows_the_specification(
    disk_size: int, block_size: int, sector: int, ratio: int, blocks: int, entries: int
) -> None:
    geometry = BatGeometry(disk_size, block_size, sector)
    assert (geometry.chunk_ratio, geometry.payload_blocks, geometry.entries) == (
        ratio,
        blocks,
        entries,
    )


@settings(max_examples=40, deadline=None)
@given(
    block_size=st.sampled_from((MIB, 32 * MIB, 256 * MIB)),
    blocks=st.integers(1, 300_000),
    data=st.data(),
)
def test_a_built_table_reads_back(block_size: int, blocks: int, data: st.DataObject) -> None:
    geometry = BatGeometry(blocks * block_size, block_size, 512)
    builder = BatBuilder(geometry)
    numbers = st.integers(0, blocks - 1)
    first, last = sorted((data.draw(numbers), data.draw(numbers)))
    builder.set_zero(first, last + 1)
    chosen = data.draw(st.lists(numbers, max_size=8, unique=True))
    places = {block: (8 + 256 * number) * MIB for number, block in enumerate(chosen)}
    for block, place in places.items():
        builder.set_present(block, place)

    file = MemoryFile(4096 * MIB)
    for offset, raw in builder.pieces(AT):
        file.write_at(offset, raw)
    table = BatTable(file, AT, geometry)
    for block in [first, last, *chosen]:
        assert table.place(block) == places.get(block, -1)
    counts = check((table, file), [HEADERS])
    zero = last + 1 - first - sum(first <= block <= last for block in chosen)
    assert counts.get(PayloadState.ZERO, 0) == zero
    assert counts.get(PayloadState.FULLY_PRESENT, 0) == len(chosen)
    assert sum(counts.values()) == blocks


def test_the_entry_of_a_sector_bitmap_follows_each_chunk() -> None:
    table, _ = reader({4095: present(4), 4097: present(5)})
    assert [table.place(block) for block in (4094, 4095, 4096)] == [-1, 4 * MIB, 5 * MIB]


@pytest.mark.parametrize("state", [0, 1, 2, 3])
def test_blocks_without_data_read_as_zeros_whatever_their_offset(state: int) -> None:
    table = reader({0: 7 << 20 | state, 1: 7 << 20 | state})
    assert table[0].place(0) == -1
    assert check(table, [HEADERS])[PayloadState(state)] >= 2


@pytest.mark.parametrize(
    ("words", "message", "index"),
    [
        ({0: 8}, "reserved bits", 0),
        ({4099: 1 << 19}, "reserved bits", 4099),
        ({1: 4}, "state 4 of a payload block", 1),
        ({1: 5}, "state 5 of a payload block", 1),
        ({2: 4 << 20 | 7}, "state 7 of a payload block", 2),
        ({4096: 4 << 20 | 6}, "state 6 of a sector bitmap block", 4096),
        ({4096: 2}, "state 2 of a sector bitmap block", 4096),
        ({0: present(4), 9: present(4)}, "overlaps the block of entry 0", 9),
        ({5: present(0)}, "overlaps the header section", 5),
        ({5: present(3)}, "overlaps the BAT region", 5),
        ({5: present(64)}, "behind the file's end", 5),
        ({5: present((1 << 44) - 1)}, "behind the file's end", 5),
    ],
)
def test_each_broken_entry_is_refused_with_its_place(
    words: dict[int, int], message: str, index: int
) -> None:
    with pytest.raises(VhdxCorruptError, match=message) as caught:
        check(reader(words), [HEADERS, Extent("BAT region", AT, MIB)])
    assert caught.value.offset == AT + 8 * index
    assert caught.value.section == "2.5.1"


def check_large(places: Sequence[int], structure: Extent) -> None:
    geometry = BatGeometry(GIB, 4 * MIB, 512)
    table = reader({n: present(mib) for n, mib in enumerate(places)}, geometry=geometry)
    check(table, [structure])


@pytest.mark.parametrize("mib", [7, 8, 9, 10])
def test_a_block_larger_than_its_alignment_may_not_reach_into_a_structure(mib: int) -> None:
    with pytest.raises(VhdxCorruptError, match="overlaps the log"):
        check_large([mib], Extent("log", 10 * MIB, MIB))


@pytest.mark.parametrize("mib", [6, 11])
def test_a_block_may_lie_right_beside_a_structure(mib: int) -> None:
    check_large([mib], Extent("log", 10 * MIB, MIB))


def test_blocks_that_overlap_in_part_are_refused() -> None:
    with pytest.raises(VhdxCorruptError, match="overlaps the block of entry 0"):
        check_large([20, 23], HEADERS)
    check_large([20, 24], HEADERS)


def test_more_blocks_than_the_file_has_room_for_are_refused_early() -> None:
    words = {n: present(n) for n in range(4000)}
    with pytest.raises(VhdxCorruptError, match="more blocks than the file has room"):
        check(reader(words), [HEADERS])


def test_the_last_block_may_end_with_the_disk() -> None:
    geometry = BatGeometry(8 * MIB + 512, 8 * MIB, 512)
    size = 20 * MIB + 512
    table = reader({1: present(20)}, size=size, geometry=geometry)
    assert check(table, [HEADERS])[PayloadState.FULLY_PRESENT] == 1
    with pytest.raises(VhdxCorruptError, match="behind the file's end"):
        check(reader({1: present(20)}, size=size - 1, geometry=geometry), [HEADERS])
    with pytest.raises(VhdxCorruptError, match="behind the file's end"):
        check(reader({0: present(20)}, size=size, geometry=geometry), [HEADERS])

from __future__ import annotations

import struct
import time
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.errors import VhdxCorruptError, VhdxUnsupportedError
from snapshotter.units import MIB
from snapshotter.vhdx.log import (
    SECTOR,
    LogEntry,
    SectorUpdate,
    ZeroedRange,
    active_sequence,
    check_replayable,
)

from .dirtylog import GUID, Update, log_entry, place, seal

PAGE = bytes(range(256)) * 16
ONE: list[Update] = [(3 * MIB, PAGE)]


def ring_of(*entries: tuple[int, bytes], length: int = MIB) -> bytes:
    ring = bytearray(length)
    for start, entry in entries:
        place(ring, start, entry)
    return bytes(ring)


def replayed(ring: bytes) -> list[int]:
    """The sequence numbers that would be replayed."""
    entries = active_sequence(ring, log_guid=GUID, at=MIB)
    return [entry.header.sequence_number for entry in entries]


def parse(entry: bytes) -> LogEntry | None:
    return LogEntry.parse(ring_of((0, entry)), 0, log_guid=GUID)


sector_updates = st.tuples(
    st.integers(0, 2**40).map(lambda n: n * SECTOR),
    st.binary(min_size=16, max_size=16).map(lambda b: b * 256),
)
zero_updates = st.tuples(
    st.integers(0, 2**40).map(lambda n: n * SECTOR),
    st.integers(0, 2**20).map(lambda n: n * SECTOR),
)


@settings(max_examples=40, deadline=None)
@given(
    updates=st.lists(sector_updates | zero_updates, max_size=140),
    sequence=st.integers(1, 2**64 - 1),
    start=st.integers(0, MIB // SECTOR - 1).map(lambda n: n * SECTOR),
)
def test_an_entry_reads_back_wherever_the_ring_wraps(
    updates: list[Update], sequence: int, start: int
) -> None:
    ring = ring_of((start, log_entry(updates, sequence=sequence, tail=start)))
    (entry,) = active_sequence(ring, log_guid=GUID, at=MIB)
    assert entry.header.sequence_number == sequence
    assert [
        (u.offset, u.data if isinstance(u, SectorUpdate) else u.length) for u in entry.updates
    ] == updates


@pytest.mark.parametrize(("count", "sectors"), [(0, 1), (126, 1), (127, 2), (254, 2), (255, 3)])
def test_the_first_sector_holds_126_descriptors_and_others_128(count: int, sectors: int) -> None:
    entry = parse(log_entry([(0, SECTOR)] * count, sequence=1, tail=0))
    assert entry is not None
    assert entry.header.descriptor_sectors == sectors
    assert entry.updates == (ZeroedRange(0, SECTOR),) * count


def test_a_sequence_is_replayed_from_its_tail_to_its_head() -> None:
    entries = [log_entry(ONE, sequence=10 + n, tail=2 * SECTOR * max(0, n - 1)) for n in range(4)]
    ring = ring_of(*((2 * SECTOR * n, entry) for n, entry in enumerate(entries)))
    assert replayed(ring) == [12, 13]


def test_the_sequence_with_the_newest_head_wins() -> None:
    old = log_entry(ONE, sequence=5, tail=0)
    new = log_entry(ONE, sequence=9, tail=10 * SECTOR)
    assert replayed(ring_of((0, old), (10 * SECTOR, new))) == [9]
    assert replayed(ring_of((10 * SECTOR, new), (0, old))) == [9]


def test_a_torn_newest_entry_ends_the_sequence_before_it() -> None:
    first = log_entry(ONE, sequence=1, tail=0)
    torn = bytearray(log_entry(ONE, sequence=2, tail=0))
    torn[-100] ^= 1
    assert replayed(ring_of((0, first), (len(first), bytes(torn)))) == [1]


def test_a_sequence_whose_tail_is_lost_gives_way_to_an_older_complete_one() -> None:
    complete = log_entry(ONE, sequence=1, tail=0)
    incomplete = log_entry(ONE, sequence=9, tail=40 * SECTOR)
    assert replayed(ring_of((0, complete), (20 * SECTOR, incomplete))) == [1]


def test_a_log_with_entries_and_no_complete_sequence_is_corrupt() -> None:
    ring = ring_of((0, log_entry(ONE, sequence=3, tail=8 * SECTOR)))
    with pytest.raises(VhdxCorruptError, match="complete sequence") as caught:
        active_sequence(ring, log_guid=GUID, at=MIB)
    assert caught.value.section == "2.3.3"
    assert caught.value.offset == MIB


def test_a_single_torn_entry_is_corrupt() -> None:
    torn = bytearray(log_entry(ONE, sequence=3, tail=0))
    torn[5000] ^= 1
    with pytest.raises(VhdxCorruptError):
        active_sequence(ring_of((0, bytes(torn))), log_guid=GUID, at=MIB)


@pytest.mark.parametrize(
    "ring",
    [
        bytes(MIB),
        ring_of((0, log_entry(ONE, sequence=3, tail=0, guid=UUID(int=1)))),
        b"\xff" * MIB,
    ],
    ids=["zeros", "another log's entries", "noise"],
)
def test_a_log_without_an_entry_of_its_guid_is_empty(ring: bytes) -> None:
    assert active_sequence(ring, log_guid=GUID, at=MIB) == ()


def test_entries_of_an_earlier_log_are_not_replayed() -> None:
    stale = log_entry(ONE, sequence=99, tail=0, guid=UUID(int=1))
    fresh = log_entry(ONE, sequence=3, tail=20 * SECTOR)
    assert replayed(ring_of((0, stale), (20 * SECTOR, fresh))) == [3]


def test_a_gap_in_the_sequence_numbers_splits_a_run() -> None:
    first = log_entry(ONE, sequence=1, tail=0)
    third = log_entry(ONE, sequence=3, tail=2 * SECTOR)
    assert replayed(ring_of((0, first), (2 * SECTOR, third))) == [3]


def test_a_full_ring_that_bites_its_tail_is_replayed_once() -> None:
    length = 8 * SECTOR
    ring = bytearray(MIB)[:length]
    start = 6 * SECTOR
    for sequence in range(1, 5):
        entry = log_entry(ONE, sequence=sequence, tail=6 * SECTOR)
        start = place(ring, start, entry)
    assert replayed(bytes(ring)) == [1, 2, 3, 4]


def field(offset: int, layout: str, value: int) -> bytes:
    entry = bytearray(log_entry([(MIB, SECTOR), (3 * MIB, PAGE)], sequence=1 << 33, tail=0))
    struct.pack_into(layout, entry, offset, value)
    return seal(entry)


@pytest.mark.parametrize(
    "entry",
    [
        field(8, "<I", 8191),
        field(8, "<I", SECTOR),
        field(8, "<I", 2 * MIB),
        field(12, "<I", 100),
        field(12, "<I", MIB),
        field(16, "<Q", 0),
        field(16, "<Q", 1),
        field(24, "<I", 1),
        field(24, "<I", 3),
        field(24, "<I", 0xFFFF_FFFF),
        field(28, "<I", 1),
        field(32, "<I", 0),
        field(56, "<Q", 1 << 63),
        field(64, "<I", 0),
        field(68, "<I", 1),
        field(72, "<Q", 100),
        field(80, "<Q", 100),
        field(80, "<Q", (1 << 64) - SECTOR),
        field(88, "<Q", 1),
        field(96 + 16, "<Q", 100),
        field(96 + 24, "<Q", 1),
        field(SECTOR, "<I", 0),
        field(SECTOR + 4, "<I", 0),
        field(2 * SECTOR - 4, "<I", 1),
    ],
)
def test_an_entry_with_any_illegal_field_is_not_valid(entry: bytes) -> None:
    assert parse(entry) is None


def test_an_entry_with_a_wrong_checksum_is_not_valid() -> None:
    entry = bytearray(log_entry(ONE, sequence=1, tail=0))
    assert parse(bytes(entry)) is not None
    entry[1000] ^= 1  # unused space behind the descriptor
    assert parse(bytes(entry)) is None


@settings(max_examples=60, deadline=None)
@given(
    flips=st.lists(
        st.tuples(st.integers(0, 16 * SECTOR - 1), st.integers(1, 255)), min_size=1, max_size=4
    )
)
def test_no_damage_gives_anything_but_a_sequence_or_the_typed_error(
    flips: list[tuple[int, int]],
) -> None:
    ring = bytearray(16 * SECTOR)
    start = 10 * SECTOR
    for sequence in range(1, 6):
        start = place(ring, start, log_entry(ONE, sequence=sequence, tail=10 * SECTOR))
    for position, change in flips:
        ring[position] ^= change
    try:
        sequence_numbers = replayed(bytes(ring))
    except VhdxCorruptError:
        return
    assert sequence_numbers in ([], *([*range(1, head + 1)] for head in range(1, 6)))


def test_the_search_is_linear_in_a_log_full_of_headers() -> None:
    # Each header claims everything up to the end of the ring as its entry.
    count = 8 * MIB // SECTOR
    header = struct.Struct("<4sIIIQII16sQQ")
    ring = bytearray(8 * MIB)
    for number in range(count):
        length = (count - number) * SECTOR
        descriptors = (length - SECTOR) // SECTOR
        header.pack_into(
            ring, number * SECTOR, b"loge", 0, length, 0, 1, descriptors, 0, GUID.bytes_le, 0, 0
        )
    started = time.process_time()
    with pytest.raises(VhdxCorruptError):
        active_sequence(bytes(ring), log_guid=GUID, at=MIB)
    assert time.process_time() - started < 2


def test_a_dirty_log_of_no_length_is_corrupt() -> None:
    with pytest.raises(VhdxCorruptError, match="length 0"):
        check_replayable(0, at=MIB)


def test_a_dirty_log_too_large_for_memory_is_not_supported() -> None:
    with pytest.raises(VhdxUnsupportedError, match="4095 MiB"):
        check_replayable(4095 * MIB, at=MIB)

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.errors import VhdxCorruptError
from snapshotter.units import GIB, MIB, TIB
from snapshotter.vhdx.log import SECTOR, LogEntry, active_sequence
from snapshotter.vhdx.replay import ReplayedFile

from .dirtylog import GUID, Update, log_entry, place
from .memory import MemoryFile

SECTORS = 24


def sequence_of(*entries: list[Update], flushed: int = 0, last: int = 0) -> tuple[LogEntry, ...]:
    ring = bytearray(MIB)
    start = 0
    for number, updates in enumerate(entries):
        entry = log_entry(updates, sequence=1 + number, tail=0, flushed=flushed, last=last)
        start = place(ring, start, entry)
    return active_sequence(bytes(ring), log_guid=GUID, at=MIB)


def applied(content: bytes, entries: list[list[Update]]) -> bytes:
    """What a replay on disk leaves: every update in order, the file growing."""
    image = bytearray(content)
    for offset, what in (update for entry in entries for update in entry):
        data = bytes(what) if isinstance(what, int) else what
        if data:
            image.extend(bytes(max(0, offset + len(data) - len(image))))
            image[offset : offset + len(data)] = data
    return bytes(image)


offsets = st.integers(0, SECTORS - 1).map(lambda n: n * SECTOR)
sectors = st.tuples(offsets, st.integers(1, 255).map(lambda n: bytes([n]) * SECTOR))
zeros = st.tuples(offsets, st.integers(0, 8).map(lambda n: n * SECTOR))


@settings(max_examples=80, deadline=None)
@given(
    entries=st.lists(st.lists(sectors | zeros, max_size=8), min_size=1, max_size=4),
    size=st.integers(0, SECTORS * SECTOR),
    reads=st.lists(
        st.tuples(st.integers(0, 32 * SECTOR), st.integers(0, 6 * SECTOR)), min_size=1, max_size=8
    ),
)
def test_it_reads_like_a_replay_on_disk(
    entries: list[list[Update]], size: int, reads: list[tuple[int, int]]
) -> None:
    before = (b"before.." * (size // 8 + 1))[:size]
    file = MemoryFile(size)
    file.write_at(0, before)
    after = applied(before, entries)
    replayed = ReplayedFile(file, sequence_of(*entries))
    assert replayed.size == len(after)
    assert replayed.read_at(0, replayed.size) == after
    for offset, length in reads:
        assert replayed.read_at(offset, length) == after[offset : offset + length]


def test_the_file_itself_is_not_changed() -> None:
    file = MemoryFile(2 * MIB)
    replayed = ReplayedFile(file, sequence_of([(MIB, b"x" * SECTOR)]))
    assert replayed.read_at(MIB, 1) == b"x"
    assert file.read_at(0, file.size) == bytes(2 * MIB)


def test_the_file_grows_to_the_last_file_offset_and_reads_as_zeros_there() -> None:
    replayed = ReplayedFile(MemoryFile(MIB), sequence_of([], last=5 * MIB))
    assert replayed.size == 5 * MIB
    assert replayed.read_at(4 * MIB, 2 * MIB) == bytes(MIB)


def test_a_file_shorter_than_when_it_was_flushed_is_refused() -> None:
    with pytest.raises(VhdxCorruptError, match="truncated") as caught:
        ReplayedFile.check(MemoryFile(MIB), sequence_of([], flushed=2 * MIB), at=MIB)
    assert caught.value.offset == MIB + 48


def test_a_file_longer_than_when_it_was_flushed_is_fine() -> None:
    sequence = sequence_of([], flushed=MIB, last=MIB)
    assert ReplayedFile.check(MemoryFile(3 * MIB), sequence, at=MIB).size == 3 * MIB


def test_huge_zeroed_ranges_take_neither_memory_nor_time() -> None:
    entry: list[Update] = [(n * GIB, 64 * TIB) for n in range(20_000)]
    entry[10_000] = (7 * TIB, b"x" * SECTOR)
    started = time.process_time()
    replayed = ReplayedFile(MemoryFile(MIB), sequence_of(entry))
    assert replayed.read_at(7 * TIB, SECTOR) == b"x" * SECTOR
    assert replayed.read_at(7 * TIB + SECTOR, SECTOR) == bytes(SECTOR)
    assert time.process_time() - started < 3

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.units import KIB, MIB
from snapshotter.vhdx.log import SECTOR, LogEntry, active_sequence
from snapshotter.vhdx.logwriter import MAX_UPDATES, LogRing, pack_entry

from . import dirtylog
from .memory import MemoryFile

updates = st.lists(
    st.tuples(
        st.integers(0, 2**40).map(lambda n: n * SECTOR),
        st.integers(0, 255).map(lambda n: bytes(range(256)) * 15 + bytes([n]) * 256),
    ),
    max_size=5,
)


@settings(max_examples=50, deadline=None)
@given(updates=updates, sequence=st.integers(1, 2**64 - 1), tail=st.integers(0, 200))
def test_an_entry_is_what_the_specification_says(
    updates: list[tuple[int, bytes]], sequence: int, tail: int
) -> None:
    raw = pack_entry(
        updates,
        sequence_number=sequence,
        tail=tail * SECTOR,
        log_guid=dirtylog.GUID,
        file_size=77 * MIB,
    )
    assert raw == dirtylog.log_entry(
        updates, sequence=sequence, tail=tail * SECTOR, flushed=77 * MIB, last=77 * MIB
    )
    entry = LogEntry.parse(raw.ljust(MIB, b"\0"), 0, log_guid=dirtylog.GUID)
    assert entry is not None
    assert [(update.offset, getattr(update, "data", None)) for update in entry.updates] == updates


@settings(max_examples=20, deadline=None)
@given(counts=st.lists(st.sampled_from((0, 1, 5, 60, MAX_UPDATES)), min_size=1, max_size=40))
def test_the_ring_never_fills_and_its_last_entry_is_the_active_one(counts: list[int]) -> None:
    file = MemoryFile(4 * MIB)
    ring = LogRing(file, MIB, MIB, dirtylog.GUID)
    for number, count in enumerate(counts, start=1):
        page = bytes([number]) * SECTOR
        ring.append([(3 * MIB + n * SECTOR, page) for n in range(count)], file_size=4 * MIB)
        raw = file.read_at(MIB, MIB)
        (entry,) = active_sequence(raw, log_guid=dirtylog.GUID, at=MIB)
        assert entry.header.sequence_number == number
        assert len(entry.updates) == count
    assert file.read_at(0, MIB) == bytes(MIB)
    assert file.read_at(2 * MIB, 2 * MIB) == bytes(2 * MIB)


def test_an_entry_takes_at_most_half_of_the_ring() -> None:
    assert LogRing.capacity(0) == 0
    assert LogRing.capacity(16 * KIB) == 1
    for length in (MIB, 2 * MIB, 64 * MIB):
        capacity = LogRing.capacity(length)
        assert capacity == MAX_UPDATES == 126
        assert (1 + capacity) * SECTOR <= length // 2

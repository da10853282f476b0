"""A file as it will read once its log has been replayed, without changing it.

Read-only opens must replay too, [MS-VHDX] 2.3.3: the updates of the active sequence are laid over
the file in memory.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from snapshotter.blockio import BlockFile, BlockReader
from snapshotter.errors import VhdxCorruptError
from snapshotter.vhdx.log import SECTOR, LogEntry, SectorUpdate


class ReplayedFile:
    """A `BlockReader` over `file` with the entries of `sequence` applied, oldest first.

    Bytes behind the end of the file that the replay brings into being read as zeros.
    """

    def __init__(self, file: BlockReader, sequence: tuple[LogEntry, ...]) -> None:
        self._file = file
        sectors: dict[int, tuple[int, bytes]] = {}
        ranges: list[tuple[int, int, int]] = []
        size = file.size
        updates = (update for entry in sequence for update in entry.updates)
        for order, update in enumerate(updates):
            if isinstance(update, SectorUpdate):
                sectors[update.offset] = (order, update.data)
                size = max(size, update.offset + SECTOR)
            elif update.length:
                ranges.append((update.offset, update.offset + update.length, order))
                size = max(size, update.offset + update.length)
        if sequence:
            size = max(size, sequence[-1].header.last_file_offset)
        self._size = size

        # `_zeros` are disjoint and ascending, each with the order of its last update; a sector
        # stays only where no later update zeroed it, so that sectors always win over zeros.
        self._zeros = _flatten(ranges)
        self._zero_starts = [start for start, _end, _order in self._zeros]
        self._sectors = {
            offset: data
            for offset, (order, data) in sectors.items()
            if order > self._zeroed_at(offset)
        }
        self._sector_offsets = sorted(self._sectors)

    @classmethod
    def check(cls, file: BlockReader, sequence: tuple[LogEntry, ...], *, at: int) -> ReplayedFile:
        """Return the replayed file.

        Raises VhdxCorruptError where the file is shorter than the head entry says it was when it
        was flushed: it was cut off, and what is missing cannot be replayed.
        """
        if sequence and file.size < sequence[-1].header.flushed_file_offset:
            raise VhdxCorruptError(
                "file size",
                f"{file.size} bytes, the log knows of {sequence[-1].header.flushed_file_offset}:"
                " the file was truncated",
                section="2.3.3",
                offset=at + sequence[-1].start + 48,
            )
        return cls(file, sequence)

    @property
    def size(self) -> int:
        """Length in bytes, what the replay appends included."""
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; fewer only where the end is reached."""
        length = max(0, min(length, self._size - offset))
        raw = self._file.read_at(offset, length)
        end = offset + length
        first_zero = max(0, bisect_right(self._zero_starts, offset) - 1)
        last_zero = bisect_left(self._zero_starts, end)
        first_sector = bisect_right(self._sector_offsets, offset - SECTOR)
        last_sector = bisect_left(self._sector_offsets, end)
        if len(raw) == length and first_zero == last_zero and first_sector == last_sector:
            return raw
        merged = bytearray(raw.ljust(length, b"\0"))
        for start, stop, _order in self._zeros[first_zero:last_zero]:
            low, high = max(start, offset), min(stop, end)
            if low < high:
                merged[low - offset : high - offset] = bytes(high - low)
        for start in self._sector_offsets[first_sector:last_sector]:
            low, high = max(start, offset), min(start + SECTOR, end)
            merged[low - offset : high - offset] = self._sectors[start][low - start : high - start]
        return bytes(merged)

    def apply(self, file: BlockFile) -> None:
        """Make `file`, the one this was made from, read like this; the caller flushes it.

        Zeros are written only where the file is already: what grows it is zeros anyway, so that
        the work is bounded by the length of the file whatever a log asks for.
        """
        size = file.size
        if size < self._size:
            file.truncate(self._size)
        for start, end, _order in self._zeros:
            if start < min(end, size):
                file.write_zeros(start, min(end, size) - start)
        for offset in self._sector_offsets:
            file.write_at(offset, self._sectors[offset])

    def _zeroed_at(self, offset: int) -> int:
        index = bisect_right(self._zero_starts, offset) - 1
        if index < 0 or self._zeros[index][1] <= offset:
            return -1
        return self._zeros[index][2]


def _flatten(ranges: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Return (start, end, order) ranges, disjoint and ascending, the greatest order on top.

    One sweep over the bounds with a heap: a hostile log can hold many thousand large ranges.
    """
    pending = sorted(ranges)
    bounds = sorted({bound for start, end, _order in pending for bound in (start, end)})
    flat: list[tuple[int, int, int]] = []
    active: list[tuple[int, int]] = []
    taken = 0
    for position, bound in enumerate(bounds):
        while taken < len(pending) and pending[taken][0] == bound:
            _start, end, order = pending[taken]
            heapq.heappush(active, (-order, end))
            taken += 1
        while active and active[0][1] <= bound:
            heapq.heappop(active)
        if active:
            flat.append((bound, bounds[position + 1], -active[0][0]))
    return flat

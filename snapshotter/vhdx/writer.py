"""Changing the disk in a VHDX file: payload blocks, their table and their sector bitmaps.

A block that gets its first data is placed where nothing on disk refers to: the file is extended
or a gap zeroed, the payload written, and only the flush that follows logs the table. Room that
was freed is used again once the table that freed it is on disk. One operation on one block is
never split over two log entries.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from snapshotter.blockio import BlockFile, BlockReader
from snapshotter.units import MIB
from snapshotter.vhdx.bat import PayloadState
from snapshotter.vhdx.battable import BatTable
from snapshotter.vhdx.pages import MetadataPages
from snapshotter.vhdx.sectorbitmap import SectorBitmaps
from snapshotter.vhdx.session import WriteSession
from snapshotter.vhdx.space import FileSpace
from snapshotter.vhdx.structures import Structures

# What one operation changes at most: 16 sectors of bitmap (256 MiB in sectors of 512 bytes), two
# of the table.
_MOST_SECTORS: Final = 18
# To us all zeros, to other readers perhaps what the block was, [MS-VHDX] 2.5.1.1.
_UNCLEAR: Final = (PayloadState.UNDEFINED, PayloadState.UNMAPPED)
_BITMAP_SIZE: Final = MIB
_ZEROS: Final = bytes(MIB)


class VhdxWriter:
    """Writes to the disk whose table is `table`; `disk` is how it reads, parent included."""

    def __init__(
        self,
        file: BlockFile,
        found: Structures,
        table: BatTable,
        bitmaps: SectorBitmaps,
        pages: MetadataPages,
        *,
        space: FileSpace,
        session: WriteSession,
        disk: BlockReader,
    ) -> None:
        self._file = file
        self._parameters = found.parameters
        self._block_size = found.parameters.block_size
        self._sector = found.parameters.logical_sector_size
        self._geometry = found.geometry
        self._table = table
        self._bitmaps = bitmaps
        self._pages = pages
        self._space = space
        self._session = session
        self._disk = disk
        self._freed: list[tuple[int, int]] = []

    def announce(self, data_write_guid: UUID) -> None:
        """Make the file's headers say that its data changes, before the first change."""
        self._session.begin(data_write_guid=data_write_guid)

    def write(self, offset: int, data: memoryview) -> None:
        """Write `data`, all of it on the disk, at `offset`."""
        if data:
            self._session.begin()
        while data:
            block, within = divmod(offset, self._block_size)
            count = min(len(data), self._block_size - within)
            with self._session.guard():
                self._write_block(block, within, data[:count])
            offset, data = offset + count, data[count:]

    def trim(self, offset: int, length: int) -> None:
        """Make a stretch of the disk read as zeros, and give whole blocks back to the file."""
        if not length:
            return
        end = offset + length
        zero = [PayloadState.ZERO]
        if not self._parameters.has_parent:
            zero.append(PayloadState.NOT_PRESENT)
        first, last = offset // self._block_size, (end - 1) // self._block_size
        for block in self._table.find(first, last + 1, but=zero):
            self._session.begin()
            start = block * self._block_size
            low, high = max(offset, start), min(end, start + self._used_size(block))
            state, _ = self._table.entry(self._geometry.index(block))
            with self._session.guard():
                if state in _UNCLEAR and self._parameters.leave_blocks_allocated:
                    self._zero_part(block, low - start, high - low)
                elif state in _UNCLEAR or high - low == self._used_size(block):
                    self._trim_block(block)
                else:
                    self._zero_part(block, low - start, high - low)

    def flush(self) -> None:
        """Make everything written so far durable."""
        self._session.commit(self._pages.changes())
        self._pages.settled()
        with self._session.guard():
            for offset, length in self._freed:
                self._file.write_zeros(offset, min(length, max(0, self._file.size - offset)))
                self._space.release(offset, length)
        self._freed.clear()

    def close(self) -> None:
        """Commit, leave the file without a log to replay, and cut off what is unused at its end."""
        self.flush()
        if self._session.close() and self._space.used_end() < self._file.size:
            self._file.truncate(self._space.used_end())
            self._file.flush()

    def _make_room(self) -> None:
        """Commit where the next operation might not fit the same log entry."""
        if self._pages.changed_sectors + _MOST_SECTORS > self._session.capacity:
            self.flush()

    def _write_block(self, block: int, within: int, data: memoryview) -> None:
        place = self._table.place(block)
        if place >= 0:
            self._file.write_at(place + within, data)
            return
        self._make_room()
        index = self._geometry.index(block)
        state, place = self._table.entry(index)
        partial = state == PayloadState.PARTIALLY_PRESENT
        fresh_child = state == PayloadState.NOT_PRESENT and self._parameters.has_parent
        whole = len(data) == self._used_size(block)
        if (partial or fresh_child) and not whole:
            self._write_sectors(block, within, data, place=place if partial else None)
            return
        if not partial:
            place = self._place_new(self._block_size, covered=len(data) == self._block_size)
        self._file.write_at(place + within, data)
        self._table.set_entry(index, PayloadState.FULLY_PRESENT, place)

    def _write_sectors(
        self, block: int, within: int, data: memoryview, *, place: int | None
    ) -> None:
        """Write to a block of which other sectors stay the parent's; `place` None: a new one."""
        start = block * self._block_size
        low = within // self._sector * self._sector
        high = -(-(within + len(data)) // self._sector) * self._sector
        head = self._disk.read_at(start + low, within - low)
        tail = self._disk.read_at(start + within + len(data), high - within - len(data))
        index = self._geometry.index(block)
        if place is None:
            self._require_bitmap(block)
            place = self._place_new(self._block_size)
            self._bitmaps.clear(block)
        self._file.write_at(place + low, b"".join((head, data, tail)))
        whole = self._bitmaps.set(block, low, high - low)
        state = PayloadState.FULLY_PRESENT if whole else PayloadState.PARTIALLY_PRESENT
        self._table.set_entry(index, state, place)

    def _require_bitmap(self, block: int) -> None:
        index = self._geometry.bitmap_index(block)
        state, _ = self._table.entry(index)
        if state != PayloadState.FULLY_PRESENT:
            place = self._place_new(_BITMAP_SIZE)
            self._pages.forget(place, _BITMAP_SIZE)
            self._table.set_entry(index, PayloadState.FULLY_PRESENT, place)

    def _trim_block(self, block: int) -> None:
        index = self._geometry.index(block)
        state, place = self._table.entry(index)
        if self._parameters.leave_blocks_allocated and state == PayloadState.FULLY_PRESENT:
            self._zero_file(place, self._used_size(block))
            return
        self._make_room()
        # ZERO and not UNMAPPED: what was trimmed reads as zeros with every reader.
        self._table.set_entry(index, PayloadState.ZERO)
        if state in (PayloadState.FULLY_PRESENT, PayloadState.PARTIALLY_PRESENT):
            self._freed.append((place, self._block_size))

    def _zero_part(self, block: int, within: int, count: int) -> None:
        place = self._table.place(block)
        if place >= 0:
            self._zero_file(place + within, count)
            return
        for start in range(within, within + count, MIB):
            part = memoryview(_ZEROS)[: min(MIB, within + count - start)]
            self._write_block(block, start, part)

    def _place_new(self, length: int, *, covered: bool = False) -> int:
        """Return the file offset of room that reads as zeros, unless it is `covered` by data."""
        size = self._file.size
        offset = self._space.take(length)
        if offset < size and not covered:
            self._file.write_zeros(offset, min(length, size - offset))
        if offset + length > size:
            self._file.truncate(offset + length)
        return offset

    def _zero_file(self, offset: int, length: int) -> None:
        self._file.write_zeros(offset, min(length, max(0, self._file.size - offset)))

    def _used_size(self, block: int) -> int:
        """Return how many bytes of a block are on the disk."""
        return min(self._block_size, self._geometry.disk_size - block * self._block_size)

"""Sector bitmap blocks, [MS-VHDX] 2.5.2: which sectors of a child's block are its own.

A bitmap block of 1 MiB covers a chunk: one bit per logical sector, lowest bit first, 1 where the
sector is in the child's payload block, 0 where it is the parent's.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from snapshotter.errors import VhdxCorruptError
from snapshotter.vhdx.bat import ENTRY_SIZE, PayloadState
from snapshotter.vhdx.battable import BatTable
from snapshotter.vhdx.pages import MetadataPages


class SectorBitmaps:
    """The bitmaps of the disk whose table is `table`, read and changed through `pages`."""

    def __init__(self, table: BatTable, pages: MetadataPages) -> None:
        self._table = table
        self._pages = pages
        self._geometry = table.geometry
        self._sector = table.geometry.logical_sector_size
        self._bytes_per_block = table.geometry.block_size // self._sector // 8

    def runs(self, block: int, within: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (offset in the block, length, whether it is the child's own), in order.

        They cover `length` bytes from `within`. Raises VhdxCorruptError where the chunk has no
        bitmap block.
        """
        first, end = within // self._sector, -(-(within + length) // self._sector)
        first_byte, end_byte = first // 8, -(-end // 8)
        raw = self._pages.read(self._place(block) + first_byte, end_byte - first_byte)
        bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8), bitorder="little")
        bits = bits[first - first_byte * 8 : end - first_byte * 8]
        edges = np.flatnonzero(np.diff(bits)) + 1
        starts = [0, *edges.tolist()]
        for start, stop in zip(starts, [*starts[1:], len(bits)], strict=True):
            low = max(within, (first + start) * self._sector)
            high = min(within + length, (first + stop) * self._sector)
            yield low, high - low, bool(bits[start])

    def clear(self, block: int) -> None:
        """Make every sector of a block the parent's."""
        self._pages.write(self._place(block), bytes(self._bytes_per_block))

    def set(self, block: int, within: int, length: int) -> bool:
        """Make sectors of a block the child's own; say whether it owns the whole block now.

        `within` and `length` are multiples of the sector size.
        """
        place = self._place(block)
        first, end = within // self._sector, (within + length) // self._sector
        first_byte, end_byte = first // 8, -(-end // 8)
        raw = self._pages.read(place + first_byte, end_byte - first_byte)
        bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8), bitorder="little")
        bits[first - first_byte * 8 : end - first_byte * 8] = 1
        changed = np.packbits(bits, bitorder="little").tobytes()
        if changed != raw:
            self._pages.write(place + first_byte, changed)
        whole = self._pages.read(place, self._bytes_per_block)
        return whole == b"\xff" * self._bytes_per_block

    def _place(self, block: int) -> int:
        """Return the file offset of the first byte of a block's bits."""
        index = self._geometry.bitmap_index(block)
        state, place = self._table.entry(index)
        if state != PayloadState.FULLY_PRESENT:
            raise VhdxCorruptError(
                f"BAT entry {index}",
                f"state {state} of the sector bitmap block of a partially present block",
                section="2.5.1.2",
                offset=self._table.offset + index * ENTRY_SIZE,
            )
        return place + block % self._geometry.chunk_ratio * self._bytes_per_block

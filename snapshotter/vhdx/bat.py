"""The block allocation table, [MS-VHDX] 2.5: where each payload block lies.

An entry for a sector bitmap block follows the entries of every chunk (`chunk_ratio` payload
blocks). Tables reach 512 MiB (64 TiB in blocks of 1 MiB), hence a table
that loads pages on demand (`battable`) and a builder that stores only the pages in use.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from snapshotter.units import KIB

ENTRY_SIZE: Final = 8

_ENTRY = struct.Struct("<Q")
_SECTORS_PER_CHUNK = 1 << 23

_PAGE_SIZE = 64 * KIB
_PAGE_ENTRIES = _PAGE_SIZE // ENTRY_SIZE


class PayloadState(enum.IntEnum):
    """Payload block states, [MS-VHDX] 2.5.1.1; 4 and 5 are reserved."""

    NOT_PRESENT = 0
    UNDEFINED = 1
    ZERO = 2
    UNMAPPED = 3
    FULLY_PRESENT = 6
    PARTIALLY_PRESENT = 7


@dataclass(frozen=True, slots=True)
class BatGeometry:
    """How a table is laid out, [MS-VHDX] 2.5."""

    disk_size: int
    block_size: int
    logical_sector_size: int
    has_parent: bool = False

    @property
    def chunk_ratio(self) -> int:
        """Payload blocks per sector bitmap block."""
        return _SECTORS_PER_CHUNK * self.logical_sector_size // self.block_size

    @property
    def payload_blocks(self) -> int:
        """Payload blocks of the disk; the last one may be larger than what is left."""
        return -(-self.disk_size // self.block_size)

    @property
    def entries(self) -> int:
        """Entries of the table.

        The last one is that of the last payload block; where sector bitmaps are in use, that of
        the last chunk's bitmap.
        """
        blocks = self.payload_blocks
        if self.has_parent:
            return -(-blocks // self.chunk_ratio) * (self.chunk_ratio + 1)
        return blocks + (blocks - 1) // self.chunk_ratio if blocks else 0

    def index(self, block: int) -> int:
        """Return the index of a payload block's entry."""
        return block + block // self.chunk_ratio

    def blocks_before(self, index: int) -> int:
        """Return how many payload blocks have their entry before the one at `index`.

        Entries behind the disk's end, which fill the last chunk of a differencing disk, are none.
        """
        return min(index - index // (self.chunk_ratio + 1), self.payload_blocks)

    def bitmap_index(self, block: int) -> int:
        """Return the index of the entry of the sector bitmap that covers a payload block."""
        ratio = self.chunk_ratio
        return block // ratio * (ratio + 1) + ratio


class BatBuilder:
    """A table under construction; what is not set stays NOT_PRESENT."""

    def __init__(self, geometry: BatGeometry) -> None:
        self._geometry = geometry
        self._pages: dict[int, bytearray] = {}

    def set_present(self, block: int, file_offset: int) -> None:
        """Place a payload block at `file_offset`, a multiple of 1 MiB."""
        self._fill(self._geometry.index(block), 1, PayloadState.FULLY_PRESENT | file_offset)

    def set_run(self, first_block: int, count: int, file_offset: int) -> None:
        """Place `count` payload blocks one behind the other from `file_offset`."""
        ratio, block_size = self._geometry.chunk_ratio, self._geometry.block_size
        while count:
            number, within = divmod(self._geometry.index(first_block), _PAGE_ENTRIES)
            to_bitmap = ratio - first_block % ratio
            fits = min(count, to_bitmap, _PAGE_ENTRIES - within)
            places = np.arange(fits, dtype=np.uint64) * np.uint64(block_size)
            words = (places + np.uint64(file_offset)) | np.uint64(PayloadState.FULLY_PRESENT)
            self._put(number, within, words.astype("<u8").tobytes())
            first_block, count = first_block + fits, count - fits
            file_offset += fits * block_size

    def set_zero(self, first_block: int, end_block: int) -> None:
        """Make the payload blocks from `first_block` to before `end_block` read as zeros."""
        ratio = self._geometry.chunk_ratio
        while first_block < end_block:
            count = min(end_block, (first_block // ratio + 1) * ratio) - first_block
            self._fill(self._geometry.index(first_block), count, PayloadState.ZERO)
            first_block += count

    def pieces(self, at: int) -> Iterator[tuple[int, bytes]]:
        """Yield (file offset, bytes) of the pages in use, for a table at file offset `at`."""
        for number in sorted(self._pages):
            yield at + number * _PAGE_SIZE, bytes(self._pages[number])

    def _fill(self, index: int, count: int, word: int) -> None:
        while count:
            number, within = divmod(index, _PAGE_ENTRIES)
            fits = min(count, _PAGE_ENTRIES - within)
            self._put(number, within, _ENTRY.pack(word) * fits)
            index += fits
            count -= fits

    def _put(self, number: int, within: int, words: bytes) -> None:
        """Write `words` over a page from entry `within` on; a page ends with its last one."""
        page = self._pages.setdefault(number, bytearray())
        start = within * ENTRY_SIZE
        if len(page) < start:
            page += bytes(start - len(page))
        page[start : start + len(words)] = words

"""The block allocation table of an open file, [MS-VHDX] 2.5."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from snapshotter.blockio import BlockReader
from snapshotter.errors import VhdxCorruptError
from snapshotter.units import MIB
from snapshotter.vhdx.bat import ENTRY_SIZE, BatGeometry, PayloadState
from snapshotter.vhdx.pages import PAGE_SIZE, MetadataPages

STATE_MASK: Final = 0x7
OFFSET_SHIFT: Final = 20

_ENTRY = struct.Struct("<Q")
_PAGE_ENTRIES = PAGE_SIZE // ENTRY_SIZE
_SCAN_SIZE = MIB
_PAGE_SHIFT = _PAGE_ENTRIES.bit_length() - 1
_WITHIN_PAGE = _PAGE_ENTRIES - 1
_UNPACK = _ENTRY.unpack_from
_FULLY_PRESENT = int(PayloadState.FULLY_PRESENT)  # comparing plain integers is faster
assert 1 << _PAGE_SHIFT == _PAGE_ENTRIES

Words = npt.NDArray[np.uint64]


class BatTable:
    """The table at `offset` of `file`; changes go to `pages` and from there to the log."""

    def __init__(
        self,
        file: BlockReader,
        offset: int,
        geometry: BatGeometry,
        *,
        pages: MetadataPages | None = None,
    ) -> None:
        self._file = file
        self.offset = offset
        self.geometry = geometry
        self._pages = pages or MetadataPages(file)
        self._cached = self._pages.pages
        self._chunk_ratio = geometry.chunk_ratio
        self._first_page = offset // PAGE_SIZE

    def place(self, block: int) -> int:
        """Return the file offset of a payload block, -1 where it is not FULLY_PRESENT.

        In a disk without a parent those read as zeros: NOT_PRESENT, UNDEFINED and UNMAPPED may
        read as anything, zeros it is, as from every other reader.
        """
        index = block + block // self._chunk_ratio
        number = self._first_page + (index >> _PAGE_SHIFT)
        page = self._cached.get(number)
        if page is None:
            page = self._pages.load(number)
        (word,) = _UNPACK(page, (index & _WITHIN_PAGE) << 3)
        if word & STATE_MASK != _FULLY_PRESENT:
            return -1
        place: int = word >> OFFSET_SHIFT << OFFSET_SHIFT
        return place

    def entry(self, index: int) -> tuple[int, int]:
        """Return the (state, file offset) of the entry at `index`."""
        raw = self._pages.read(self.offset + index * ENTRY_SIZE, ENTRY_SIZE)
        word: int = _ENTRY.unpack(raw)[0]
        return word & STATE_MASK, word >> OFFSET_SHIFT << OFFSET_SHIFT

    def set_entry(self, index: int, state: int, file_offset: int = 0) -> None:
        """Change the entry at `index`; `file_offset` is a multiple of 1 MiB."""
        self._pages.write(self.offset + index * ENTRY_SIZE, _ENTRY.pack(file_offset | state))

    def find(self, first: int, end: int, *, but: Collection[int]) -> Iterator[int]:
        """Yield the payload blocks from `first` to before `end` in other states than `but`.

        The table may be changed meanwhile, at the block just yielded.
        """
        skipped = np.array(sorted(but), dtype=np.uint64)
        while first < end:
            count = min(end - first, self._chunk_ratio - first % self._chunk_ratio, _PAGE_ENTRIES)
            at = self.offset + self.geometry.index(first) * ENTRY_SIZE
            raw = self._pages.lay_over(at, self._file.read_at(at, count * ENTRY_SIZE))
            states = np.frombuffer(raw, dtype="<u8") & np.uint64(STATE_MASK)
            yield from (np.flatnonzero(~np.isin(states, skipped)) + first).tolist()
            first += count

    def scan(self) -> Iterator[tuple[int, Words]]:
        """Yield (index of the first entry, entries) over the whole table, 1 MiB at a time."""
        total = self.geometry.entries
        for first in range(0, total, _SCAN_SIZE // ENTRY_SIZE):
            length = min(_SCAN_SIZE, (total - first) * ENTRY_SIZE)
            at = self.offset + first * ENTRY_SIZE
            raw = self._file.read_at(at, length)
            if len(raw) < length:
                raise VhdxCorruptError("BAT", "the file ends inside", section="2.5", offset=at)
            yield first, np.frombuffer(self._pages.lay_over(at, raw), dtype="<u8")

    def payload_words(self) -> Iterator[tuple[int, Words]]:
        """Yield (first payload block, their entries) over the whole disk, bitmaps left out."""
        for first, words in self.scan():
            block = self.geometry.blocks_before(first)
            count = self.geometry.blocks_before(first + len(words)) - block
            if not count:
                return
            sparse = not words.any()  # most of a large table: no need to tell bitmaps apart
            yield block, (words if sparse else words[~self.is_bitmap(first, len(words))])[:count]

    def is_bitmap(self, first: int, count: int) -> npt.NDArray[np.bool_]:
        """Return which of the `count` entries from `first` are those of sector bitmap blocks."""
        ratio = self._chunk_ratio
        indices = np.arange(first, first + count, dtype=np.int64)
        is_bitmap: npt.NDArray[np.bool_] = indices % (ratio + 1) == ratio
        return is_bitmap

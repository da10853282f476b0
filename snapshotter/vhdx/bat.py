"""The block allocation table, [MS-VHDX] 2.5: where each payload block lies.

An entry for a sector bitmap block follows the entries of every chunk (`chunk_ratio` payload
blocks). Tables reach 512 MiB (64 TiB in blocks of 1 MiB), hence a reader that loads pages on
demand and a builder that stores only the pages in use.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from snapshotter.blockio import BlockReader
from snapshotter.errors import VhdxCorruptError
from snapshotter.units import KIB, MIB
from snapshotter.vhdx.region import Extent

ENTRY_SIZE: Final = 8

_ENTRY = struct.Struct("<Q")
_SECTORS_PER_CHUNK = 1 << 23
_STATE_MASK = 0x7
_RESERVED_MASK = 0xF_FFF8
_OFFSET_SHIFT = 20

_PAGE_SIZE = 64 * KIB
_PAGE_ENTRIES = _PAGE_SIZE // ENTRY_SIZE
_CACHED_PAGES = 1024
_SCAN_SIZE = MIB

Words = npt.NDArray[np.uint64]


class PayloadState(enum.IntEnum):
    """Payload block states, [MS-VHDX] 2.5.1.1; 4 and 5 are reserved."""

    NOT_PRESENT = 0
    UNDEFINED = 1
    ZERO = 2
    UNMAPPED = 3
    FULLY_PRESENT = 6
    PARTIALLY_PRESENT = 7


_FULLY_PRESENT: Final = int(PayloadState.FULLY_PRESENT)  # comparing plain integers is faster
_LEGAL_STATES = np.zeros(8, dtype=bool)
_LEGAL_STATES[[0, 1, 2, 3, 6]] = True  # PARTIALLY_PRESENT is for differencing disks


@dataclass(frozen=True, slots=True)
class BatGeometry:
    """How the table of a disk without a parent is laid out, [MS-VHDX] 2.5."""

    disk_size: int
    block_size: int
    logical_sector_size: int

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
        """Entries of the table: the last one is that of the last payload block."""
        blocks = self.payload_blocks
        return blocks + (blocks - 1) // self.chunk_ratio if blocks else 0

    def index(self, block: int) -> int:
        """Return the index of a payload block's entry."""
        return block + block // self.chunk_ratio


class BatBuilder:
    """A table under construction; what is not set stays NOT_PRESENT."""

    def __init__(self, geometry: BatGeometry) -> None:
        self._geometry = geometry
        self._pages: dict[int, bytearray] = {}

    def set_present(self, block: int, file_offset: int) -> None:
        """Place a payload block at `file_offset`, a multiple of 1 MiB."""
        self._fill(self._geometry.index(block), 1, PayloadState.FULLY_PRESENT | file_offset)

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
            yield at + number * _PAGE_SIZE, bytes(self._pages[number].rstrip(b"\0"))

    def _fill(self, index: int, count: int, word: int) -> None:
        while count:
            number, within = divmod(index, _PAGE_ENTRIES)
            page = self._pages.get(number)
            if page is None:
                page = self._pages[number] = bytearray(_PAGE_SIZE)
            fits = min(count, _PAGE_ENTRIES - within)
            start = within * ENTRY_SIZE
            page[start : start + fits * ENTRY_SIZE] = _ENTRY.pack(word) * fits
            index += fits
            count -= fits


class BatReader:
    """The table of an existing file, at `offset` in it."""

    def __init__(self, file: BlockReader, offset: int, geometry: BatGeometry) -> None:
        self._file = file
        self._offset = offset
        self.geometry = geometry
        self._chunk_ratio = geometry.chunk_ratio
        self._pages: dict[int, bytes] = {}

    def place(self, block: int) -> int:
        """Return the file offset of a payload block, -1 where it reads as zeros.

        Blocks that are NOT_PRESENT, UNDEFINED or UNMAPPED may read as anything; zeros it is, as
        from every other reader.
        """
        number, within = divmod(block + block // self._chunk_ratio, _PAGE_ENTRIES)
        page = self._pages.get(number)
        if page is None:
            page = self._load(number)
        word: int = _ENTRY.unpack_from(page, within * ENTRY_SIZE)[0]
        if word & _STATE_MASK != _FULLY_PRESENT:
            return -1
        return word >> _OFFSET_SHIFT << _OFFSET_SHIFT

    def _load(self, number: int) -> bytes:
        if len(self._pages) >= _CACHED_PAGES:
            del self._pages[next(iter(self._pages))]
        page = self._file.read_at(self._offset + number * _PAGE_SIZE, _PAGE_SIZE)
        if len(page) < _PAGE_SIZE:  # the region is checked at open: the file shrank since
            raise VhdxCorruptError(
                "BAT",
                "the file ends inside",
                section="2.5",
                offset=self._offset + number * _PAGE_SIZE,
            )
        self._pages[number] = page
        return page

    def scan(self) -> Iterator[tuple[int, Words]]:
        """Yield (index of the first entry, entries) over the whole table, 1 MiB at a time."""
        total = self.geometry.entries
        for first in range(0, total, _SCAN_SIZE // ENTRY_SIZE):
            length = min(_SCAN_SIZE, (total - first) * ENTRY_SIZE)
            at = self._offset + first * ENTRY_SIZE
            raw = self._file.read_at(at, length)
            if len(raw) < length:
                raise VhdxCorruptError("BAT", "the file ends inside", section="2.5", offset=at)
            yield first, np.frombuffer(raw, dtype="<u8")

    def payload_words(self) -> Iterator[tuple[int, Words]]:
        """Yield (first payload block, their entries) over the whole table, bitmaps left out."""
        for first, words in self.scan():
            payload = words[~self._is_bitmap(first, len(words))]
            if len(payload):
                yield first - first // (self._chunk_ratio + 1), payload

    def check(self, structures: Sequence[Extent]) -> dict[PayloadState, int]:
        """Return how many payload blocks are in each state, after checking every entry.

        Reserved bits, states, and that present blocks lie in the file and overlap neither each
        other nor `structures`. Raises VhdxCorruptError with the entry's file offset.
        """
        block_size = self.geometry.block_size
        counts = np.zeros(8, dtype=np.int64)
        places: list[Words] = []
        indices: list[npt.NDArray[np.int64]] = []
        found = 0
        room = self._file.size // block_size + 1
        for first, words in self.scan():
            if not words.any():
                counts[0] += len(words) - self._is_bitmap(first, len(words)).sum()
                continue
            self._check_words(first, words)
            states = (words & np.uint64(_STATE_MASK)).astype(np.int64)
            counts += np.bincount(states[~self._is_bitmap(first, len(words))], minlength=8)
            present = np.flatnonzero(states == PayloadState.FULLY_PRESENT)
            found += len(present)
            if found > room:  # then blocks must overlap: stop before the lists grow
                raise self._corrupt(first + int(present[-1]), "more blocks than the file has room")
            indices.append(present + first)
            places.append(words[present] >> np.uint64(_OFFSET_SHIFT))
        if found:
            self._check_places(np.concatenate(indices), np.concatenate(places), structures)
        return {state: int(counts[state]) for state in PayloadState if counts[state]}

    def _is_bitmap(self, first: int, count: int) -> npt.NDArray[np.bool_]:
        ratio = self._chunk_ratio
        indices = np.arange(first, first + count, dtype=np.int64)
        is_bitmap: npt.NDArray[np.bool_] = indices % (ratio + 1) == ratio
        return is_bitmap

    def _check_words(self, first: int, words: Words) -> None:
        reserved = np.flatnonzero(words & np.uint64(_RESERVED_MASK))
        if len(reserved):
            index = int(reserved[0])
            raise self._corrupt(first + index, f"reserved bits in {int(words[index]):#018x}")
        states = (words & np.uint64(_STATE_MASK)).astype(np.int64)
        bitmap = self._is_bitmap(first, len(words))
        illegal = np.flatnonzero(np.where(bitmap, states != 0, ~_LEGAL_STATES[states]))
        if len(illegal):
            index = int(illegal[0])
            kind = "sector bitmap block" if bitmap[index] else "payload block"
            raise self._corrupt(
                first + index,
                f"state {int(states[index])} of a {kind} in a disk without a parent",
            )

    def _check_places(
        self, indices: npt.NDArray[np.int64], places: Words, structures: Sequence[Extent]
    ) -> None:
        """Check present blocks at `places` (MiB in the file), `indices` being their entries."""
        geometry = self.geometry
        order = np.argsort(places, kind="stable")
        indices, places = indices[order], places[order]
        block_mib = np.uint64(geometry.block_size // MIB)
        crowded = np.flatnonzero(np.diff(places) < block_mib)
        if len(crowded):
            left, right = (int(indices[crowded[0] + step]) for step in (0, 1))
            raise self._corrupt(max(left, right), f"overlaps the block of entry {min(left, right)}")

        # The last block of the disk need not be in the file behind the disk's end.
        last = geometry.entries - 1
        tail = geometry.disk_size - (geometry.payload_blocks - 1) * geometry.block_size
        size = self._file.size
        for index, place in zip(indices[-2:].tolist(), places[-2:].tolist(), strict=True):
            needed = tail if index == last else geometry.block_size
            if place * MIB + needed > size:
                raise self._corrupt(index, f"block at {place * MIB:#x} lies behind the file's end")

        for extent in structures:
            low = max(0, extent.offset - geometry.block_size) // MIB
            if extent.offset >= geometry.block_size:
                low += 1
            start = int(np.searchsorted(places, np.uint64(low)))
            stop = int(np.searchsorted(places, np.uint64(-(-extent.end // MIB))))
            if start < stop:
                raise self._corrupt(int(indices[start]), f"overlaps the {extent.name}")

    def _corrupt(self, index: int, value: str) -> VhdxCorruptError:
        return VhdxCorruptError(
            f"BAT entry {index}", value, section="2.5.1", offset=self._offset + index * ENTRY_SIZE
        )

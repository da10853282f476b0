"""Whether a block allocation table is sound, [MS-VHDX] 2.5.1, and what room it takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snapshotter.errors import VhdxCorruptError
from snapshotter.units import MIB
from snapshotter.vhdx.bat import ENTRY_SIZE, PayloadState
from snapshotter.vhdx.battable import OFFSET_SHIFT, STATE_MASK, BatTable, Words
from snapshotter.vhdx.region import Extent

_RESERVED_MASK = 0xF_FFF8
_PRESENT = (PayloadState.FULLY_PRESENT, PayloadState.PARTIALLY_PRESENT)
_REPORTED = 20  # problems of one kind a mebibyte of table: enough to see what happened

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BatUse:
    """What a sound table says: payload blocks by state, and which stretches of the file it takes.

    `starts` and `lengths` are in MiB, sorted by start, payload and sector bitmap blocks together.
    `kept_starts` and `kept_lengths` are what blocks that are not present keep all the same: what
    Windows trimmed. No other block may get it, nor may the file end before it.
    """

    counts: dict[PayloadState, int]
    starts: Words
    lengths: Words
    kept_starts: Words
    kept_lengths: Words


class BatCheck:
    """One pass over `table` in a file of `file_size` bytes whose `structures` it must spare."""

    def __init__(self, table: BatTable, *, file_size: int, structures: Sequence[Extent]) -> None:
        self._table = table
        self._geometry = table.geometry
        self._file_size = file_size
        self._structures = structures
        self._counts = np.zeros(8, dtype=np.int64)
        self._indices: list[Indices] = []
        self._places: list[Words] = []
        self._kept: list[Words] | None = []  # None: more than there can be
        self._partial_chunks: set[int] = set()
        self._bitmap_chunks: set[int] = set()

    def require(self) -> BatUse:
        """Return what the table uses. Raises VhdxCorruptError with the entry's file offset."""
        for problem in self.problems():
            raise problem
        return self.use()

    def use(self) -> BatUse:
        """Return what `problems`, consumed to its end, has seen."""
        indices, places = self._sorted()
        counts = {state: int(self._counts[state]) for state in PayloadState}
        kept = self._kept_places()
        return BatUse(
            {state: count for state, count in counts.items() if count},
            places,
            self._lengths(indices),
            *kept,
        )

    def _kept_places(self) -> tuple[Words, Words]:
        if self._kept is None:  # damage: then nothing of the file is free
            return np.zeros(1, np.uint64), np.full(1, self._file_end(), np.uint64)
        starts = np.concatenate([np.zeros(0, np.uint64), *self._kept])
        return starts, np.full(len(starts), self._geometry.block_size // MIB, np.uint64)

    def _file_end(self) -> int:
        return -(-self._file_size // MIB)

    def problems(self) -> Iterator[VhdxCorruptError]:
        """Yield what is wrong: reserved bits, states, and blocks that overlap or are not there."""
        legal = np.zeros(8, dtype=bool)
        legal[[0, 1, 2, 3, 6]] = True
        legal[7] = self._geometry.has_parent
        legal_bitmap = np.zeros(8, dtype=bool)
        legal_bitmap[[0, 6] if self._geometry.has_parent else [0]] = True
        room = 2 * (self._file_size // MIB + 1)
        found = 0
        for first, words in self._table.scan():
            blocks = self._geometry.blocks_before(first + len(words))
            blocks -= self._geometry.blocks_before(first)
            if not words.any():
                self._counts[0] += blocks
                continue
            bitmap = self._table.is_bitmap(first, len(words))
            payload = np.flatnonzero(~bitmap)[:blocks]
            states = (words & np.uint64(STATE_MASK)).astype(np.int64)
            self._counts += np.bincount(states[payload], minlength=8)
            for at in np.flatnonzero(words & np.uint64(_RESERVED_MASK))[:_REPORTED].tolist():
                yield self._problem(first + at, f"reserved bits in {int(words[at]):#018x}")
            fine = np.where(bitmap, legal_bitmap[states], legal[states])
            for at in np.flatnonzero(~fine)[:_REPORTED].tolist():
                kind = "sector bitmap block" if bitmap[at] else "payload block"
                disk = "" if self._geometry.has_parent else " in a disk without a parent"
                yield self._problem(first + at, f"state {int(states[at])} of a {kind}{disk}")
            present = np.flatnonzero(np.isin(states, _PRESENT) & fine)
            found += len(present)
            if found > room:  # then blocks must overlap: stop before the lists grow
                yield self._problem(
                    first + int(present[-1]), "more blocks than the file has room for"
                )
                return
            self._note_kept(words, states, room)
            self._note_chunks(first + present, states[present], bitmap[present])
            self._indices.append(present + first)
            self._places.append(words[present] >> np.uint64(OFFSET_SHIFT))
        yield from self._check_places()
        for chunk in sorted(self._partial_chunks - self._bitmap_chunks)[:_REPORTED]:
            ratio = self._geometry.chunk_ratio
            yield self._problem(
                chunk * (ratio + 1) + ratio,
                "no sector bitmap block, but partially present blocks in its chunk",
            )

    def _note_kept(self, words: Words, states: Indices, room: int) -> None:
        if self._kept is None:
            return
        places = words[~np.isin(states, _PRESENT)] >> np.uint64(OFFSET_SHIFT)
        # What is not in the file is no place of it: nobody has written there.
        end = np.uint64(self._file_end())
        length = np.uint64(self._geometry.block_size // MIB)
        places = np.unique(places[(places > 0) & (places + length <= end)])
        if len(places):
            self._kept.append(places)
            if sum(map(len, self._kept)) > room:
                self._kept = None

    def _note_chunks(
        self, indices: Indices, states: Indices, bitmap: npt.NDArray[np.bool_]
    ) -> None:
        chunks = indices // (self._geometry.chunk_ratio + 1)
        self._bitmap_chunks.update(np.unique(chunks[bitmap]).tolist())
        partial = (states == PayloadState.PARTIALLY_PRESENT) & ~bitmap
        self._partial_chunks.update(np.unique(chunks[partial]).tolist())

    def _sorted(self) -> tuple[Indices, Words]:
        if not self._indices:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)
        indices, places = np.concatenate(self._indices), np.concatenate(self._places)
        order = np.argsort(places, kind="stable")
        return indices[order], places[order]

    def _lengths(self, indices: Indices) -> Words:
        ratio = self._geometry.chunk_ratio
        is_bitmap = indices % (ratio + 1) == ratio
        return np.where(is_bitmap, 1, self._geometry.block_size // MIB).astype(np.uint64)

    def _check_places(self) -> Iterator[VhdxCorruptError]:
        indices, places = self._sorted()
        lengths = self._lengths(indices)
        for at in np.flatnonzero(np.diff(places) < lengths[:-1])[:_REPORTED].tolist():
            left, right = sorted((int(indices[at]), int(indices[at + 1])))
            yield self._problem(right, f"overlaps the block of entry {left}")

        # The last block of the disk need not be in the file behind the disk's end.
        geometry = self._geometry
        last = geometry.index(geometry.payload_blocks - 1)
        tail = geometry.disk_size - (geometry.payload_blocks - 1) * geometry.block_size
        behind = np.flatnonzero(places + lengths > np.uint64(self._file_size // MIB))
        for at in behind[-_REPORTED:].tolist():
            index, place = int(indices[at]), int(places[at]) * MIB
            needed = tail if index == last else int(lengths[at]) * MIB
            if place + needed > self._file_size:
                yield self._problem(index, f"block at {place:#x} lies behind the file's end")

        for extent in self._structures:
            stop = int(np.searchsorted(places, np.uint64(-(-extent.end // MIB))))
            low = max(0, extent.offset - geometry.block_size) // MIB
            start = int(np.searchsorted(places, np.uint64(low)))
            within = places[start:stop] + lengths[start:stop] > np.uint64(extent.offset // MIB)
            for at in np.flatnonzero(within)[:_REPORTED].tolist():
                yield self._problem(int(indices[start + at]), f"overlaps the {extent.name}")

    def _problem(self, index: int, value: str) -> VhdxCorruptError:
        return VhdxCorruptError(
            f"BAT entry {index}",
            value,
            section="2.5.1",
            offset=self._table.offset + index * ENTRY_SIZE,
        )

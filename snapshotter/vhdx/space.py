"""Room in the file for new blocks: gaps first, then behind everything else."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from snapshotter.units import MIB
from snapshotter.vhdx.batcheck import BatUse
from snapshotter.vhdx.region import Extent


class FileSpace:
    """Which mebibytes of the file nothing on disk refers to; offsets and lengths in bytes."""

    def __init__(self, use: BatUse, structures: Sequence[Extent], *, block_size: int) -> None:
        self._block_size = block_size
        self._blocks: deque[tuple[int, int]] = deque()
        self._small: deque[tuple[int, int]] = deque()
        taken = np.array([(e.offset // MIB, -(-e.end // MIB)) for e in structures], dtype=np.int64)
        in_use = np.concatenate([use.starts, use.kept_starts]).astype(np.int64)
        lengths = np.concatenate([use.lengths, use.kept_lengths]).astype(np.int64)
        starts = np.concatenate([taken[:, 0], in_use])
        ends = np.concatenate([taken[:, 1], in_use + lengths])
        order = np.argsort(starts, kind="stable")
        starts, ends = starts[order], np.maximum.accumulate(ends[order])
        for at in np.flatnonzero(starts[1:] > ends[:-1]).tolist():
            self.release(int(ends[at]) * MIB, int(starts[at + 1] - ends[at]) * MIB)
        self.end = int(ends[-1]) * MIB

    def take(self, length: int) -> int:
        """Return the file offset of `length` bytes, a whole block or 1 MiB, that are now taken."""
        if length < self._block_size and self._small:
            return self._cut(self._small, length)
        if self._blocks:
            return self._cut(self._blocks, length)
        offset, self.end = self.end, self.end + length
        return offset

    def release(self, offset: int, length: int) -> None:
        """Give room back: nothing on disk refers to it any more."""
        if length >= self._block_size:
            self._blocks.append((offset, length))
        elif length:
            self._small.append((offset, length))

    def used_end(self) -> int:
        """Return the file offset behind which nothing is taken."""
        end = self.end
        for offset, length in sorted((*self._blocks, *self._small), reverse=True):
            if offset + length < end:
                break
            end = min(end, offset)
        return end

    def _cut(self, gaps: deque[tuple[int, int]], length: int) -> int:
        offset, available = gaps.popleft()
        self.release(offset + length, available - length)
        return offset

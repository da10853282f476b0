"""Room on the file system reserved ahead of a streaming writer.

Writing into room that is there already spares the kernel its bookkeeping for each page: on ext4
a copy takes a fifth less time. What a writer skipped is given back, so that the file is as sparse
as without.
"""

from __future__ import annotations

from typing import Final, Self

from snapshotter.blockio import LocalBlockFile
from snapshotter.units import MIB

_WINDOW: Final = 16 * MIB


class ReservingWriter:
    """Writes to `file` at ascending offsets; a context manager.

    The file may end up to 16 MiB behind the last write: truncate it to its size afterwards.
    """

    def __init__(self, file: LocalBlockFile) -> None:
        self._file = file
        self._reserves = True
        self._written = 0
        self._reserved = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._give_back(self._reserved)

    def write_at(self, offset: int, data: memoryview) -> None:
        """Write all of `data`, which starts where the last write ended or behind.

        Raises UnavailableError.
        """
        end = offset + len(data)
        if offset > self._written:
            self._give_back(min(offset, self._reserved))
        if end > self._reserved and self._reserves:
            start = max(offset, self._reserved)
            # No room ahead, or none of this file system's business: the write itself will tell.
            self._reserves = self._file.reserve(start, max(_WINDOW, end - start))
            if self._reserves:
                self._reserved = start + max(_WINDOW, end - start)
        self._file.write_at(offset, data)
        self._written = end

    def _give_back(self, end: int) -> None:
        if end > self._written:
            self._file.write_zeros(self._written, end - self._written)

"""Sparse members of tars: which bytes of a file are there, and how its image blocks follow.

GNU tar manual, "Storing Sparse Files": the old GNU header (type S, four entries in the header and
21 in each block after it), and PAX 0.0 (a pair of records each), 0.1 (one record) and 1.0 (in front
of the data). Holes stay holes in the image, but for what a block shares with data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from snapshotter.ext4.format import BLOCK_SIZE
from snapshotter.ext4.pax import SPARSE_PREFIX, parse_decimal
from snapshotter.ext4.tarheader import HEADER_SIZE, parse_number

MAX_SPARSE_SIZE: Final = ((1 << 32) - 1) * BLOCK_SIZE  # block numbers in a file have 32 bits

_MAJOR, _NAME = SPARSE_PREFIX + b"major", SPARSE_PREFIX + b"name"
_SIZES: Final = (SPARSE_PREFIX + b"realsize", SPARSE_PREFIX + b"size")
_MAP: Final = SPARSE_PREFIX + b"map"
_OLD_ENTRIES = slice(386, 482)
_OLD_EXTENDED, _OLD_SIZE = 482, slice(483, 495)
_MORE_ENTRIES, _MORE_EXTENDED = slice(0, 504), 504
_ENTRY_SIZE, _HALF = 24, 12

Fragment = tuple[int, int]  # offset and length of bytes that are there


@dataclass(frozen=True, slots=True)
class SparsePlan:
    """What a sparse file becomes.

    `parts` are (zeros before, bytes of data) in the order of the stream, `zeros_after` fill the
    last block; `extents` are rows of (logical block, block in the image, count).
    """

    size: int
    parts: tuple[tuple[int, int], ...]
    zeros_after: int
    blocks: int
    extents: NDArray[np.int64]

    @property
    def stored(self) -> int:
        """Bytes of data in the tar."""
        return sum(length for _, length in self.parts)


def plan_sparse(fragments: Iterable[Fragment], size: int, *, first_block: int) -> SparsePlan:
    """Return how a file of `size` bytes with `fragments` is stored from `first_block` on.

    Raises ValueError for fragments that overlap, are out of order, or lie beyond the size.
    """
    if not 0 <= size <= MAX_SPARSE_SIZE:
        raise ValueError(f"a sparse file of {size} bytes: ext4 holds {MAX_SPARSE_SIZE}")
    parts: list[tuple[int, int]] = []
    runs: list[tuple[int, int, int]] = []
    block, last, run_start, run_end = first_block, 0, 0, 0
    for offset, length in fragments:
        if offset < last or length < 0 or offset + length > size:
            raise ValueError(f"a sparse map with {length} bytes at {offset}, of {size}")
        if not length:
            continue
        start = offset // BLOCK_SIZE
        if runs and start <= run_end:
            zeros = offset - last
        else:
            zeros = run_end * BLOCK_SIZE - last if runs else 0
            block += run_end - run_start
            zeros += offset % BLOCK_SIZE
            run_start = start
            runs.append((run_start, block, 0))
        parts.append((zeros, length))
        last = offset + length
        run_end = -(-last // BLOCK_SIZE)
        runs[-1] = run_start, block, run_end - run_start
    return SparsePlan(
        size=size,
        parts=tuple(parts),
        zeros_after=run_end * BLOCK_SIZE - last if runs else 0,
        blocks=block + run_end - run_start - first_block,
        extents=np.array(runs, np.int64).reshape(-1, 3),
    )


class OldMap:
    """The map of an old GNU sparse member: its header, then as many blocks as it announces."""

    def __init__(self, header: bytes) -> None:
        """Raises ValueError."""
        self.size = parse_number(header[_OLD_SIZE])
        self.fragments = _old_entries(header[_OLD_ENTRIES])
        self.complete = not header[_OLD_EXTENDED]

    def add(self, block: bytes) -> None:
        """Take the next block of the map. Raises ValueError."""
        self.fragments += _old_entries(block[_MORE_ENTRIES])
        self.complete = not block[_MORE_EXTENDED]


def _old_entries(raw: bytes) -> list[Fragment]:
    found = []
    for at in range(0, len(raw), _ENTRY_SIZE):
        if raw[at : at + _HALF].strip(b"\0 "):
            middle = at + _HALF
            found.append((parse_number(raw[at:middle]), parse_number(raw[middle : at + 24])))
    return found


class FrontMap:
    """The map of a PAX 1.0 sparse member: decimal lines in the first blocks of its data."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fragments: list[Fragment] = []
        self.complete = False
        self._rest = b""
        self._numbers: list[int] = []

    def add(self, block: bytes) -> None:
        """Take the next block of the map. Raises ValueError."""
        *lines, self._rest = (self._rest + block).split(b"\n")
        if len(self._rest) > HEADER_SIZE and not lines:
            raise ValueError("a sparse map that is no list of numbers")
        for line in lines:
            self._numbers.append(parse_decimal(line))
            if len(self._numbers) == 1 + 2 * self._numbers[0]:
                self.complete = True
                break
        if self.complete:
            self.fragments = list(zip(self._numbers[1::2], self._numbers[2::2], strict=True))


def is_sparse(overrides: Mapping[bytes, bytes]) -> bool:
    """Return whether PAX records make a member sparse."""
    return any(key.startswith(SPARSE_PREFIX) for key in overrides)


def sparse_name(overrides: Mapping[bytes, bytes]) -> bytes | None:
    """Return the member's own name, where PAX 0.1 or 1.0 keep it apart."""
    return overrides.get(_NAME)


def pax_map(overrides: Mapping[bytes, bytes]) -> FrontMap:
    """Return the map in PAX records: complete for 0.0 and 0.1, to come with the data for 1.0.

    Raises ValueError.
    """
    sizes = [overrides[key] for key in _SIZES if key in overrides]
    if not sizes:
        raise ValueError("a sparse file without its size")
    result = FrontMap(parse_decimal(sizes[0]))
    major = overrides.get(_MAJOR, b"0")
    if major == b"1":
        return result
    if major != b"0":
        raise ValueError(f"sparse format {major[:20]!r} is not known")
    text = overrides.get(_MAP, b"")
    numbers = [parse_decimal(number) for number in text.split(b",")] if text else []
    if len(numbers) % 2:
        raise ValueError("a sparse map of an odd count of numbers")
    result.fragments = list(zip(numbers[::2], numbers[1::2], strict=True))
    result.complete = True
    return result

"""Extent trees: where the blocks of a file are.

Documentation/filesystems/ext4/ifork.rst. A node is a 12-byte header and 12-byte entries; the root
lives in the 60 bytes of i_block, further nodes fill a block each.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from snapshotter.crc32c import crc32c_raw
from snapshotter.errors import Ext4CorruptError
from snapshotter.ext4.format import BLOCK_SIZE
from snapshotter.ext4.inode import INLINE_AREA

EXTENT_MAGIC: Final = 0xF30A
MAX_DEPTH: Final = 5  # EXT4_MAX_EXTENT_DEPTH
MAX_EXTENT_BLOCKS: Final = 32_768  # a longer ee_len would mean: unwritten
ROOT_ENTRIES: Final = (INLINE_AREA - 12) // 12
LEAF_ENTRIES: Final = (BLOCK_SIZE - 12) // 12

_HEADER = struct.Struct("<HHHHI")
_EXTENT = struct.Struct("<IHHI")
_INDEX = struct.Struct("<IIHH")
_TAIL_SIZE: Final = 4  # a checksum, where there are any


@dataclass(frozen=True, slots=True)
class Extent:
    """`count` blocks of a file from `logical` on, at `physical`.

    `written` is False for blocks that are promised but still read as zeros.
    """

    LAYOUT: ClassVar = _EXTENT
    logical: int
    physical: int
    count: int
    written: bool = True


@dataclass(frozen=True, slots=True)
class ExtentNode:
    """A decoded node: extents where `depth` is 0, else the blocks of its children, in order."""

    depth: int
    extents: tuple[Extent, ...]
    children: tuple[int, ...]


def split_run(physical: int, count: int) -> list[Extent]:
    """Return the extents of a file whose `count` blocks lie in one run from `physical` on."""
    return [
        Extent(at, physical + at, min(MAX_EXTENT_BLOCKS, count - at))
        for at in range(0, count, MAX_EXTENT_BLOCKS)
    ]


def pack_extents(
    extents: Sequence[Extent], *, leaf_block: int = 0, seed: int | None = None
) -> tuple[bytes, list[bytes]]:
    """Return (i_block, tree blocks) of a file; the tree blocks go to `leaf_block` and after.

    `seed` is that of the file's inode where tree blocks carry checksums.
    """
    if len(extents) <= ROOT_ENTRIES:
        return _node(_pack_leaf(extents), limit=ROOT_ENTRIES, depth=0, size=INLINE_AREA), []
    blocks: list[bytes] = []
    depth = 0
    level = [
        (part[0].logical, _pack_leaf(part))
        for part in (extents[at : at + LEAF_ENTRIES] for at in range(0, len(extents), LEAF_ENTRIES))
    ]
    while True:
        index: list[tuple[int, bytes]] = []
        for logical, entries in level:
            place = leaf_block + len(blocks)
            index.append((logical, _INDEX.pack(logical, place & 0xFFFF_FFFF, place >> 32, 0)))
            block = _node(entries, limit=LEAF_ENTRIES, depth=depth, size=BLOCK_SIZE - _TAIL_SIZE)
            checksum = 0 if seed is None else crc32c_raw(seed, block)
            blocks.append(block + struct.pack("<I", checksum))
        depth += 1
        if len(index) <= ROOT_ENTRIES:
            entries = [packed for _, packed in index]
            return _node(entries, limit=ROOT_ENTRIES, depth=depth, size=INLINE_AREA), blocks
        level = [
            (index[at][0], [packed for _, packed in index[at : at + LEAF_ENTRIES]])
            for at in range(0, len(index), LEAF_ENTRIES)
        ]


def _pack_leaf(extents: Sequence[Extent]) -> list[bytes]:
    return [
        _EXTENT.pack(
            extent.logical, extent.count, extent.physical >> 32, extent.physical & 0xFFFF_FFFF
        )
        for extent in extents
    ]


def _node(entries: Sequence[bytes], *, limit: int, depth: int, size: int) -> bytes:
    head = _HEADER.pack(EXTENT_MAGIC, len(entries), limit, depth, 0)
    return (head + b"".join(entries)).ljust(size, b"\0")


def unpack_node(raw: bytes, *, at: int | None = None, seed: int | None = None) -> ExtentNode:
    """Decode a node from i_block or a tree block; `at` is its offset on disk, for errors.

    A tree block's checksum is verified where its inode's `seed` is given. Raises Ext4CorruptError.
    """
    magic, entries, limit, depth, _ = _HEADER.unpack_from(raw)
    if magic != EXTENT_MAGIC:
        raise Ext4CorruptError("extent header", f"magic {magic:#06x}", offset=at)
    if entries > limit or 12 + 12 * entries > len(raw):
        raise Ext4CorruptError("extent header", f"{entries} entries of {limit}", offset=at)
    if depth > MAX_DEPTH:
        raise Ext4CorruptError("extent header", f"depth {depth}", offset=at)
    if seed is not None:
        tail = 12 + 12 * limit
        stored = raw[tail : tail + _TAIL_SIZE]
        if stored != struct.pack("<I", crc32c_raw(seed, raw[:tail])):
            raise Ext4CorruptError("extent block checksum", "does not match its block", offset=at)
    places = range(12, 12 + 12 * entries, 12)
    if depth:
        indexes = [_INDEX.unpack_from(raw, place) for place in places]
        return ExtentNode(depth, (), tuple(high << 32 | low for _, low, high, _ in indexes))
    extents = []
    for place in places:
        logical, length, high, low = _EXTENT.unpack_from(raw, place)
        written = length <= MAX_EXTENT_BLOCKS
        count = length if written else length - MAX_EXTENT_BLOCKS
        if not count:
            raise Ext4CorruptError("extent", "of no blocks", offset=at)
        extents.append(Extent(logical, high << 32 | low, count, written))
    return ExtentNode(0, tuple(extents), ())

"""Hashed directories: leaf blocks in the order of their names' hashes, and an index of those.

Documentation/filesystems/ext4/directory.rst, Hash Tree Directories. Block 0 is the root; with more
leaves than it can name, one level of index blocks follows. To whoever reads the directory as a
list, index blocks look like blocks without entries.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final

from snapshotter.crc32c import crc32c_raw
from snapshotter.errors import Ext4CorruptError
from snapshotter.ext4.directory import TAIL_TYPE, close_block, dot_entries, entry_size, pack_entry
from snapshotter.ext4.format import BLOCK_SIZE, HASH_HALF_MD4
from snapshotter.units import KIB

_DIRECTORY_TAIL: Final = 12  # of a leaf with a checksum
_ENTRY: Final = struct.Struct("<II")  # hash, block; the first one's hash is limit and count
_COUNT: Final = struct.Struct("<HHI")  # limit, count, block of the hashes below the second one's
_ROOT_INFO: Final = struct.Struct("<IBBBB")  # zero, hash version, length, levels, flags
_FAKE_ENTRY: Final = struct.Struct("<IHBB")
_LEAF_TAIL: Final = struct.Struct("<IHBBI")
_ROOT_START, _NODE_START = 32, 8
_CONTINUES: Final = 1  # in a hash: names of this hash are in the block before too

assert BLOCK_SIZE == 4 * KIB

Entry = tuple[int, bytes, int]  # inode, name, file type


def pack_hashed_directory(
    number: int,
    parent: int,
    entries: Sequence[Entry],
    hashes: Sequence[int],
    *,
    seed: int | None = None,
) -> bytes:
    """Return the blocks of directory inode `number`; `hashes` are those of the entries' names.

    `seed` is that of the directory's inode where blocks carry checksums. At most 257,000 blocks.
    """
    leaves = list(_leaves(entries, hashes, seed))
    root_limit, node_limit = _limit(_ROOT_START, seed), _limit(_NODE_START, seed)
    nodes = 0 if len(leaves) <= root_limit else -(-len(leaves) // node_limit)
    assert nodes <= root_limit, "more names than an index of two levels holds"
    first_leaf = 1 + nodes
    index = [(key, first_leaf + at) for at, (key, _) in enumerate(leaves)]
    inner: list[bytes] = []
    if nodes:
        parts = [index[at : at + node_limit] for at in range(0, len(index), node_limit)]
        head = _FAKE_ENTRY.pack(0, BLOCK_SIZE, 0, 0)
        inner = [_index_block(head, part, seed) for part in parts]
        index = [(part[0][0], 1 + at) for at, part in enumerate(parts)]
    head = dot_entries(number, parent, BLOCK_SIZE)
    head += _ROOT_INFO.pack(0, HASH_HALF_MD4, _ROOT_INFO.size, 1 if nodes else 0, 0)
    blocks = [_index_block(head, index, seed), *inner, *(leaf for _, leaf in leaves)]
    return b"".join(blocks)


def _leaves(
    entries: Sequence[Entry], hashes: Sequence[int], seed: int | None
) -> Iterator[tuple[int, bytes]]:
    """Yield (hash for the index, block) in order."""
    usable = BLOCK_SIZE - (0 if seed is None else _DIRECTORY_TAIL)
    records: list[bytes] = []
    left, key, last = usable, 0, -1
    for at in sorted(range(len(entries)), key=hashes.__getitem__):
        length = entry_size(entries[at][1])
        if length > left:
            yield key, close_block(records, left, seed)
            records, left = [], usable
            key = hashes[at] | (_CONTINUES if hashes[at] == last else 0)
        records.append(pack_entry(*entries[at]))
        left -= length
        last = hashes[at]
    yield key, close_block(records, left, seed)


def _limit(start: int, seed: int | None) -> int:
    return (BLOCK_SIZE - start) // _ENTRY.size - (0 if seed is None else 1)


def _index_block(head: bytes, index: Sequence[tuple[int, int]], seed: int | None) -> bytes:
    limit = _limit(len(head), seed)
    raw = bytearray(head)
    raw += _COUNT.pack(limit, len(index), index[0][1])
    for key, block in index[1:]:
        raw += _ENTRY.pack(key, block)
    if seed is None:
        return bytes(raw).ljust(BLOCK_SIZE, b"\0")
    # ext4_dx_csum: what is in use, then the tail with its own checksum as zero.
    checksum = crc32c_raw(crc32c_raw(seed, raw), bytes(8))
    return bytes(raw).ljust(BLOCK_SIZE - 4, b"\0") + struct.pack("<I", checksum)


def check_directory_block(raw: bytes, *, seed: int, at: int) -> None:
    """Verify the checksum of a directory's block, index blocks included; `seed` as for writing.

    `at` is its offset on disk, for errors. Raises Ext4CorruptError.
    """
    inode, length, name_length, kind, stored = _LEAF_TAIL.unpack_from(raw, len(raw) - 12)
    if (inode, length, name_length, kind) == (0, _DIRECTORY_TAIL, 0, TAIL_TYPE):
        if crc32c_raw(seed, raw[:-_DIRECTORY_TAIL]) != stored:
            raise Ext4CorruptError("directory checksum", "does not match its block", offset=at)
        return
    start = _NODE_START if raw[4:6] == struct.pack("<H", len(raw) & 0xFFFF) else _ROOT_START
    limit, count, _ = _COUNT.unpack_from(raw, start)
    tail = start + limit * _ENTRY.size
    if not 0 < count <= limit or tail + 8 > len(raw):
        raise Ext4CorruptError("directory checksum", "a block has none", offset=at)
    checksum = crc32c_raw(seed, raw[: start + count * _ENTRY.size])
    checksum = crc32c_raw(checksum, raw[tail : tail + 4] + bytes(4))
    if raw[tail + 4 : tail + 8] != struct.pack("<I", checksum):
        raise Ext4CorruptError("directory index checksum", "does not match its block", offset=at)

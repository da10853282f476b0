"""Inodes and blocks of an ext4 that somebody else wrote, read only and read warily.

Every number that comes from the disk is checked before it is used as a place or a length, loops
are cut, and whatever is wrong ends in Ext4CorruptError, what is legal but not handled in
Ext4UnsupportedError. A journal that still has to be replayed is left alone: the disk is read as
it is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, Self

from snapshotter.blockio import BlockReader
from snapshotter.crc32c import crc32c_raw
from snapshotter.errors import Ext4CorruptError, Ext4UnsupportedError
from snapshotter.ext4.extent import MAX_DEPTH, Extent, unpack_node
from snapshotter.ext4.format import (
    SUPERBLOCK_OFFSET,
    SUPERBLOCK_SIZE,
    Incompat,
    Superblock,
)
from snapshotter.ext4.groups import check_descriptor
from snapshotter.ext4.inode import Inode, InodeFlag, inode_seed
from snapshotter.units import KIB, MIB

_READABLE: Final = (
    Incompat.FILETYPE
    | Incompat.RECOVER
    | Incompat.EXTENTS
    | Incompat.BIT64
    | Incompat.MMP
    | Incompat.FLEX_BG
    | Incompat.EA_INODE  # refused where an xattr uses it
    | Incompat.CSUM_SEED
    | Incompat.LARGEDIR
    | Incompat.INLINE_DATA  # refused where a file uses it
    | Incompat.CASEFOLD
)
_MAX_BLOCK_SIZE: Final = 4 * KIB  # what Linux mounts with 4 KiB pages
_READ_AT_ONCE: Final = 1 * MIB
_INODE_TABLE = struct.Struct("<8xI")  # bg_inode_table_lo
_INODE_TABLE_HI = struct.Struct("<I")  # bg_inode_table_hi, at 0x28


class Volume:
    """The superblock of a file system, and its inodes and file data by number."""

    def __init__(self, reader: BlockReader, superblock: Superblock) -> None:
        self._reader = reader
        self.superblock = superblock
        self.block_size = superblock.block_size
        wide = superblock.incompat & Incompat.BIT64
        self._descriptor_size = superblock.descriptor_size if wide else 32
        self._tables: dict[int, int] = {}  # inode table of a group

    @classmethod
    def open(cls, reader: BlockReader) -> Self:
        """Read and judge the superblock. Raises Ext4CorruptError, Ext4UnsupportedError."""
        superblock = Superblock.unpack(reader.read_at(SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE))
        _judge(superblock, reader.size)
        return cls(reader, superblock)

    def read_block(self, block: int, count: int = 1) -> bytes:
        """Return `count` blocks. Raises Ext4CorruptError where they are not on the disk."""
        if not 0 < block <= self.superblock.blocks_count - count:
            raise Ext4CorruptError("block number", f"{block} + {count}, beyond the file system")
        return self._read(block * self.block_size, count * self.block_size)

    def _read(self, offset: int, length: int) -> bytes:
        raw = self._reader.read_at(offset, length)
        if len(raw) != length:
            raise Ext4CorruptError("disk", f"ends within {length} bytes", offset=offset)
        return raw

    def inode_place(self, number: int) -> int:
        """Return the byte offset of inode `number`. Raises Ext4CorruptError."""
        superblock = self.superblock
        if not 0 < number <= superblock.inodes_count:
            raise Ext4CorruptError("inode number", f"{number}, of {superblock.inodes_count}")
        group, index = divmod(number - 1, superblock.inodes_per_group)
        table = self._tables.get(group)
        if table is None:
            table = self._tables[group] = self._inode_table(group)
        return table * self.block_size + index * superblock.inode_size

    def _inode_table(self, group: int) -> int:
        superblock = self.superblock
        offset = (superblock.first_data_block + 1) * self.block_size
        offset += group * self._descriptor_size
        raw = self._read(offset, self._descriptor_size)
        check_descriptor(raw, group, superblock, at=offset)
        (table,) = _INODE_TABLE.unpack_from(raw)
        if self._descriptor_size >= 64:
            table |= _INODE_TABLE_HI.unpack_from(raw, 0x28)[0] << 32
        size = superblock.inodes_per_group * superblock.inode_size
        blocks = -(-size // self.block_size)
        if not 0 < table <= superblock.blocks_count - blocks:
            raise Ext4CorruptError(
                "group descriptor", f"inode table at block {table}", offset=offset
            )
        return int(table)

    def inode(self, number: int) -> Inode:
        """Return inode `number`, its checksum verified where there is one.

        Raises Ext4CorruptError.
        """
        place = self.inode_place(number)
        raw = self._read(place, self.superblock.inode_size)
        inode = Inode.unpack(raw)
        if self.superblock.has_checksums and inode.mode:
            self._verify(number, inode, raw, place)
        return inode

    def _verify(self, number: int, inode: Inode, raw: bytes, place: int) -> None:
        blank = bytearray(raw)
        blank[0x7C:0x7E] = bytes(2)
        wide = len(raw) > 128 and inode.extra_isize >= 4
        if wide:
            blank[0x82:0x84] = bytes(2)
        seed = self.seed_of(number, inode)
        assert seed is not None
        expected = crc32c_raw(seed, blank)
        stored = inode.checksum_lo | (inode.checksum_hi << 16 if wide else expected & 0xFFFF0000)
        if stored != expected:
            raise Ext4CorruptError("inode checksum", f"of inode {number}", offset=place)

    def seed_of(self, number: int, inode: Inode) -> int | None:
        """Return the seed of the checksums of an inode and its blocks; None: there are none."""
        if not self.superblock.has_checksums:
            return None
        return inode_seed(number, seed=self.superblock.checksum_seed, generation=inode.generation)

    def inode_tail(self, number: int, inode: Inode) -> tuple[bytes, int]:
        """Return what follows the fields of an inode, where xattrs may be, and its offset."""
        size = self.superblock.inode_size
        start = 128 + inode.extra_isize
        if size <= 128 or start > size:
            return b"", 0
        place = self.inode_place(number)
        return self._read(place, size)[start:], place + start

    def extents(self, number: int, inode: Inode) -> Iterator[Extent]:
        """Yield the extents of a file in the order of its content.

        Raises Ext4CorruptError, Ext4UnsupportedError.
        """
        if inode.flags & InodeFlag.INLINE_DATA:
            raise Ext4UnsupportedError(f"inode {number} keeps its data inline (inline_data)")
        if not inode.flags & InodeFlag.EXTENTS:
            if inode.size == 0:
                return
            raise Ext4UnsupportedError(f"inode {number} has a block map of ext2 or ext3")
        next_logical = 0
        seed = self.seed_of(number, inode)
        seen: set[int] = set()
        # Each item: a node to visit, where it is, and the depth it has to have.
        waiting: list[tuple[bytes | int, int | None]] = [(inode.block, None)]
        while waiting:
            where, depth = waiting.pop()
            if isinstance(where, int):
                if where in seen:
                    raise Ext4CorruptError("extent tree", f"of inode {number} meets itself")
                seen.add(where)
                node = unpack_node(self.read_block(where), at=where * self.block_size, seed=seed)
            else:
                node = unpack_node(where)
            if depth is not None and node.depth != depth:
                raise Ext4CorruptError("extent tree", f"of inode {number}: depth {node.depth}")
            assert node.depth <= MAX_DEPTH
            waiting += [(child, node.depth - 1) for child in reversed(node.children)]
            for extent in node.extents:
                if extent.logical < next_logical:
                    raise Ext4CorruptError("extent tree", f"of inode {number}: not in order")
                next_logical = extent.logical + extent.count
                yield extent

    def data(self, number: int, inode: Inode, offset: int, length: int) -> Iterator[bytes]:
        """Yield `length` bytes of a file from `offset` on, which must lie within its size.

        Holes and unwritten extents are zeros. Raises Ext4CorruptError, Ext4UnsupportedError.
        """
        end = offset + length
        size = self.block_size
        for extent in self.extents(number, inode):
            start = extent.logical * size
            if start >= end:
                break
            stop = min(start + extent.count * size, end)
            if stop <= offset:
                continue
            yield from _zeros(max(start - offset, 0))
            offset = max(offset, start)
            while offset < stop:
                part = min(stop - offset, _READ_AT_ONCE)
                if extent.written:
                    block, skip = divmod(offset - start, size)
                    count = -(-(skip + part) // size)
                    raw = self.read_block(extent.physical + block, count)
                    yield raw[skip : skip + part]
                else:
                    yield bytes(part)
                offset += part
        yield from _zeros(end - offset)


def _zeros(length: int) -> Iterator[bytes]:
    while length > 0:
        part = min(length, _READ_AT_ONCE)
        yield bytes(part)
        length -= part


def _judge(superblock: Superblock, disk_size: int) -> None:
    def wrong(what: str, value: object) -> Ext4CorruptError:
        return Ext4CorruptError(f"superblock {what}", value, offset=SUPERBLOCK_OFFSET)

    if superblock.revision < 1:
        raise Ext4UnsupportedError("a file system of revision 0")
    unknown = superblock.incompat & ~int(_READABLE)
    if unknown:
        names = Incompat(unknown).name or hex(unknown)
        raise Ext4UnsupportedError(f"feature {names} is not handled")
    if superblock.log_block_size > 6:
        raise wrong("block size", f"1024 << {superblock.log_block_size}")
    size = superblock.block_size
    if size > _MAX_BLOCK_SIZE:
        raise Ext4UnsupportedError(f"blocks of {size} bytes: Linux on x86 mounts up to 4096")
    if superblock.first_data_block != (1 if size == 1024 else 0):
        raise wrong("first data block", superblock.first_data_block)
    if not 0 < superblock.blocks_per_group <= 8 * size:
        raise wrong("blocks per group", superblock.blocks_per_group)
    if not 0 < superblock.inodes_per_group <= 8 * size:
        raise wrong("inodes per group", superblock.inodes_per_group)
    if superblock.inode_size & superblock.inode_size - 1 or not (
        128 <= superblock.inode_size <= size
    ):
        raise wrong("inode size", superblock.inode_size)
    if superblock.incompat & Incompat.BIT64 and (
        superblock.descriptor_size & superblock.descriptor_size - 1
        or not 64 <= superblock.descriptor_size <= size
    ):
        raise wrong("descriptor size", superblock.descriptor_size)
    if superblock.blocks_count * size > disk_size:
        raise wrong("size", f"{superblock.blocks_count * size} bytes on a disk of {disk_size}")
    in_groups = superblock.blocks_count - superblock.first_data_block
    groups = -(-in_groups // superblock.blocks_per_group)
    if superblock.inodes_count != groups * superblock.inodes_per_group or groups <= 0:
        raise wrong("inode count", superblock.inodes_count)

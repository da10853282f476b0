"""The metadata of a layer's file system: from a tree of nodes to blocks after the file data.

Feature flags and the order of the parts are those of hcsshim's compactext4, so that the kernels
and tools that read its layers read these: no journal, the readonly feature set. Beyond it,
directories of more than one block are hashed (dir_index), and checksums can be asked for.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from snapshotter.crc32c import crc32c_raw
from snapshotter.errors import Ext4UnsupportedError, LayerError
from snapshotter.ext4.directory import FILE_TYPE, entry_size, pack_directory
from snapshotter.ext4.dirhash import hash_names
from snapshotter.ext4.extent import Extent, pack_extents, split_run
from snapshotter.ext4.format import (
    BLOCK_SIZE,
    BLOCKS_PER_GROUP,
    CHECKSUM_CRC32C,
    CRC_SEED,
    FIRST_INODE,
    FLAG_SIGNED_HASH,
    HASH_HALF_MD4,
    ROOT_INODE,
    SUPERBLOCK_OFFSET,
    Compat,
    Incompat,
    RoCompat,
    Superblock,
)
from snapshotter.ext4.groups import DESCRIPTOR, checksum_bitmaps, seal_descriptors
from snapshotter.ext4.hashtree import pack_hashed_directory
from snapshotter.ext4.imagefile import ImageFile
from snapshotter.ext4.inode import INLINE_AREA, MAX_LINKS, S_IFDIR, S_IFREG, inode_seed
from snapshotter.ext4.inodetable import InodeTable
from snapshotter.ext4.layertree import NO_MEMBER, ROOT, LayerTree
from snapshotter.ext4.layout import LayerLayout
from snapshotter.ext4.xattr import pack_xattrs, seal_block

MAX_DISK_BLOCKS: Final = 1024 * BLOCKS_PER_GROUP  # 128 GiB
# Descriptors of the largest disk fit before the data, whose start must be known at the beginning.
_DESCRIPTOR_BLOCKS: Final = MAX_DISK_BLOCKS // BLOCKS_PER_GROUP * DESCRIPTOR.itemsize // BLOCK_SIZE
FIRST_DATA_BLOCK: Final = 1 + _DESCRIPTOR_BLOCKS

_FAST_SYMLINK: Final = INLINE_AREA - 1
_ONE_FLEX_GROUP: Final = 31  # s_log_groups_per_flex
_HASHED_AT_ONCE: Final = 8192  # names

Entry = tuple[int, bytes, int]  # inode, name, file type


def write_metadata(
    image: ImageFile,
    tree: LayerTree,
    *,
    uuid: uuids.UUID,
    max_blocks: int,
    checksums: bool = False,
) -> int:
    """Write everything but file data after it, then the head; returns the blocks of the disk.

    Raises LayerError where the disk gets larger than `max_blocks`, UnavailableError.
    """
    return _MetadataWriter(image, tree, uuid, checksums=checksums).write(max_blocks)


class _MetadataWriter:
    def __init__(
        self, image: ImageFile, tree: LayerTree, uuid: uuids.UUID, *, checksums: bool
    ) -> None:
        self._image = image
        self._tree = tree
        self._uuid = uuid.bytes
        self._hash_seed = uuid.bytes[::-1]
        self._seed = crc32c_raw(CRC_SEED, uuid.bytes) if checksums else None
        links = np.frombuffer(tree.links, np.uint32)
        self._live = np.flatnonzero(links).astype(np.uint32)
        # Nodes 0 and 1 have the inodes that ext4 gives root and lost+found; the others follow.
        self._inode = np.zeros(len(links), np.uint32)
        self._inode[self._live] = np.arange(FIRST_INODE - 1, FIRST_INODE - 1 + len(self._live))
        self._inode[ROOT] = ROOT_INODE
        self._table = InodeTable(tree, self._live, self._inode, seed=self._seed)
        self._inodes = FIRST_INODE - 2 + len(self._live)
        self._directories = np.zeros(self._inodes, np.bool_)
        self._has_wide_directory = False

    def write(self, max_blocks: int) -> int:
        image = self._image
        self._write_extent_trees()
        self._write_symlinks()
        self._write_xattrs()
        self._write_directories()
        layout = LayerLayout.plan(content_end=image.block, files=len(self._live) - 2)
        if layout.blocks > max_blocks:
            raise LayerError(
                f"the layer needs a disk of {layout.blocks * BLOCK_SIZE} bytes,"
                f" more than {max_blocks * BLOCK_SIZE}"
            )
        for part in self._table.rows():
            image.append(part)
        end = layout.inode_tables + layout.groups * layout.table_blocks
        while image.block < end:
            image.append(bytes(min(end - image.block, 256) * BLOCK_SIZE))
        descriptors, free_blocks = self._write_bitmaps(layout)
        superblock = self._superblock(layout, free_blocks)
        head = bytes(SUPERBLOCK_OFFSET) + superblock.pack()
        image.write_head(head.ljust(BLOCK_SIZE, b"\0") + descriptors.tobytes())
        return layout.blocks

    def _seed_of(self, node: int) -> int | None:
        return None if self._seed is None else inode_seed(int(self._inode[node]), seed=self._seed)

    def _write_extent_trees(self) -> None:
        """Place what one extent does not map: sparse files, and those above 128 MiB."""
        tree = self._tree
        wide = tree.column("size") > BLOCKS_PER_GROUP * BLOCK_SIZE
        for member in tree.extents:
            wide[member] = True
        if not wide.any():
            return
        kinds = np.frombuffer(tree.kinds, np.uint16)[self._live]
        members = np.frombuffer(tree.members, np.int32)[self._live]
        chosen = (kinds == S_IFREG) & wide[np.maximum(members, 0)]
        for node, member in zip(self._live[chosen].tolist(), members[chosen].tolist(), strict=True):
            if member in tree.extents:
                extents = [
                    Extent(logical + at, physical + at, min(BLOCKS_PER_GROUP, count - at))
                    for logical, physical, count in tree.extents[member].tolist()
                    for at in range(0, count, BLOCKS_PER_GROUP)
                ]
            else:
                size = int(tree.column("size")[member])
                extents = split_run(int(tree.column("block")[member]), -(-size // BLOCK_SIZE))
            self._map(node, extents)

    def _map(self, node: int, extents: list[Extent]) -> None:
        root, blocks = pack_extents(extents, leaf_block=self._image.block, seed=self._seed_of(node))
        if blocks:
            self._image.append(b"".join(blocks))
        used = sum(extent.count for extent in extents) + len(blocks)
        self._table.set_map(node, root, used)

    def _place_run(self, node: int, content: bytes) -> None:
        """Write `content` and make it that of `node`."""
        count = -(-len(content) // BLOCK_SIZE)
        first = self._image.append(content)
        self._table.set_run(node, first, len(content))
        if count > BLOCKS_PER_GROUP:
            self._map(node, split_run(first, count))

    def _write_symlinks(self) -> None:
        for node, target in self._tree.targets.items():
            if len(target) > _FAST_SYMLINK:
                self._place_run(node, target)

    def _write_xattrs(self) -> None:
        image = self._image
        for node, xattrs in sorted(self._tree.xattrs.items()):
            try:
                packed = pack_xattrs(xattrs)
            except (Ext4UnsupportedError, ValueError) as error:
                raise LayerError(str(error), entry=self._name_of(node)) from error
            place = 0
            if packed.block:
                place, block = image.block, packed.block
                image.append(
                    block if self._seed is None else seal_block(block, place, seed=self._seed)
                )
            self._table.set_xattrs(node, packed.tail, place)

    def _name_of(self, node: int) -> str:
        """Return a path of a live node, for errors."""
        tree, parts = self._tree, list[bytes]()
        while node != ROOT:
            above = [tree.parents[node]] if tree.is_directory(node) else tree.directories()
            parent, name = next(
                (parent, name)
                for parent in above
                for name, child in tree.children(parent).items()
                if child == node
            )
            parts.append(name)
            node = parent
        return b"/".join(reversed(parts)).decode(errors="backslashreplace") or "."

    def _write_directories(self) -> None:
        tree, inode = self._tree, self._inode
        kinds = tree.kinds
        usable = BLOCK_SIZE - 24 - (0 if self._seed is None else 12)
        waiting: list[tuple[int, list[Entry]]] = []
        names = 0
        for node in tree.directories():
            children = tree.children(node)
            numbers = inode[list(children.values())].tolist() if children else []
            entries = [
                (number, name, FILE_TYPE[kinds[child]])
                for number, (name, child) in zip(numbers, children.items(), strict=True)
            ]
            links = 2 + sum(1 for _, _, kind in entries if kind == FILE_TYPE[S_IFDIR])
            if links > MAX_LINKS:
                self._has_wide_directory = True
                links = 1  # the kernel's sign for "not counted" (dir_nlink)
            number = int(inode[node])
            self._directories[number - 1] = True
            self._table.set_links(node, links)
            if sum(map(entry_size, children)) <= usable:
                parent = int(inode[tree.parents[node]])
                self._place_run(
                    node, pack_directory(number, parent, entries, seed=self._seed_of(node))
                )
                continue
            waiting.append((node, entries))
            names += len(entries)
            if names >= _HASHED_AT_ONCE:
                self._write_hashed(waiting)
                waiting, names = [], 0
        self._write_hashed(waiting)

    def _write_hashed(self, waiting: list[tuple[int, list[Entry]]]) -> None:
        if not waiting:
            return
        hashes = hash_names(
            [name for _, entries in waiting for _, name, _ in entries], self._hash_seed
        ).tolist()
        place = 0
        for node, entries in waiting:
            content = pack_hashed_directory(
                int(self._inode[node]),
                int(self._inode[self._tree.parents[node]]),
                entries,
                hashes[place : place + len(entries)],
                seed=self._seed_of(node),
            )
            place += len(entries)
            self._place_run(node, content)
            self._table.set_hashed(node)

    def _write_bitmaps(self, layout: LayerLayout) -> tuple[NDArray[np.void], int]:
        """Write block and inode bitmaps in turn; returns the descriptors and the free blocks."""
        groups, per_group = layout.groups, layout.inodes_per_group
        used = np.zeros(groups * BLOCKS_PER_GROUP, np.bool_)
        used[: layout.used_end] = True
        used[layout.blocks :] = True  # they do not exist
        table_end = 1 + -(-groups * DESCRIPTOR.itemsize // BLOCK_SIZE)
        used[table_end:FIRST_DATA_BLOCK] = False
        for first, count in self._replaced_runs():
            used[first : first + count] = False
        in_use = np.zeros(groups * per_group, np.bool_)
        in_use[: self._inodes] = True
        directories = np.zeros(groups * per_group, np.bool_)
        directories[: self._inodes] = self._directories

        blocks = used.reshape(groups, BLOCKS_PER_GROUP)
        inodes = in_use.reshape(groups, per_group)
        bitmaps = np.full((groups, 2, BLOCK_SIZE), 0xFF, np.uint8)
        bitmaps[:, 0] = np.packbits(blocks, axis=1, bitorder="little")
        bitmaps[:, 1, : per_group // 8] = np.packbits(inodes, axis=1, bitorder="little")
        self._image.append(bitmaps.tobytes())

        number = np.arange(groups)
        descriptors = np.zeros(groups, DESCRIPTOR)
        descriptors["block_bitmap"] = layout.bitmaps + 2 * number
        descriptors["inode_bitmap"] = layout.bitmaps + 2 * number + 1
        descriptors["inode_table"] = layout.inode_tables + number * layout.table_blocks
        free = BLOCKS_PER_GROUP - blocks.sum(axis=1)
        descriptors["free_blocks"] = free
        descriptors["free_inodes"] = per_group - inodes.sum(axis=1)
        descriptors["used_dirs"] = directories.reshape(groups, per_group).sum(axis=1)
        if self._seed is not None:
            checksum_bitmaps(descriptors, bitmaps, per_group, seed=self._seed)
            seal_descriptors(descriptors, self._seed)
        return descriptors, int(free.sum())

    def _replaced_runs(self) -> Iterator[tuple[int, int]]:
        """Yield (block, count) of the data of files that a later member took the place of."""
        tree = self._tree
        sizes, blocks = tree.column("size"), tree.column("block")
        kinds = np.frombuffer(tree.kinds, np.uint16)[self._live]
        members = np.frombuffer(tree.members, np.int32)[self._live]
        kept = np.zeros(len(sizes), np.bool_)
        kept[members[(kinds == S_IFREG) & (members != NO_MEMBER)]] = True
        for member in np.flatnonzero(~kept & (sizes > 0)).tolist():
            if member in tree.extents:
                yield from ((first, count) for _, first, count in tree.extents[member].tolist())
            else:
                yield int(blocks[member]), -(-int(sizes[member]) // BLOCK_SIZE)

    def _superblock(self, layout: LayerLayout, free_blocks: int) -> Superblock:
        inodes = layout.groups * layout.inodes_per_group
        ro_compat = (
            RoCompat.LARGE_FILE | RoCompat.HUGE_FILE | RoCompat.EXTRA_ISIZE | RoCompat.READONLY
        )
        if self._has_wide_directory:
            ro_compat |= RoCompat.DIR_NLINK
        if self._seed is not None:
            ro_compat |= RoCompat.METADATA_CSUM
        return Superblock(
            inodes_count=inodes,
            blocks_count_lo=layout.blocks,
            free_blocks_count_lo=free_blocks,
            free_inodes_count=inodes - self._inodes,
            inodes_per_group=layout.inodes_per_group,
            compat=Compat.EXT_ATTR | Compat.DIR_INDEX | Compat.SPARSE_SUPER2,
            incompat=Incompat.FILETYPE | Incompat.EXTENTS | Incompat.FLEX_BG,
            ro_compat=ro_compat,
            uuid=self._uuid,
            hash_seed=self._hash_seed,
            hash_version=HASH_HALF_MD4,
            flags=FLAG_SIGNED_HASH,
            log_groups_per_flex=_ONE_FLEX_GROUP,
            checksum_type=0 if self._seed is None else CHECKSUM_CRC32C,
        )

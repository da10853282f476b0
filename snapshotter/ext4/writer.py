"""The metadata of a layer's file system: from a tree of nodes to blocks after the file data.

Feature flags and the order of the parts are those of hcsshim's compactext4, so that the kernels
and tools that read its layers read these: no journal, no checksums, the readonly feature set.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from snapshotter.errors import Ext4UnsupportedError, LayerError
from snapshotter.ext4.directory import FILE_TYPE, pack_directory
from snapshotter.ext4.extent import leaf_blocks_needed, pack_extents, split_run
from snapshotter.ext4.format import (
    BLOCK_SIZE,
    BLOCKS_PER_GROUP,
    EXTRA_ISIZE,
    FIRST_INODE,
    ROOT_INODE,
    SUPERBLOCK_OFFSET,
    Compat,
    Incompat,
    RoCompat,
    Superblock,
)
from snapshotter.ext4.groups import DESCRIPTOR
from snapshotter.ext4.imagefile import ImageFile
from snapshotter.ext4.inode import (
    INLINE_AREA,
    INODE_DTYPE,
    MAX_LINKS,
    S_IFDIR,
    S_IFLNK,
    S_IFREG,
    InodeFlag,
)
from snapshotter.ext4.layertree import LOST, NO_MEMBER, ROOT, LayerTree
from snapshotter.ext4.layout import LayerLayout
from snapshotter.ext4.xattr import pack_xattrs

MAX_DISK_BLOCKS: Final = 1024 * BLOCKS_PER_GROUP  # 128 GiB
# Descriptors of the largest disk fit before the data, whose start must be known at the beginning.
_DESCRIPTOR_BLOCKS: Final = MAX_DISK_BLOCKS // BLOCKS_PER_GROUP * DESCRIPTOR.itemsize // BLOCK_SIZE
FIRST_DATA_BLOCK: Final = 1 + _DESCRIPTOR_BLOCKS

_SECTORS: Final = BLOCK_SIZE // 512  # i_blocks counts these
_FAST_SYMLINK: Final = INLINE_AREA - 1
_ONE_FLEX_GROUP: Final = 31  # s_log_groups_per_flex
_ROOT_MODE, _LOST_MODE = 0o755, 0o700
_LOW: Final = np.int64(0xFFFF_FFFF)


def write_metadata(image: ImageFile, tree: LayerTree, *, uuid: uuids.UUID, max_blocks: int) -> int:
    """Write everything but file data after it, then the head; returns the blocks of the disk.

    Raises LayerError where the disk gets larger than `max_blocks`, UnavailableError.
    """
    return _MetadataWriter(image, tree).write(uuid, max_blocks)


class _MetadataWriter:
    def __init__(self, image: ImageFile, tree: LayerTree) -> None:
        self._image = image
        self._tree = tree
        self._live = np.flatnonzero(np.array(tree.links))
        # Nodes 0 and 1 have the inodes that ext4 gives root and lost+found; the others follow.
        self._inode = np.zeros(len(tree.links), np.int64)
        self._inode[self._live] = np.arange(FIRST_INODE - 1, FIRST_INODE - 1 + len(self._live))
        self._inode[ROOT] = ROOT_INODE
        self._member = np.array(tree.members)[self._live]
        self._kind = np.array(tree.kinds)[self._live]
        self._sizes = tree.column("size")
        self._blocks = tree.column("block")
        self._table = np.zeros(FIRST_INODE - 2 + len(self._live), INODE_DTYPE)
        self._has_wide_directory = False

    def write(self, uuid: uuids.UUID, max_blocks: int) -> int:
        image = self._image
        rows = np.zeros(len(self._live), INODE_DTYPE)
        self._fill_common(rows)
        self._fill_files(rows)
        self._table[self._inode[self._live] - 1] = rows
        del rows
        self._write_symlinks()
        self._write_devices()
        self._write_xattrs()
        self._write_directories()
        layout = LayerLayout.plan(content_end=image.block, files=len(self._live) - 2)
        if layout.blocks > max_blocks:
            raise LayerError(
                f"the layer needs a disk of {layout.blocks * BLOCK_SIZE} bytes,"
                f" more than {max_blocks * BLOCK_SIZE}"
            )
        self._write_table(layout)
        descriptors, free_blocks = self._write_bitmaps(layout)
        superblock = self._superblock(layout, uuid, free_blocks)
        head = bytes(SUPERBLOCK_OFFSET) + superblock.pack()
        image.write_head(head.ljust(BLOCK_SIZE, b"\0") + descriptors.tobytes())
        return layout.blocks

    def _row(self, node: int) -> NDArray[np.void]:
        """Return the inode of a node, as a row of the table to write to."""
        at = int(self._inode[node]) - 1
        return self._table[at : at + 1]

    def _fill_common(self, rows: NDArray[np.void]) -> None:
        tree, described = self._tree, self._member != NO_MEMBER
        member = np.maximum(self._member, 0)

        def of_members(name: str) -> NDArray[np.int64]:
            column = tree.column(name)
            return np.where(described, column[member], 0) if len(column) else np.zeros_like(member)

        mode = of_members("mode") & 0o7777
        mode[~described & (self._kind == S_IFDIR)] = _ROOT_MODE
        if not described[LOST]:
            mode[LOST] = _LOST_MODE
        mode[self._kind == S_IFLNK] = 0o777
        rows["mode"] = self._kind | mode
        uid, gid = of_members("uid"), of_members("gid")
        rows["uid_lo"], rows["uid_hi"] = uid & 0xFFFF, uid >> 16
        rows["gid_lo"], rows["gid_hi"] = gid & 0xFFFF, gid >> 16
        mtime = of_members("mtime")
        low = (mtime & _LOW).astype(np.uint32)
        extra = ((mtime - low.view(np.int32)) >> 32 & 3) | of_members("mtime_ns") << 2
        for name in ("atime", "ctime", "mtime", "crtime"):
            rows[name], rows[f"{name}_extra"] = low, extra
        rows["links"] = np.array(tree.links)[self._live]
        rows["extra_isize"] = EXTRA_ISIZE

    def _fill_files(self, rows: NDArray[np.void]) -> None:
        """Set size and extents of regular files; their data lies in one run each."""
        at = np.flatnonzero(self._kind == S_IFREG)
        size = self._sizes[self._member[at]]
        first = self._blocks[self._member[at]]
        blocks = -(-size // BLOCK_SIZE)
        rows["size_lo"][at], rows["size_hi"][at] = size & _LOW, size >> 32
        rows["blocks_lo"][at] = blocks * _SECTORS
        rows["flags"][at] = int(InodeFlag.EXTENTS)
        # One extent of at most 128 MiB, or none, covers nearly all; the others are packed singly.
        single = np.zeros((len(at), INLINE_AREA // 4), "<u4")
        empty, _ = pack_extents([])
        single[:] = np.frombuffer(empty, "<u4")
        one = np.frombuffer(pack_extents(split_run(1, 1))[0], "<u4")
        single[size > 0] = one
        single[:, 4] = np.where(blocks <= BLOCKS_PER_GROUP, blocks, 0)
        single[:, 5] = np.where(size > 0, first, 0)
        rows["block"][at] = single.view(np.uint8)
        for index in np.flatnonzero(blocks > BLOCKS_PER_GROUP).tolist():
            count = int(blocks[index])
            root, leaves = pack_extents(
                split_run(int(first[index]), count), leaf_block=self._image.block
            )
            self._image.append(b"".join(leaves))
            rows["block"][at[index]] = np.frombuffer(root, np.uint8)
            rows["blocks_lo"][at[index]] += leaf_blocks_needed(count) * _SECTORS

    def _place_run(self, node: int, content: bytes) -> None:
        """Write `content` and make it that of `node`."""
        row = self._row(node)
        count = -(-len(content) // BLOCK_SIZE)
        extents = split_run(self._image.append(content), count)
        root, leaves = pack_extents(extents, leaf_block=self._image.block)
        if leaves:
            self._image.append(b"".join(leaves))
        row["size_lo"], row["size_hi"] = len(content) & _LOW, len(content) >> 32
        row["blocks_lo"] += (count + len(leaves)) * _SECTORS
        row["flags"] |= np.uint32(InodeFlag.EXTENTS)
        row["block"] = np.frombuffer(root, np.uint8)

    def _write_symlinks(self) -> None:
        for node, target in self._tree.targets.items():
            if len(target) > _FAST_SYMLINK:
                self._place_run(node, target)
                continue
            row = self._row(node)
            row["size_lo"] = len(target)
            row["block"] = np.frombuffer(target.ljust(INLINE_AREA, b"\0"), np.uint8)

    def _write_devices(self) -> None:
        for node, device in self._tree.devices.items():
            self._row(node)["block"][0, 4:8] = np.frombuffer(device.to_bytes(4, "little"), np.uint8)

    def _write_xattrs(self) -> None:
        for node, xattrs in sorted(self._tree.xattrs.items()):
            try:
                packed = pack_xattrs(xattrs)
            except (Ext4UnsupportedError, ValueError) as error:
                raise LayerError(str(error), entry=self._name_of(node)) from error
            row = self._row(node)
            row["tail"] = np.frombuffer(packed.tail, np.uint8)
            if packed.block:
                row["acl_lo"] = self._image.append(packed.block)
                row["blocks_lo"] += _SECTORS

    def _name_of(self, node: int) -> str:
        """Return a path of a live node, for errors."""
        tree, parts = self._tree, list[bytes]()
        while node != ROOT:
            above = [tree.parents[node]] if node in tree.parents else tree.children
            parent, name = next(
                (parent, name)
                for parent in above
                for name, child in tree.children[parent].items()
                if child == node
            )
            parts.append(name)
            node = parent
        return b"/".join(reversed(parts)).decode(errors="backslashreplace") or "."

    def _write_directories(self) -> None:
        tree = self._tree
        inode = self._inode.tolist()
        file_type = [FILE_TYPE[kind] for kind in tree.kinds]
        for node, names in tree.children.items():
            entries = ((inode[child], name, file_type[child]) for name, child in names.items())
            self._place_run(node, pack_directory(inode[node], inode[tree.parents[node]], entries))
            links = 2 + _count_directories(names.values(), tree)
            if links > MAX_LINKS:
                self._has_wide_directory = True
                links = 1  # the kernel's sign for "not counted" (dir_nlink)
            self._row(node)["links"] = links

    def _write_table(self, layout: LayerLayout) -> None:
        table = self._table
        for start in range(0, len(table), 1 << 16):
            self._image.append(table[start : start + (1 << 16)].tobytes())
        end = layout.inode_tables + layout.groups * layout.table_blocks
        while self._image.block < end:
            self._image.append(bytes(min(end - self._image.block, 256) * BLOCK_SIZE))

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
        in_use[: len(self._table)] = True
        directories = np.zeros(groups * per_group, np.bool_)
        directories[: len(self._table)] = self._table["mode"] & 0o170000 == S_IFDIR

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
        return descriptors, int(free.sum())

    def _replaced_runs(self) -> Iterable[tuple[int, int]]:
        """Return (block, count) of the data of files that a later member took the place of."""
        kept = np.zeros(len(self._sizes), np.bool_)
        kept[self._member[self._kind == S_IFREG]] = True
        gone = np.flatnonzero(~kept & (self._sizes > 0))
        counts = -(-self._sizes[gone] // BLOCK_SIZE)
        return zip(self._blocks[gone].tolist(), counts.tolist(), strict=True)

    def _superblock(self, layout: LayerLayout, uuid: uuids.UUID, free_blocks: int) -> Superblock:
        inodes = layout.groups * layout.inodes_per_group
        ro_compat = (
            RoCompat.LARGE_FILE | RoCompat.HUGE_FILE | RoCompat.EXTRA_ISIZE | RoCompat.READONLY
        )
        if self._has_wide_directory:
            ro_compat |= RoCompat.DIR_NLINK
        return Superblock(
            inodes_count=inodes,
            blocks_count_lo=layout.blocks,
            free_blocks_count_lo=free_blocks,
            free_inodes_count=inodes - len(self._table),
            inodes_per_group=layout.inodes_per_group,
            compat=Compat.EXT_ATTR | Compat.SPARSE_SUPER2,
            incompat=Incompat.FILETYPE | Incompat.EXTENTS | Incompat.FLEX_BG,
            ro_compat=ro_compat,
            uuid=uuid.bytes,
            log_groups_per_flex=_ONE_FLEX_GROUP,
        )


def _count_directories(nodes: Iterable[int], tree: LayerTree) -> int:
    return sum(1 for node in nodes if tree.kinds[node] == S_IFDIR)

"""The inode table of a layer, made a few thousand inodes at a time from the columns of its members.

What single nodes have besides is noted before: a block run, a map of extents, xattrs, links.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from snapshotter.crc32c import crc32c_raw
from snapshotter.ext4.extent import pack_extents, split_run
from snapshotter.ext4.format import (
    BLOCK_SIZE,
    BLOCKS_PER_GROUP,
    EXTRA_ISIZE,
    FIRST_INODE,
    INODE_SIZE,
    INODES_PER_BLOCK,
)
from snapshotter.ext4.inode import (
    INLINE_AREA,
    INODE_DTYPE,
    S_IFDIR,
    S_IFLNK,
    S_IFREG,
    InodeFlag,
    inode_seed,
)
from snapshotter.ext4.layertree import LOST, NO_MEMBER, ROOT, LayerTree

_SECTORS: Final = BLOCK_SIZE // 512  # i_blocks counts these
_ROOT_MODE, _LOST_MODE = 0o755, 0o700
_LOW: Final = np.int64(0xFFFF_FFFF)
_AT_ONCE: Final = 1024 * INODES_PER_BLOCK  # inodes: 4 MiB
_FAST_SYMLINK: Final = INLINE_AREA - 1

Rows = NDArray[np.void]


class InodeTable:
    """What the inodes of a tree hold; `rows` gives the table, whole blocks at a time."""

    def __init__(
        self,
        tree: LayerTree,
        live: NDArray[np.uint32],
        inode: NDArray[np.uint32],
        *,
        seed: int | None,
    ) -> None:
        """`live` are the nodes that exist, ascending; `inode` the inode number of every node."""
        self._tree = tree
        self._live = live
        self._inode = inode
        self._seed = seed
        self._run = np.zeros(len(inode), np.uint32)
        self._run_size = np.zeros(len(inode), np.uint32)
        self._devices = tree.devices
        self._hashed = np.zeros(len(inode), np.bool_)
        self._links = np.frombuffer(tree.links, np.uint32).copy()
        self._maps: dict[int, tuple[bytes, int]] = {}
        self._xattrs: dict[int, tuple[bytes, int]] = {}
        self._tails: dict[bytes, bytes] = {}  # many are alike

    def set_run(self, node: int, first: int, size: int) -> None:
        """Give a directory or symlink its content: `size` bytes from block `first` on."""
        self._run[node], self._run_size[node] = first, size

    def set_map(self, node: int, root: bytes, blocks: int) -> None:
        """Give a node its i_block, and what it takes up, blocks of the map included."""
        self._maps[node] = root, blocks

    def set_hashed(self, node: int) -> None:
        """Mark a directory as hashed."""
        self._hashed[node] = True

    def set_links(self, node: int, links: int) -> None:
        """Set the link count of a directory; others have one a name."""
        self._links[node] = links

    def set_xattrs(self, node: int, tail: bytes, block: int) -> None:
        """Give a node what follows its fields, and the block of its other xattrs or 0."""
        self._xattrs[node] = self._tails.setdefault(tail, tail), block

    def rows(self) -> Iterator[bytes]:
        """Yield the table from inode 1 on; all but the last part are whole blocks."""
        special = np.array(sorted({*self._maps, *self._xattrs, *self._tree.targets}), np.uint32)
        root = self._rows(self._live[:1], special)
        head = np.zeros(FIRST_INODE - 1, INODE_DTYPE)  # inodes 1 to 10
        head[1] = root[0]
        self._seal(head[1:2], [2])
        # Node 1 is inode 11, and so on without a gap.
        left = head
        place = 1
        while place < len(self._live) or len(left):
            count = _AT_ONCE - len(left)
            rows = self._rows(self._live[place : place + count], special)
            self._seal(rows, range(FIRST_INODE - 1 + place, FIRST_INODE - 1 + place + len(rows)))
            place += len(rows)
            yield np.concatenate([left, rows]).tobytes()
            left = left[:0]

    def _seal(self, rows: Rows, numbers: range | list[int]) -> None:
        if self._seed is None:
            return
        raw = rows.tobytes()
        sums = np.array(
            [
                crc32c_raw(inode_seed(number, seed=self._seed), raw[at : at + INODE_SIZE])
                for number, at in zip(numbers, range(0, len(raw), INODE_SIZE), strict=True)
            ],
            np.uint32,
        )
        rows["checksum_lo"], rows["checksum_hi"] = sums & 0xFFFF, sums >> 16

    def _rows(self, nodes: NDArray[np.uint32], special: NDArray[np.uint32]) -> Rows:
        rows = np.zeros(len(nodes), INODE_DTYPE)
        kind = np.frombuffer(self._tree.kinds, np.uint16)[nodes]
        member = np.frombuffer(self._tree.members, np.int32)[nodes]
        self._fill_common(rows, nodes, kind, member)
        self._fill_runs(rows, nodes, kind, member)
        if len(nodes):
            begin, end = np.searchsorted(special, [nodes[0], int(nodes[-1]) + 1]).tolist()
            wanted = special[begin:end]
            at = np.searchsorted(nodes, wanted)
            for node, row in zip(wanted.tolist(), at.tolist(), strict=True):
                if int(nodes[row]) == node:
                    self._fill_special(rows[row : row + 1], node)
        return rows

    def _fill_common(
        self,
        rows: Rows,
        nodes: NDArray[np.uint32],
        kind: NDArray[np.uint16],
        member: NDArray[np.int32],
    ) -> None:
        tree, described = self._tree, member != NO_MEMBER
        index = np.maximum(member, 0)

        def of_members(name: str) -> NDArray[np.int64]:
            column = tree.column(name)
            if not len(column):
                return np.zeros(len(member), np.int64)
            return np.where(described, column[index].astype(np.int64), 0)

        mode = of_members("mode") & 0o7777
        mode[~described & (kind == S_IFDIR)] = _ROOT_MODE
        mode[~described & (nodes == LOST)] = _LOST_MODE
        mode[kind == S_IFLNK] = 0o777
        rows["mode"] = kind | mode
        uid, gid = of_members("uid"), of_members("gid")
        rows["uid_lo"], rows["uid_hi"] = uid & 0xFFFF, uid >> 16
        rows["gid_lo"], rows["gid_hi"] = gid & 0xFFFF, gid >> 16
        mtime = of_members("mtime")
        low = (mtime & _LOW).astype(np.uint32)
        extra = ((mtime - low.view(np.int32)) >> 32 & 3) | of_members("mtime_ns") << 2
        for name in ("atime", "ctime", "mtime", "crtime"):
            rows[name], rows[f"{name}_extra"] = low, extra
        rows["links"] = self._links[nodes]
        rows["extra_isize"] = EXTRA_ISIZE

    def _fill_runs(
        self,
        rows: Rows,
        nodes: NDArray[np.uint32],
        kind: NDArray[np.uint16],
        member: NDArray[np.int32],
    ) -> None:
        """Set size and extent of what lies in one run of at most 128 MiB: nearly everything."""
        tree = self._tree
        size = self._run_size[nodes].astype(np.int64)
        first = self._run[nodes].astype(np.int64)
        files = kind == S_IFREG
        if files.any():
            size[files] = tree.column("size")[member[files]]
            first[files] = tree.column("block")[member[files]]
        mapped = np.flatnonzero(files | (first > 0))
        size, first = size[mapped], first[mapped]
        blocks = -(-size // BLOCK_SIZE)
        rows["size_lo"][mapped], rows["size_hi"][mapped] = size & _LOW, size >> 32
        rows["blocks_lo"][mapped] = blocks * _SECTORS
        rows["flags"][mapped] = int(InodeFlag.EXTENTS)
        single = np.zeros((len(mapped), INLINE_AREA // 4), "<u4")
        empty, _ = pack_extents([])
        single[:] = np.frombuffer(empty, "<u4")
        one = np.frombuffer(pack_extents(split_run(1, 1))[0], "<u4")
        single[size > 0] = one
        single[:, 4] = np.where(blocks <= BLOCKS_PER_GROUP, blocks, 0)
        single[:, 5] = np.where(size > 0, first, 0)
        rows["block"][mapped] = single.view(np.uint8)
        rows["flags"][self._hashed[nodes]] |= np.uint32(InodeFlag.INDEX)
        devices = self._devices[nodes]
        marked = np.flatnonzero(devices)
        rows["block"][marked, 4:8] = devices[marked].astype("<u4").view(np.uint8).reshape(-1, 4)

    def _fill_special(self, row: Rows, node: int) -> None:
        if node in self._maps:
            root, blocks = self._maps[node]
            row["block"] = np.frombuffer(root, np.uint8)
            row["blocks_lo"] = blocks * _SECTORS
        target = self._tree.targets.get(node, b"")
        if 0 < len(target) <= _FAST_SYMLINK:
            row["size_lo"] = len(target)
            row["block"] = np.frombuffer(target.ljust(INLINE_AREA, b"\0"), np.uint8)
        if node in self._xattrs:
            tail, block = self._xattrs[node]
            row["tail"] = np.frombuffer(tail, np.uint8)
            if block:
                row["acl_lo"] = block
                row["blocks_lo"] += _SECTORS


assert ROOT == 0

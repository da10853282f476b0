"""Where the parts of an ext4 lie: an empty scratch disk, and a packed read-only layer.

Both use one flex group for the whole disk, so that bitmaps and inode tables may lie anywhere and
all of them together. Scratch order, so that everything that is not zero fits the first MiB of a
20 GB disk::

    superblock | descriptors | room for more of them | block bitmaps | inode bitmap 0 | root
    | lost+found | map of that room | journal head | inode tables | other inode bitmaps
    | rest of the journal | free

Layer order, so that the data can be written while it arrives::

    superblock | room for descriptors | file data, directories, ... | inode tables | bitmaps
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from snapshotter.errors import InvalidArgumentError
from snapshotter.ext4.format import (
    BLOCK_SIZE,
    BLOCKS_PER_GROUP,
    FIRST_INODE,
    INODES_PER_BLOCK,
    MAX_INODES_PER_GROUP,
)
from snapshotter.ext4.groups import DESCRIPTOR, DESCRIPTOR_64
from snapshotter.units import GIB, KIB, MIB, TIB

MIN_SCRATCH: Final = 1 * GIB
MAX_SCRATCH: Final = 64 * TIB  # the largest VHDX
MIN_JOURNAL_MIB: Final = 4  # JBD2_MIN_JOURNAL_BLOCKS
MAX_JOURNAL_MIB: Final = 256  # beyond, the inode's four extents do not reach

Blocks = NDArray[np.int64]

# From 2^32 blocks on, block numbers need the 64bit feature and descriptors of 64 bytes.
_NARROW_LIMIT = (1 << 32) * BLOCK_SIZE


@dataclass(frozen=True, slots=True, eq=False)
class ScratchLayout:
    """Block numbers of an empty file system; see the module's first diagram.

    One that may grow keeps room for copies of superblock and descriptors in the groups `backups`,
    `backup_blocks` each; what else there is lies around them, and `gaps` before some stay free.
    """

    blocks: int
    groups: int
    descriptor_size: int
    descriptor_blocks: int
    reserved_descriptor_blocks: int
    backups: tuple[int, ...]
    inodes_per_group: int
    block_bitmaps: Blocks
    inode_bitmaps: Blocks
    inode_tables: Blocks  # the first block of each
    root: int
    lost_and_found: int
    resize_map: int  # 0: cannot grow
    journal: Blocks
    gaps: tuple[tuple[int, int], ...]
    first_free: int

    @property
    def table_blocks(self) -> int:
        """Blocks of one group's inode table."""
        return self.inodes_per_group // INODES_PER_BLOCK

    @property
    def backup_blocks(self) -> int:
        """Blocks that each copy of superblock and descriptors takes, growth included."""
        return 1 + self.descriptor_blocks + self.reserved_descriptor_blocks

    @property
    def can_grow(self) -> bool:
        """True where there is room for descriptors of more groups."""
        return bool(self.resize_map)

    def used(self) -> Blocks:
        """Return how many blocks of each group are in use."""
        start = np.arange(self.groups, dtype=np.int64) * BLOCKS_PER_GROUP
        valid = np.minimum(self.blocks - start, BLOCKS_PER_GROUP)
        used = np.minimum(np.maximum(self.first_free - start, 0), valid)
        for first, end in self.gaps:
            group = first // BLOCKS_PER_GROUP
            used[group] -= end - first
        for group in self.backups:
            if group * BLOCKS_PER_GROUP >= self.first_free:
                used[group] += self.backup_blocks
        return used

    def mask(self, group: int) -> NDArray[np.bool_]:
        """Return which blocks of one group are in use, those that do not exist included."""
        start = group * BLOCKS_PER_GROUP
        mask = np.zeros(BLOCKS_PER_GROUP, np.bool_)
        mask[: max(self.first_free - start, 0)] = True
        for first, end in self.gaps:
            if first // BLOCKS_PER_GROUP == group:
                mask[first - start : end - start] = False
        if group in self.backups:
            mask[: self.backup_blocks] = True
        mask[self.blocks - start :] = True
        return mask

    @property
    def overhead(self) -> int:
        """Blocks that can never hold files, as the kernel counts them for statfs."""
        return int(self.used().sum()) - 2  # all but the root directory and lost+found

    @classmethod
    def plan(cls, size: int, *, journal_mib: int = 0, grow_to: int | None = None) -> ScratchLayout:
        """Return the layout of `size` bytes that can be grown while mounted to `grow_to` bytes.

        Raises InvalidArgumentError where size, journal or growth are out of range.
        """
        _check(size, journal_mib, grow_to)
        blocks = size // BLOCK_SIZE
        groups = -(-blocks // BLOCKS_PER_GROUP)
        descriptor_size = (DESCRIPTOR_64 if size >= _NARROW_LIMIT else DESCRIPTOR).itemsize
        descriptor_blocks = -(-groups * descriptor_size // BLOCK_SIZE)
        reserved = 0
        backups: tuple[int, ...] = ()
        if grow_to is not None:
            most = -(-grow_to // (BLOCKS_PER_GROUP * BLOCK_SIZE))
            reserved = max(-(-most * descriptor_size // BLOCK_SIZE) - descriptor_blocks, 1)
            backups = backup_groups(groups)
        head = 1 + descriptor_blocks + reserved
        last = blocks - (groups - 1) * BLOCKS_PER_GROUP
        if backups and backups[-1] == groups - 1 and last <= head:
            raise InvalidArgumentError(
                f"a scratch disk of {size} bytes that can grow: its last {last} blocks are too few"
                f" for a copy of the descriptors; give {size - last * BLOCK_SIZE} bytes"
            )
        inodes_per_group = BLOCKS_PER_GROUP * BLOCK_SIZE // _bytes_per_inode(size)
        journal_blocks = journal_mib * MIB // BLOCK_SIZE

        cursor = _Cursor(head, [(g * BLOCKS_PER_GROUP, head) for g in backups])
        block_bitmaps = cursor.take(groups)
        first_inode_bitmap = cursor.take(1)
        root, lost_and_found = cursor.take(2).tolist()
        resize_map = int(cursor.take(1)[0]) if reserved else 0
        journal_head = cursor.take(min(journal_blocks, 1))
        inode_tables = cursor.take(groups, length=inodes_per_group // INODES_PER_BLOCK)
        other_inode_bitmaps = cursor.take(groups - 1)
        journal_rest = cursor.take(max(journal_blocks - 1, 0))
        return cls(
            blocks=blocks,
            groups=groups,
            descriptor_size=descriptor_size,
            descriptor_blocks=descriptor_blocks,
            reserved_descriptor_blocks=reserved,
            backups=backups,
            inodes_per_group=inodes_per_group,
            block_bitmaps=block_bitmaps,
            inode_bitmaps=np.concatenate([first_inode_bitmap, other_inode_bitmaps]),
            inode_tables=inode_tables,
            root=root,
            lost_and_found=lost_and_found,
            resize_map=resize_map,
            journal=np.concatenate([journal_head, journal_rest]),
            gaps=tuple(cursor.gaps),
            first_free=cursor.block,
        )


class _Cursor:
    """Gives out blocks in order, around holes of `length` blocks at given places."""

    def __init__(self, block: int, holes: list[tuple[int, int]]) -> None:
        self.block = block
        self.gaps: list[tuple[int, int]] = []  # too short for what was asked
        self._holes = holes

    def take(self, count: int, *, length: int = 1) -> Blocks:
        """Return the starts of `count` runs of `length` blocks."""
        parts: list[Blocks] = [np.zeros(0, np.int64)]
        while count:
            room = count
            if self._holes:
                room = min(count, (self._holes[0][0] - self.block) // length)
            parts.append(self.block + length * np.arange(room, dtype=np.int64))
            self.block += room * length
            count -= room
            if count:
                start, hole = self._holes.pop(0)
                if start > self.block:
                    self.gaps.append((self.block, start))
                self.block = start + hole
        return np.concatenate(parts)


def backup_groups(groups: int) -> tuple[int, ...]:
    """Return the groups that keep copies of the superblock: 1 and the powers of 3, 5 and 7."""
    found = {1}
    for base in (3, 5, 7):
        power = base
        while power < groups:
            found.add(power)
            power *= base
    return tuple(sorted(group for group in found if group < groups))


def runs_of(starts: Blocks, *, length: int = 1) -> list[tuple[int, int]]:
    """Return (first, count) of each stretch of neighbours among ascending runs of `length`."""
    if not len(starts):
        return []
    breaks = np.flatnonzero(starts[1:] - starts[:-1] != length) + 1
    edges = [0, *breaks.tolist(), len(starts)]
    return [(int(starts[low]), (high - low) * length) for low, high in pairwise(edges)]


def _check(size: int, journal_mib: int, grow_to: int | None) -> None:
    if not MIN_SCRATCH <= size <= MAX_SCRATCH:
        raise InvalidArgumentError(f"a scratch disk of {size} bytes: give between 1 GiB and 64 TiB")
    if size % BLOCK_SIZE:
        raise InvalidArgumentError(f"a scratch disk of {size} bytes: give a multiple of 4096")
    if journal_mib and not MIN_JOURNAL_MIB <= journal_mib <= MAX_JOURNAL_MIB:
        raise InvalidArgumentError(
            f"a journal of {journal_mib} MiB: give 0 for none,"
            f" or {MIN_JOURNAL_MIB} to {MAX_JOURNAL_MIB}"
        )
    if grow_to is not None and not size <= grow_to < _NARROW_LIMIT:
        raise InvalidArgumentError(
            f"growth from {size} to {grow_to} bytes: give at least the size, and less than 16 TiB"
        )


def _bytes_per_inode(size: int) -> int:
    # The ratios of mke2fs.conf for default, big and huge file systems; inode numbers have 32 bits.
    if size < 4 * TIB:
        return 16 * KIB
    return 32 * KIB if size < 16 * TIB else 64 * KIB


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """Block numbers of the parts after a layer's content; see the module's second diagram."""

    inodes_per_group: int
    groups: int
    inode_tables: int
    bitmaps: int  # block bitmap and inode bitmap of group 0, of group 1, ...
    used_end: int
    blocks: int

    @property
    def table_blocks(self) -> int:
        """Blocks of one group's inode table."""
        return self.inodes_per_group // INODES_PER_BLOCK

    @classmethod
    def plan(cls, *, content_end: int, files: int) -> LayerLayout:
        """Return the smallest layout for content that ends before block `content_end`.

        `files` counts the inodes besides the reserved ones.
        """
        inodes = FIRST_INODE + files
        groups = max(-(-content_end // BLOCKS_PER_GROUP), -(-inodes // MAX_INODES_PER_GROUP))
        while True:
            per_group = -(-inodes // groups)
            per_group += -per_group % INODES_PER_BLOCK
            bitmaps = content_end + groups * (per_group // INODES_PER_BLOCK)
            used_end = bitmaps + 2 * groups
            if used_end <= groups * BLOCKS_PER_GROUP:
                # Many empty files: the disk must reach into the last group that has inodes.
                blocks = max(used_end, (groups - 1) * BLOCKS_PER_GROUP + 1)
                return cls(per_group, groups, content_end, bitmaps, used_end, blocks)
            groups += 1

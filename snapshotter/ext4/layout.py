"""Where the parts of an ext4 lie: an empty scratch disk, and a packed read-only layer.

Both use one flex group for the whole disk, so that bitmaps and inode tables may lie anywhere and
all of them together. Scratch order, so that everything that is not zero fits the first MiB of a
20 GB disk::

    superblock | descriptors | block bitmaps | inode bitmap 0 | root | lost+found | journal head
    | inode tables | other inode bitmaps | rest of the journal | free

Layer order, so that the data can be written while it arrives::

    superblock | room for descriptors | file data, directories, ... | inode tables | bitmaps
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from snapshotter.errors import InvalidArgumentError
from snapshotter.ext4.format import (
    BLOCK_SIZE,
    BLOCKS_PER_GROUP,
    FIRST_INODE,
    INODE_SIZE,
    INODES_PER_BLOCK,
    MAX_INODES_PER_GROUP,
)
from snapshotter.ext4.groups import DESCRIPTOR, DESCRIPTOR_64
from snapshotter.units import GIB, KIB, MIB, TIB

MIN_SCRATCH: Final = 1 * GIB
MAX_SCRATCH: Final = 64 * TIB  # the largest VHDX
MIN_JOURNAL_MIB: Final = 4  # JBD2_MIN_JOURNAL_BLOCKS
MAX_JOURNAL_MIB: Final = 256  # beyond, the inode's four extents do not reach

# Beyond 2^32 blocks, block numbers need the 64bit feature and descriptors of 64 bytes.
_NARROW_LIMIT = (1 << 32) * BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class ScratchLayout:
    """Block numbers of an empty file system; see the module's first diagram."""

    blocks: int
    groups: int
    descriptor_size: int
    descriptor_blocks: int
    inodes_per_group: int
    block_bitmaps: int
    first_inode_bitmap: int
    root: int
    lost_and_found: int
    journal_head: int  # 0: no journal
    inode_tables: int
    other_inode_bitmaps: int
    journal_rest: int
    journal_blocks: int
    first_free: int

    @property
    def table_blocks(self) -> int:
        """Blocks of one group's inode table."""
        return self.inodes_per_group // INODES_PER_BLOCK

    @property
    def overhead(self) -> int:
        """Blocks that can never hold files, as the kernel counts them for statfs."""
        return self.first_free - 2  # all but the root directory and lost+found

    @classmethod
    def plan(cls, size: int, *, journal_mib: int = 0) -> ScratchLayout:
        """Return the layout of `size` bytes.

        Raises InvalidArgumentError where size or journal are out of range.
        """
        if not MIN_SCRATCH <= size <= MAX_SCRATCH:
            raise InvalidArgumentError(
                f"a scratch disk of {size} bytes: give between 1 GiB and 64 TiB"
            )
        if size % BLOCK_SIZE:
            raise InvalidArgumentError(f"a scratch disk of {size} bytes: give a multiple of 4096")
        if journal_mib and not MIN_JOURNAL_MIB <= journal_mib <= MAX_JOURNAL_MIB:
            raise InvalidArgumentError(
                f"a journal of {journal_mib} MiB: give 0 for none,"
                f" or {MIN_JOURNAL_MIB} to {MAX_JOURNAL_MIB}"
            )
        blocks = size // BLOCK_SIZE
        groups = -(-blocks // BLOCKS_PER_GROUP)
        descriptor_size = (DESCRIPTOR_64 if size > _NARROW_LIMIT else DESCRIPTOR).itemsize
        descriptor_blocks = -(-groups * descriptor_size // BLOCK_SIZE)
        inodes_per_group = BLOCKS_PER_GROUP * BLOCK_SIZE // _bytes_per_inode(size)
        journal_blocks = journal_mib * MIB // BLOCK_SIZE

        block_bitmaps = 1 + descriptor_blocks
        first_inode_bitmap = block_bitmaps + groups
        root = first_inode_bitmap + 1
        lost_and_found = root + 1
        journal_head = lost_and_found + 1 if journal_blocks else 0
        inode_tables = lost_and_found + (2 if journal_blocks else 1)
        other_bitmaps = inode_tables + groups * (inodes_per_group * INODE_SIZE // BLOCK_SIZE)
        journal_rest = other_bitmaps + groups - 1
        first_free = journal_rest + max(journal_blocks - 1, 0)
        return cls(
            blocks=blocks,
            groups=groups,
            descriptor_size=descriptor_size,
            descriptor_blocks=descriptor_blocks,
            inodes_per_group=inodes_per_group,
            block_bitmaps=block_bitmaps,
            first_inode_bitmap=first_inode_bitmap,
            root=root,
            lost_and_found=lost_and_found,
            journal_head=journal_head,
            inode_tables=inode_tables,
            other_inode_bitmaps=other_bitmaps,
            journal_rest=journal_rest,
            journal_blocks=journal_blocks,
            first_free=first_free,
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

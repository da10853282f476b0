"""An empty ext4 straight from a computation: what a scratch disk holds before its first use.

The result is what `mke2fs -O ^has_journal,sparse_super2,^resize_inode -E lazy_itable_init=0` would
make, with its metadata packed into the first MiB instead of one spot a flex group: a VHDX with
1 MiB blocks then carries one payload block instead of thirteen, and grows less in use.

Without `grow_to` there are no backup superblocks (sparse_super2 with none), and Linux refuses to
grow such a file system while it is mounted. With it, there are the classic resize inode and
sparse_super: the groups that would hold backups keep the room for them, but nothing is written
there until the file system grows or e2fsck repairs it, so that the fresh disk stays as small.
"""

from __future__ import annotations

import struct
import time
import uuid as uuids
from typing import Final

import numpy as np
from numpy.typing import NDArray

from snapshotter.blockio import DiskContent
from snapshotter.crc32c import crc32c_raw
from snapshotter.errors import InvalidArgumentError
from snapshotter.ext4.directory import pack_directory
from snapshotter.ext4.extent import Extent, pack_extents, split_run
from snapshotter.ext4.format import (
    BLOCK_SIZE,
    BLOCKS_PER_GROUP,
    CHECKSUM_CRC32C,
    CRC_SEED,
    EXTRA_ISIZE,
    FIRST_INODE,
    FLAG_SIGNED_HASH,
    HASH_HALF_MD4,
    INODE_SIZE,
    JOURNAL_INODE,
    LOST_AND_FOUND,
    RESIZE_INODE,
    ROOT_INODE,
    SUPERBLOCK_OFFSET,
    Compat,
    Incompat,
    RoCompat,
    Superblock,
)
from snapshotter.ext4.groups import (
    DESCRIPTOR,
    DESCRIPTOR_64,
    GroupFlag,
    prefix_bitmap,
    seal_descriptors,
)
from snapshotter.ext4.inode import (
    S_IFDIR,
    S_IFREG,
    Inode,
    InodeFlag,
    encode_time,
    inode_seed,
)
from snapshotter.ext4.layout import ScratchLayout, runs_of

_LABEL_SIZE: Final = 16
_LOW: Final = 0xFFFF_FFFF
_RESERVED_FRACTION: Final = 20  # 5 % for root, as mke2fs
_DIRECTORY: Final = 2  # file type in directory entries
_JBD2_MAGIC: Final = 0xC03B_3998
_JBD2_SUPERBLOCK_V2: Final = 4
_POINTERS: Final = BLOCK_SIZE // 4  # block numbers in an indirect block
_DIRECT: Final = 12  # block numbers before the indirect ones in i_block
# Two flex groups, or more on small disks. The metadata does not care, but the kernel's placement
# of directories does (fs/ext4/ialloc.c, find_group_orlov): with one, comparing it with the average
# fails by the slack of its counters, and every new directory goes to a group of its own, each of
# which costs the VHDX a block for its inode table. With two the first, larger one takes them all.
_MIN_LOG_FLEX: Final = 2  # below, files are not kept behind directories
_JOURNAL_BACKUP_BLOCKS: Final = 1  # s_jnl_backup_type: s_jnl_blocks is a copy of the inode's map


def format_ext4(
    size: int,
    *,
    journal_mib: int = 0,
    uuid: uuids.UUID | None = None,
    label: str = "",
    created: int | None = None,
    checksums: bool = True,
    grow_to: int | None = None,
) -> DiskContent:
    """Return the content of an empty ext4 of `size` bytes, 1 GiB to 64 TiB in steps of 4096.

    The root directory is 0755 and holds lost+found. `created` is in seconds since 1970 (default:
    now), `uuid` defaults to a random one; with both given the result is the same every time.
    `grow_to` is the size, below 16 TiB, up to which resize2fs can grow it while it is mounted;
    up to 1 TiB that costs a 20 GiB disk nothing, and 4 KiB for each 16 GiB beyond.
    Raises InvalidArgumentError.
    """
    layout = ScratchLayout.plan(size, journal_mib=journal_mib, grow_to=grow_to)
    raw_label = label.encode()
    if len(raw_label) > _LABEL_SIZE:
        raise InvalidArgumentError(f"label {label!r}: longer than {_LABEL_SIZE} bytes")
    now = int(time.time()) if created is None else created
    if not 0 <= now <= _LOW:
        raise InvalidArgumentError(f"created {now}: not a time between 1970 and 2106")
    return _Formatter(layout, uuid or uuids.uuid4(), raw_label, now, checksums=checksums).content()


class _Formatter:
    def __init__(
        self, layout: ScratchLayout, uuid: uuids.UUID, label: bytes, now: int, *, checksums: bool
    ) -> None:
        self._layout = layout
        self._uuid = uuid.bytes
        self._label = label
        self._now = now
        self._seed = crc32c_raw(CRC_SEED, self._uuid) if checksums else None
        self._pieces: dict[int, bytes] = {}  # by block
        self._zeros: list[tuple[int, int]] = []  # (block, count)

    def content(self) -> DiskContent:
        layout = self._layout
        journal = self._journal_inode()
        self._directories()
        self._resize_map()
        self._inode_table(journal)
        self._journal()
        table = self._groups()
        self._pieces[0] = bytes(SUPERBLOCK_OFFSET) + self._superblock(journal).pack()
        self._pieces[1] = table.tobytes()
        pieces = (
            (block * BLOCK_SIZE, raw + bytes(-len(raw) % BLOCK_SIZE))
            for block, raw in sorted(self._pieces.items())
        )
        first, *others = runs_of(layout.inode_tables, length=layout.table_blocks)
        self._zeros += [(first[0] + 1, first[1] - 1), *others]
        return DiskContent(
            layout.blocks * BLOCK_SIZE,
            tuple(pieces),
            tuple(sorted((block * BLOCK_SIZE, n * BLOCK_SIZE) for block, n in self._zeros)),
        )

    def _directories(self) -> None:
        root = [(FIRST_INODE, LOST_AND_FOUND, _DIRECTORY)]
        self._pieces[self._layout.root] = pack_directory(
            ROOT_INODE, ROOT_INODE, root, seed=self._seed_of(ROOT_INODE)
        )
        self._pieces[self._layout.lost_and_found] = pack_directory(
            FIRST_INODE, ROOT_INODE, [], seed=self._seed_of(FIRST_INODE)
        )

    def _seed_of(self, inode: int) -> int | None:
        return None if self._seed is None else inode_seed(inode, seed=self._seed)

    def _inode(self, mode: int, *, size: int, links: int, extents: list[Extent]) -> Inode:
        low, extra = encode_time(self._now)
        root, _ = pack_extents(extents)
        return Inode(
            mode=mode,
            size_lo=size & _LOW,
            size_hi=size >> 32,
            atime=low,
            ctime=low,
            mtime=low,
            crtime=low,
            atime_extra=extra,
            ctime_extra=extra,
            mtime_extra=extra,
            crtime_extra=extra,
            links=links,
            blocks_lo=sum(extent.count for extent in extents) * (BLOCK_SIZE // 512),
            flags=InodeFlag.EXTENTS,
            block=root,
            extra_isize=EXTRA_ISIZE,
        )

    def _journal_inode(self) -> Inode | None:
        layout = self._layout
        if not len(layout.journal):
            return None
        extents: list[Extent] = []
        logical = 0
        for first, count in runs_of(layout.journal):
            extents += [
                Extent(logical + part.logical, part.physical, part.count)
                for part in split_run(first, count)
            ]
            logical += count
        return self._inode(S_IFREG | 0o600, size=logical * BLOCK_SIZE, links=1, extents=extents)

    def _resize_map(self) -> None:
        """Write the double indirect block, and each reserved block: where its copies will be.

        e2fsprogs lib/ext2fs/res_gdt.c
        """
        layout = self._layout
        if not layout.can_grow:
            return
        top = np.zeros(_POINTERS, "<u4")
        first = 1 + layout.descriptor_blocks
        copies = np.array(layout.backups, "<u4") * BLOCKS_PER_GROUP
        for block in range(first, first + layout.reserved_descriptor_blocks):
            top[(block - 1) % _POINTERS] = block
            self._pieces[block] = (copies + np.uint32(block)).astype("<u4").tobytes()
        self._pieces[layout.resize_map] = top.tobytes()

    def _resize_inode(self) -> Inode:
        layout = self._layout
        low, extra = encode_time(self._now)
        used = 1 + layout.reserved_descriptor_blocks * (1 + len(layout.backups))
        size = (_POINTERS * _POINTERS + _POINTERS + _DIRECT) * BLOCK_SIZE
        return Inode(
            mode=S_IFREG | 0o600,
            size_lo=size & _LOW,
            size_hi=size >> 32,
            atime=low,
            ctime=low,
            mtime=low,
            atime_extra=extra,
            ctime_extra=extra,
            mtime_extra=extra,
            links=1,
            blocks_lo=used * (BLOCK_SIZE // 512),
            block=struct.pack(f"<{4 * (_DIRECT + 1)}xI4x", layout.resize_map),
            extra_isize=EXTRA_ISIZE,
        )

    def _inode_table(self, journal: Inode | None) -> None:
        layout = self._layout
        inodes = {number: Inode() for number in range(1, FIRST_INODE)}
        inodes[ROOT_INODE] = self._inode(
            S_IFDIR | 0o755, size=BLOCK_SIZE, links=3, extents=[Extent(0, layout.root, 1)]
        )
        inodes[FIRST_INODE] = self._inode(
            S_IFDIR | 0o700, size=BLOCK_SIZE, links=2, extents=[Extent(0, layout.lost_and_found, 1)]
        )
        if journal:
            inodes[JOURNAL_INODE] = journal
        if layout.can_grow:
            inodes[RESIZE_INODE] = self._resize_inode()
        raw = b"".join(inodes[number].pack(number, seed=self._seed) for number in sorted(inodes))
        self._pieces[int(layout.inode_tables[0])] = raw

    def _journal(self) -> None:
        layout = self._layout
        if not len(layout.journal):
            return
        # journal.rst, struct journal_superblock_s: an empty log (s_start 0) of one user.
        head = struct.pack(
            ">9I12x16sI",
            _JBD2_MAGIC,
            _JBD2_SUPERBLOCK_V2,
            0,
            BLOCK_SIZE,
            len(layout.journal),
            1,  # first block of log data
            1,  # sequence
            0,
            0,
            self._uuid,
            1,
        )
        self._pieces[int(layout.journal[0])] = head
        self._zeros += runs_of(layout.journal[1:])

    def _groups(self) -> NDArray[np.void]:
        """Return the descriptors, and put every bitmap that must be on disk."""
        layout = self._layout
        wide = layout.descriptor_size == DESCRIPTOR_64.itemsize
        groups = np.arange(layout.groups, dtype=np.int64)
        table = np.zeros(layout.groups, DESCRIPTOR_64 if wide else DESCRIPTOR)
        table["block_bitmap"] = layout.block_bitmaps
        table["inode_bitmap"] = layout.inode_bitmaps
        table["inode_table"] = layout.inode_tables
        valid = np.minimum(layout.blocks - groups * BLOCKS_PER_GROUP, BLOCKS_PER_GROUP)
        used = layout.used()
        table["free_blocks"] = valid - used
        table["free_inodes"] = layout.inodes_per_group
        table["free_inodes"][0] -= FIRST_INODE
        table["used_dirs"][0] = 2
        # Groups that only hold free blocks need no bitmap on disk, but for the last one, which
        # e2fsck wants to see. Without checksums the flags do not exist and every bitmap counts.
        # The kernel knows by itself where copies of the superblock are.
        on_disk = groups * BLOCKS_PER_GROUP < layout.first_free
        on_disk[-1] = True
        if self._seed is None:
            on_disk[:] = True
        else:
            table["unused_inodes"] = table["free_inodes"]
            table["flags"] = int(GroupFlag.INODE_ZEROED | GroupFlag.INODE_UNINIT)
            table["flags"][0] = int(GroupFlag.INODE_ZEROED)
            table["flags"][~on_disk] |= np.uint16(GroupFlag.BLOCK_UNINIT)
        self._block_bitmaps(table, np.flatnonzero(on_disk).tolist(), used, valid)
        self._inode_bitmaps(table)
        if self._seed is not None:
            seal_descriptors(table, self._seed)
        return table

    def _block_bitmaps(
        self,
        table: NDArray[np.void],
        on_disk: list[int],
        used: NDArray[np.int64],
        valid: NDArray[np.int64],
    ) -> None:
        layout = self._layout
        made: dict[tuple[int, int], tuple[bytes, int]] = {}  # most are alike
        uneven = {*layout.backups, *(first // BLOCKS_PER_GROUP for first, _ in layout.gaps)}
        for group in on_disk:
            shape = int(used[group]), int(valid[group])
            if group in uneven:
                bitmap = np.packbits(layout.mask(group), bitorder="little").tobytes()
                checksum = 0 if self._seed is None else crc32c_raw(self._seed, bitmap)
            else:
                if shape not in made:
                    raw = prefix_bitmap(*shape)
                    made[shape] = raw, 0 if self._seed is None else crc32c_raw(self._seed, raw)
                bitmap, checksum = made[shape]
            block = int(layout.block_bitmaps[group])
            if shape == (0, BLOCKS_PER_GROUP):
                self._zeros.append((block, 1))
            else:
                self._pieces[block] = bitmap
            table["block_bitmap_checksum"][group] = checksum & 0xFFFF
            if table.dtype == DESCRIPTOR_64:
                table["block_bitmap_checksum_hi"][group] = checksum >> 16

    def _inode_bitmaps(self, table: NDArray[np.void]) -> None:
        layout = self._layout
        bitmap = prefix_bitmap(FIRST_INODE, layout.inodes_per_group)
        self._pieces[int(layout.inode_bitmaps[0])] = bitmap
        if self._seed is None:
            free = prefix_bitmap(0, layout.inodes_per_group)
            for block in layout.inode_bitmaps[1:].tolist():
                self._pieces[block] = free
            return
        checksum = crc32c_raw(self._seed, bitmap[: layout.inodes_per_group // 8])
        table["inode_bitmap_checksum"][0] = checksum & 0xFFFF
        if table.dtype == DESCRIPTOR_64:
            table["inode_bitmap_checksum_hi"][0] = checksum >> 16

    def _superblock(self, journal: Inode | None) -> Superblock:
        layout = self._layout
        compat = Compat.EXT_ATTR | Compat.DIR_INDEX
        compat |= Compat.RESIZE_INODE if layout.can_grow else Compat.SPARSE_SUPER2
        incompat = Incompat.FILETYPE | Incompat.EXTENTS | Incompat.FLEX_BG
        ro_compat = (
            RoCompat.LARGE_FILE | RoCompat.HUGE_FILE | RoCompat.DIR_NLINK | RoCompat.EXTRA_ISIZE
        )
        wide = layout.descriptor_size == DESCRIPTOR_64.itemsize
        if wide:
            incompat |= Incompat.BIT64
        if journal:
            compat |= Compat.HAS_JOURNAL
        if layout.can_grow:
            ro_compat |= RoCompat.SPARSE_SUPER
        if self._seed is not None:
            ro_compat |= RoCompat.METADATA_CSUM
        free = layout.blocks - layout.overhead - 2
        reserved = layout.blocks // _RESERVED_FRACTION
        return Superblock(
            inodes_count=layout.inodes_per_group * layout.groups,
            blocks_count_lo=layout.blocks & _LOW,
            blocks_count_hi=layout.blocks >> 32,
            reserved_blocks_count_lo=reserved & _LOW,
            reserved_blocks_count_hi=reserved >> 32,
            free_blocks_count_lo=free & _LOW,
            free_blocks_count_hi=free >> 32,
            free_inodes_count=layout.inodes_per_group * layout.groups - FIRST_INODE,
            inodes_per_group=layout.inodes_per_group,
            write_time=self._now,
            last_check=self._now,
            make_time=self._now,
            inode_size=INODE_SIZE,
            compat=compat,
            incompat=incompat,
            ro_compat=ro_compat,
            uuid=self._uuid,
            label=self._label,
            reserved_gdt_blocks=layout.reserved_descriptor_blocks,
            journal_inode=JOURNAL_INODE if journal else 0,
            journal_backup_type=_JOURNAL_BACKUP_BLOCKS if journal else 0,
            # The journal inode's i_block, then its size: high word, low word.
            journal_blocks=journal.block + struct.pack("<II", journal.size_hi, journal.size_lo)
            if journal
            else bytes(68),
            hash_seed=self._uuid[::-1],
            hash_version=HASH_HALF_MD4,
            flags=FLAG_SIGNED_HASH,
            descriptor_size=layout.descriptor_size if wide else 0,
            log_groups_per_flex=max((layout.groups - 1).bit_length() - 1, _MIN_LOG_FLEX),
            checksum_type=0 if self._seed is None else CHECKSUM_CRC32C,
            overhead_blocks=layout.overhead,
        )

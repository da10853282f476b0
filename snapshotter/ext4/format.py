"""The ext4 superblock, its feature flags, and the sizes that this package writes.

Field names are those of the kernel's `struct ext4_super_block` without `s_`
(Documentation/filesystems/ext4/super.rst). Everything is little-endian.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import ClassVar, Final, Self

from snapshotter.crc32c import crc32c_raw
from snapshotter.errors import Ext4CorruptError
from snapshotter.units import KIB

BLOCK_SIZE: Final = 4 * KIB
BLOCKS_PER_GROUP: Final = 8 * BLOCK_SIZE  # one bitmap block of bits
INODE_SIZE: Final = 256
EXTRA_ISIZE: Final = 32  # i_extra_isize: the fields up to and including i_projid
INODES_PER_BLOCK: Final = BLOCK_SIZE // INODE_SIZE
MAX_INODES_PER_GROUP: Final = 8 * BLOCK_SIZE  # one bitmap block of bits

SUPERBLOCK_OFFSET: Final = 1 * KIB
SUPERBLOCK_SIZE: Final = 1 * KIB
MAGIC: Final = 0xEF53

ROOT_INODE: Final = 2
RESIZE_INODE: Final = 7
JOURNAL_INODE: Final = 8
FIRST_INODE: Final = 11  # s_first_ino; it is lost+found by custom
LOST_AND_FOUND: Final = b"lost+found"

CRC_SEED: Final = 0xFFFF_FFFF
CHECKSUM_CRC32C: Final = 1
HASH_HALF_MD4: Final = 1
FLAG_SIGNED_HASH: Final = 1
STATE_CLEAN: Final = 1
ERRORS_CONTINUE: Final = 1
REVISION_DYNAMIC: Final = 1


class Compat(enum.IntFlag):
    """s_feature_compat: an older kernel may mount read-write without knowing these."""

    HAS_JOURNAL = 0x4
    EXT_ATTR = 0x8
    RESIZE_INODE = 0x10
    DIR_INDEX = 0x20
    SPARSE_SUPER2 = 0x200


class Incompat(enum.IntFlag):
    """s_feature_incompat: whoever does not know one of these must not read."""

    FILETYPE = 0x2
    RECOVER = 0x4
    JOURNAL_DEV = 0x8
    META_BG = 0x10
    EXTENTS = 0x40
    BIT64 = 0x80
    MMP = 0x100
    FLEX_BG = 0x200
    EA_INODE = 0x400
    DIRDATA = 0x1000
    CSUM_SEED = 0x2000
    LARGEDIR = 0x4000
    INLINE_DATA = 0x8000
    ENCRYPT = 0x10000
    CASEFOLD = 0x20000


class RoCompat(enum.IntFlag):
    """s_feature_ro_compat: whoever does not know one of these may only read."""

    SPARSE_SUPER = 0x1
    LARGE_FILE = 0x2
    HUGE_FILE = 0x8
    GDT_CSUM = 0x10
    DIR_NLINK = 0x20
    EXTRA_ISIZE = 0x40
    METADATA_CSUM = 0x400
    READONLY = 0x1000


@dataclass(frozen=True, slots=True)
class Superblock:
    """The 1024 bytes at offset 1024 of the file system; the fields stand in their order on disk."""

    # 0x00 counts and geometry, 0x2c mount and check times, 0x4c revision and features,
    # 0x68 names, 0xe0 journal and hash, 0xfe 64-bit and flex_bg, 0x248 overhead, 0x3fc checksum.
    LAYOUT: ClassVar = struct.Struct(
        "<11I4xIHhHHH2xI8xI4xIH2x3I16s16s64x4x2xH16xI8x16sBBH4xII68s3IHHI16xBB2x208xI8x28xI392xI"
    )

    inodes_count: int = 0
    blocks_count_lo: int = 0
    reserved_blocks_count_lo: int = 0
    free_blocks_count_lo: int = 0
    free_inodes_count: int = 0
    first_data_block: int = 0
    log_block_size: int = 2  # 1024 << 2
    log_cluster_size: int = 2
    blocks_per_group: int = BLOCKS_PER_GROUP
    clusters_per_group: int = BLOCKS_PER_GROUP
    inodes_per_group: int = 0
    write_time: int = 0
    mount_count: int = 0
    max_mount_count: int = -1
    magic: int = MAGIC
    state: int = STATE_CLEAN
    errors: int = ERRORS_CONTINUE
    last_check: int = 0
    revision: int = REVISION_DYNAMIC
    first_inode: int = FIRST_INODE
    inode_size: int = INODE_SIZE
    compat: int = 0
    incompat: int = 0
    ro_compat: int = 0
    uuid: bytes = bytes(16)
    label: bytes = b""
    reserved_gdt_blocks: int = 0
    journal_inode: int = 0
    hash_seed: bytes = bytes(16)
    hash_version: int = 0
    journal_backup_type: int = 0
    descriptor_size: int = 0  # 0 means 32
    first_meta_group: int = 0
    make_time: int = 0
    journal_blocks: bytes = bytes(68)
    blocks_count_hi: int = 0
    reserved_blocks_count_hi: int = 0
    free_blocks_count_hi: int = 0
    min_extra_isize: int = EXTRA_ISIZE
    want_extra_isize: int = EXTRA_ISIZE
    flags: int = 0
    log_groups_per_flex: int = 0
    checksum_type: int = 0
    overhead_blocks: int = 0
    checksum_seed_field: int = 0
    checksum: int = 0  # computed by `pack`

    @property
    def block_size(self) -> int:
        """Bytes in a block."""
        return 1024 << self.log_block_size

    @property
    def blocks_count(self) -> int:
        """Blocks in the file system."""
        return self._wide(self.blocks_count_lo, self.blocks_count_hi)

    @property
    def free_blocks_count(self) -> int:
        """Blocks that nothing occupies, as of the last clean unmount."""
        return self._wide(self.free_blocks_count_lo, self.free_blocks_count_hi)

    @property
    def has_checksums(self) -> bool:
        """True where metadata carries CRC-32C (metadata_csum)."""
        return bool(self.ro_compat & RoCompat.METADATA_CSUM)

    @property
    def checksum_seed(self) -> int:
        """The seed of every metadata checksum: of the UUID, or kept apart by metadata_csum_seed."""
        if self.incompat & Incompat.CSUM_SEED:
            return self.checksum_seed_field
        return crc32c_raw(CRC_SEED, self.uuid)

    def _wide(self, low: int, high: int) -> int:
        return high << 32 | low if self.incompat & Incompat.BIT64 else low

    def pack(self) -> bytes:
        """Return the 1024 bytes, with the checksum computed where the features ask for one."""
        raw = self.LAYOUT.pack(*_fields_of(self))
        if not self.has_checksums:
            return raw
        return raw[:-4] + struct.pack("<I", crc32c_raw(CRC_SEED, raw[:-4]))

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Decode 1024 bytes; the geometry is not judged here.

        Raises Ext4CorruptError where the magic is missing or the checksum does not match.
        """
        if len(raw) != SUPERBLOCK_SIZE:
            raise Ext4CorruptError("superblock", "cut short", offset=SUPERBLOCK_OFFSET)
        decoded = cls(*cls.LAYOUT.unpack(raw))
        if decoded.magic != MAGIC:
            raise Ext4CorruptError(
                "superblock magic",
                f"{decoded.magic:#06x}, not {MAGIC:#06x}",
                offset=SUPERBLOCK_OFFSET,
            )
        if decoded.has_checksums and crc32c_raw(CRC_SEED, raw[:-4]) != decoded.checksum:
            raise Ext4CorruptError(
                "superblock checksum", "does not match its content", offset=SUPERBLOCK_OFFSET
            )
        return decoded


_fields_of = attrgetter(*(field.name for field in fields(Superblock)))
assert Superblock.LAYOUT.size == SUPERBLOCK_SIZE

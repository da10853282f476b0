"""Inodes: the record of one file, its times, owners, device numbers and checksum.

Documentation/filesystems/ext4/inodes.rst. `Inode` is one record; `INODE_DTYPE` is the same bytes
as a numpy structured array, for writing tables of many thousands.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import ClassVar, Final, Self

import numpy as np

from snapshotter.crc32c import crc32c_raw
from snapshotter.ext4.format import EXTRA_ISIZE, INODE_SIZE

MAX_LINKS: Final = 65_000  # EXT4_LINK_MAX
INLINE_AREA: Final = 60  # i_block: extent tree root, fast symlink or device number
TAIL_SIZE: Final = INODE_SIZE - 128 - EXTRA_ISIZE  # what is left for xattrs inside the inode

S_IFMT: Final = 0o170000
S_IFIFO: Final = 0o010000
S_IFCHR: Final = 0o020000
S_IFDIR: Final = 0o040000
S_IFBLK: Final = 0o060000
S_IFREG: Final = 0o100000
S_IFLNK: Final = 0o120000
S_IFSOCK: Final = 0o140000

_EPOCH_BITS = 34  # 32 bits on disk plus two of i_*time_extra
MIN_TIME: Final = -(1 << 31)
MAX_TIME: Final = (1 << _EPOCH_BITS) - 1 - (1 << 31)  # in the year 2446


class InodeFlag(enum.IntFlag):
    """i_flags."""

    INDEX = 0x1000  # hashed directory
    HUGE_FILE = 0x40000  # i_blocks counts file system blocks
    EXTENTS = 0x80000
    EA_INODE = 0x200000
    INLINE_DATA = 0x10000000


@dataclass(frozen=True, slots=True)
class Inode:
    """The first 160 bytes of an inode; the fields stand in their order on disk."""

    LAYOUT: ClassVar = struct.Struct("<HHIIIIIHHIII60sIIIIHHHHH2xHHIIIIIII")

    mode: int = 0
    uid_lo: int = 0
    size_lo: int = 0
    atime: int = 0
    ctime: int = 0
    mtime: int = 0
    dtime: int = 0
    gid_lo: int = 0
    links: int = 0
    blocks_lo: int = 0
    flags: int = 0
    version: int = 0
    block: bytes = bytes(INLINE_AREA)
    generation: int = 0
    acl_lo: int = 0
    size_hi: int = 0
    fragment: int = 0  # obsolete
    blocks_hi: int = 0
    acl_hi: int = 0
    uid_hi: int = 0
    gid_hi: int = 0
    checksum_lo: int = 0
    extra_isize: int = 0
    checksum_hi: int = 0
    ctime_extra: int = 0
    mtime_extra: int = 0
    atime_extra: int = 0
    crtime: int = 0
    crtime_extra: int = 0
    version_hi: int = 0
    project: int = 0

    @property
    def size(self) -> int:
        """Length of the content in bytes."""
        return self.size_hi << 32 | self.size_lo

    @property
    def uid(self) -> int:
        """Owner."""
        return self.uid_hi << 16 | self.uid_lo

    @property
    def gid(self) -> int:
        """Group."""
        return self.gid_hi << 16 | self.gid_lo

    @property
    def xattr_block(self) -> int:
        """Block that holds the xattrs which do not fit the inode; 0 means none."""
        return self.acl_hi << 32 | self.acl_lo

    @property
    def mtime_ns(self) -> int:
        """Time of the last change in nanoseconds since 1970."""
        return decode_time(self.mtime, self.mtime_extra)

    def pack(self, number: int, *, seed: int | None) -> bytes:
        """Return the 256 bytes of inode `number`, with its checksum where a `seed` is given."""
        raw = bytearray(self.LAYOUT.pack(*_fields_of(self)).ljust(INODE_SIZE, b"\0"))
        if seed is not None:
            seal_inode(raw, number, seed=seed, generation=self.generation)
        return bytes(raw)

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Decode at least 128 bytes; fields beyond i_extra_isize come back as zero."""
        known = 128
        if len(raw) >= 130:
            known = min(128 + struct.unpack_from("<H", raw, 128)[0], cls.LAYOUT.size)
        return cls(*cls.LAYOUT.unpack(raw[:known].ljust(cls.LAYOUT.size, b"\0")))


_fields_of = attrgetter(*(field.name for field in fields(Inode)))  # astuple copies deeply
assert Inode.LAYOUT.size == 160

INODE_DTYPE: Final = np.dtype(
    [
        ("mode", "<u2"),
        ("uid_lo", "<u2"),
        ("size_lo", "<u4"),
        ("atime", "<u4"),
        ("ctime", "<u4"),
        ("mtime", "<u4"),
        ("dtime", "<u4"),
        ("gid_lo", "<u2"),
        ("links", "<u2"),
        ("blocks_lo", "<u4"),
        ("flags", "<u4"),
        ("version", "<u4"),
        ("block", "u1", (INLINE_AREA,)),
        ("generation", "<u4"),
        ("acl_lo", "<u4"),
        ("size_hi", "<u4"),
        ("fragment", "<u4"),
        ("blocks_hi", "<u2"),
        ("acl_hi", "<u2"),
        ("uid_hi", "<u2"),
        ("gid_hi", "<u2"),
        ("checksum_lo", "<u2"),
        ("reserved", "<u2"),
        ("extra_isize", "<u2"),
        ("checksum_hi", "<u2"),
        ("ctime_extra", "<u4"),
        ("mtime_extra", "<u4"),
        ("atime_extra", "<u4"),
        ("crtime", "<u4"),
        ("crtime_extra", "<u4"),
        ("version_hi", "<u4"),
        ("project", "<u4"),
        ("tail", "u1", (TAIL_SIZE,)),
    ]
)
assert INODE_DTYPE.itemsize == INODE_SIZE


def encode_time(seconds: int, nanoseconds: int = 0) -> tuple[int, int]:
    """Return (i_*time, i_*time_extra); times outside 1901..2446 are clamped."""
    seconds = min(max(seconds, MIN_TIME), MAX_TIME)
    low = seconds & 0xFFFF_FFFF
    signed = low - (1 << 32) if low >> 31 else low
    return low, ((seconds - signed) >> 32) & 3 | nanoseconds << 2


def decode_time(low: int, extra: int) -> int:
    """Return nanoseconds since 1970 of an (i_*time, i_*time_extra) pair."""
    signed = low - (1 << 32) if low >> 31 else low
    return (signed + ((extra & 3) << 32)) * 1_000_000_000 + (extra >> 2)


def encode_device(major: int, minor: int) -> int:
    """Return the 32-bit device number that stands in the second word of i_block."""
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def decode_device(block: bytes) -> tuple[int, int]:
    """Return (major, minor) of i_block: the old 8+8-bit form in word 0, or the new in word 1."""
    old, new = struct.unpack_from("<II", block)
    if old:
        return old >> 8 & 0xFF, old & 0xFF
    return new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xFFF00


def seal_inode(raw: bytearray, number: int, *, seed: int, generation: int = 0) -> None:
    """Write the checksum of a 256-byte inode into it (metadata_csum)."""
    struct.pack_into("<H", raw, 0x7C, 0)
    struct.pack_into("<H", raw, 0x82, 0)
    value = crc32c_raw(inode_seed(number, seed=seed, generation=generation), raw)
    struct.pack_into("<H", raw, 0x7C, value & 0xFFFF)
    if struct.unpack_from("<H", raw, 0x80)[0] >= 4:
        struct.pack_into("<H", raw, 0x82, value >> 16)


def inode_seed(number: int, *, seed: int, generation: int = 0) -> int:
    """Return the checksum seed of what belongs to inode `number`: itself, its directory blocks."""
    return crc32c_raw(seed, struct.pack("<II", number, generation))

"""Block group descriptors and the bitmaps they point to.

Documentation/filesystems/ext4/group_descr.rst and bitmaps.rst. A table of descriptors is one
numpy structured array: 32-byte rows, or 64-byte ones where the 64bit feature is set.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from snapshotter.crc32c import crc32c_raw
from snapshotter.errors import Ext4CorruptError
from snapshotter.ext4.format import BLOCK_SIZE, RoCompat, Superblock


class GroupFlag(enum.IntFlag):
    """bg_flags."""

    INODE_UNINIT = 0x1  # the inode bitmap is not on disk: every inode is free
    BLOCK_UNINIT = 0x2  # the block bitmap is not on disk: only the group's own metadata is in use
    INODE_ZEROED = 0x4  # the inode table reads as zeros where unused: no lazy initialisation


_LOW: Final = [
    ("block_bitmap", "<u4"),
    ("inode_bitmap", "<u4"),
    ("inode_table", "<u4"),
    ("free_blocks", "<u2"),
    ("free_inodes", "<u2"),
    ("used_dirs", "<u2"),
    ("flags", "<u2"),
    ("exclude_bitmap", "<u4"),
    ("block_bitmap_checksum", "<u2"),
    ("inode_bitmap_checksum", "<u2"),
    ("unused_inodes", "<u2"),
    ("checksum", "<u2"),
]
_HIGH: Final = [
    ("block_bitmap_hi", "<u4"),
    ("inode_bitmap_hi", "<u4"),
    ("inode_table_hi", "<u4"),
    ("free_blocks_hi", "<u2"),
    ("free_inodes_hi", "<u2"),
    ("used_dirs_hi", "<u2"),
    ("unused_inodes_hi", "<u2"),
    ("exclude_bitmap_hi", "<u4"),
    ("block_bitmap_checksum_hi", "<u2"),
    ("inode_bitmap_checksum_hi", "<u2"),
    ("reserved", "<u4"),
]
DESCRIPTOR: Final = np.dtype(_LOW)
DESCRIPTOR_64: Final = np.dtype(_LOW + _HIGH)

_CHECKSUM_AT: Final = 0x1E  # bg_checksum

assert DESCRIPTOR.itemsize == 32
assert DESCRIPTOR_64.itemsize == 64


def seal_descriptors(table: NDArray[np.void], seed: int) -> None:
    """Fill in the checksum of every row of `table`, whose first row is group 0."""
    table["checksum"] = 0
    size = table.dtype.itemsize
    # A checksum covers the group's number and its row: the two one behind the other, all at once.
    rows = np.empty((len(table), 4 + size), np.uint8)
    rows[:, :4] = np.arange(len(table), dtype="<u4").view(np.uint8).reshape(-1, 4)
    rows[:, 4:] = table.view(np.uint8).reshape(-1, size)
    raw = rows.tobytes()
    table["checksum"] = [
        crc32c_raw(seed, raw[at : at + 4 + size]) & 0xFFFF for at in range(0, len(raw), 4 + size)
    ]


def check_descriptor(raw: bytes, group: int, superblock: Superblock, *, at: int) -> None:
    """Verify the checksum of one descriptor where the features say that it has one.

    `at` is its offset on disk, for errors. Raises Ext4CorruptError.
    """
    (stored,) = struct.unpack_from("<H", raw, _CHECKSUM_AT)
    number = struct.pack("<I", group)
    if superblock.has_checksums:
        blank = raw[:_CHECKSUM_AT] + bytes(2) + raw[_CHECKSUM_AT + 2 :]
        expected = crc32c_raw(crc32c_raw(superblock.checksum_seed, number), blank) & 0xFFFF
    elif superblock.ro_compat & RoCompat.GDT_CSUM:
        covered = raw[:_CHECKSUM_AT] + raw[_CHECKSUM_AT + 2 :]
        expected = _crc16(superblock.uuid + number + covered)
    else:
        return
    if stored != expected:
        raise Ext4CorruptError(
            "group descriptor checksum", f"{stored:#06x}, not {expected:#06x}", offset=at
        )


def _crc16(data: bytes) -> int:
    """Return the CRC-16 of uninit_bg (Linux lib/crc16: polynomial 0x8005 reflected, from ~0)."""
    value = 0xFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0xA001 if value & 1 else 0)
    return value


def checksum_bitmaps(
    table: NDArray[np.void], bitmaps: NDArray[np.uint8], inodes_per_group: int, *, seed: int
) -> None:
    """Note the checksums of the bitmaps: rows of (block bitmap, inode bitmap), one a group."""
    for group, (blocks, inodes) in enumerate(bitmaps):
        table["block_bitmap_checksum"][group] = crc32c_raw(seed, blocks.tobytes()) & 0xFFFF
        used = inodes[: inodes_per_group // 8].tobytes()
        table["inode_bitmap_checksum"][group] = crc32c_raw(seed, used) & 0xFFFF


def prefix_bitmap(used: int, valid: int) -> bytes:
    """Return a bitmap block: set below `used`, and from `valid` on, where nothing exists."""
    bits = bytearray(BLOCK_SIZE)
    full, rest = divmod(used, 8)
    bits[:full] = b"\xff" * full
    if rest:
        bits[full] = (1 << rest) - 1
    full, rest = divmod(valid, 8)
    if rest:
        bits[full] |= 0xFF & ~((1 << rest) - 1)
        full += 1
    bits[full:] = b"\xff" * (BLOCK_SIZE - full)
    return bytes(bits)

"""Directory blocks: names and the inodes they lead to.

Documentation/filesystems/ext4/directory.rst. Directories of one block are written linear, larger
ones by `hashtree`; hashed ones are read as linear ones too, which their on-disk form allows: index
nodes look like empty entries.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from snapshotter.crc32c import crc32c_raw
from snapshotter.errors import Ext4CorruptError
from snapshotter.ext4.format import BLOCK_SIZE
from snapshotter.ext4.inode import (
    S_IFBLK,
    S_IFCHR,
    S_IFDIR,
    S_IFIFO,
    S_IFLNK,
    S_IFREG,
    S_IFSOCK,
)

MAX_NAME: Final = 255
FILE_TYPE: Final = {
    S_IFREG: 1,
    S_IFDIR: 2,
    S_IFCHR: 3,
    S_IFBLK: 4,
    S_IFIFO: 5,
    S_IFSOCK: 6,
    S_IFLNK: 7,
}

_DIRECTORY: Final = FILE_TYPE[S_IFDIR]
_ENTRY = struct.Struct("<IHBB")
_TAIL_SIZE = 12  # an entry without a name that holds the block's checksum
TAIL_TYPE: Final = 0xDE
_PADDING = [bytes(-(8 + length) % 4) for length in range(MAX_NAME + 1)]


class DirectoryEntry(NamedTuple):
    """A name, the inode it leads to, and the type of that (`FILE_TYPE`)."""

    inode: int
    name: bytes
    file_type: int


def pack_directory(
    number: int, parent: int, entries: Iterable[tuple[int, bytes, int]], *, seed: int | None = None
) -> bytes:
    """Return the blocks of directory inode `number`; `entries` are (inode, name, file type).

    `seed` is the seed of the directory's inode (`inode_seed`) where blocks carry checksums.
    """
    usable = BLOCK_SIZE - (0 if seed is None else _TAIL_SIZE)
    blocks: list[bytes] = []
    dots = dot_entries(number, parent, 24)
    records = [dots[:12], dots[12:]]
    left = usable - 24
    for inode, name, file_type in entries:
        length = (len(name) + 11) & ~3
        if length > left:
            blocks.append(close_block(records, left, seed))
            records = []
            left = usable
        records.append(
            _ENTRY.pack(inode, length, len(name), file_type) + name + _PADDING[len(name)]
        )
        left -= length
    blocks.append(close_block(records, left, seed))
    return b"".join(blocks)


def entry_size(name: bytes) -> int:
    """Return the bytes that an entry of `name` takes."""
    return (len(name) + 11) & ~3


def pack_entry(inode: int, name: bytes, file_type: int) -> bytes:
    """Return one entry."""
    return _ENTRY.pack(inode, entry_size(name), len(name), file_type) + name + _PADDING[len(name)]


def dot_entries(number: int, parent: int, length: int) -> bytes:
    """Return the entries `.` and `..`, the latter reaching to `length` bytes from the start."""
    dot = _ENTRY.pack(number, 12, 1, _DIRECTORY) + b".\0\0\0"
    return dot + _ENTRY.pack(parent, length - 12, 2, _DIRECTORY) + b"..\0\0"


def close_block(records: list[bytes], left: int, seed: int | None) -> bytes:
    """Return the block of `records`, the last of which reaches over the `left` bytes to its end."""
    last = records[-1]
    records[-1] = last[:4] + struct.pack("<H", len(last) + left) + last[6:] + bytes(left)
    block = b"".join(records)
    if seed is None:
        return block
    return block + struct.pack("<IHBBI", 0, _TAIL_SIZE, 0, TAIL_TYPE, crc32c_raw(seed, block))


def unpack_directory_block(raw: bytes, *, at: int) -> Iterator[DirectoryEntry]:
    """Yield the used entries of one block, `.` and `..` included; `at` is its offset, for errors.

    Raises Ext4CorruptError.
    """
    place = 0
    while place < len(raw):
        if len(raw) - place < _ENTRY.size:
            raise Ext4CorruptError("directory entry", "cut by the block's end", offset=at + place)
        inode, length, name_length, file_type = _ENTRY.unpack_from(raw, place)
        if length < 8 or length % 4 or place + length > len(raw):
            raise Ext4CorruptError("directory entry", f"length {length}", offset=at + place)
        if inode:
            if not name_length or 8 + name_length > length:
                raise Ext4CorruptError(
                    "directory entry", f"name of {name_length} bytes", offset=at + place
                )
            name = raw[place + 8 : place + 8 + name_length]
            if b"/" in name or b"\0" in name:
                raise Ext4CorruptError("directory entry", f"name {name!r}", offset=at + place)
            yield DirectoryEntry(inode, name, file_type)
        place += length

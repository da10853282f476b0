"""Extended attributes: in the space an inode has left, then in one block of their own.

Documentation/filesystems/ext4/attributes.rst. A value of its own inode (ea_inode) is not handled.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from snapshotter.crc32c import crc32c_raw
from snapshotter.errors import Ext4CorruptError, Ext4UnsupportedError
from snapshotter.ext4.acl import acl_from_disk, acl_to_disk
from snapshotter.ext4.format import BLOCK_SIZE
from snapshotter.ext4.inode import TAIL_SIZE

XATTR_MAGIC: Final = 0xEA02_0000

# Longest first where one is the start of another; posix_acl_* are whole names.
_PREFIXES: Final = (
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (8, b"system.richacl"),
    (7, b"system."),
    (1, b"user."),
    (4, b"trusted."),
    (6, b"security."),
)
_PREFIX_OF: Final = dict(_PREFIXES)
_WHOLE_NAMES: Final = frozenset({2, 3, 8})
_ACLS: Final = frozenset({2, 3})
_SETTABLE: Final = _ACLS | {1, 4, 6}

_ENTRY = struct.Struct("<BBHIII")  # name length, prefix, value offset, value inode, size, hash
_BLOCK_HEADER = struct.Struct("<IIIII12x")  # magic, references, blocks, hash, checksum
_TAIL_MAGIC = struct.Struct("<I")
_CHECKSUM: Final = 16  # h_checksum of a block
_END = 4  # four zero bytes close the list of entries


class PackedXattrs(NamedTuple):
    """What goes into the inode (`TAIL_SIZE` bytes), and into a block where that is not enough."""

    tail: bytes
    block: bytes | None


class _Attribute(NamedTuple):
    prefix: int
    name: bytes
    value: bytes

    @property
    def room(self) -> int:
        return _ENTRY.size + (len(self.name) + 3 & ~3) + (len(self.value) + 3 & ~3)


def is_supported_name(name: bytes) -> bool:
    """Return whether a Linux kernel would let anyone set the xattr `name` on ext4."""
    prefix, rest = _split(name)
    return prefix in _SETTABLE and len(rest) <= 255 and bool(rest) != (prefix in _WHOLE_NAMES)


def _split(name: bytes) -> tuple[int, bytes]:
    for index, prefix in _PREFIXES:
        if name.startswith(prefix):
            return index, name[len(prefix) :]
    return 0, name


def pack_xattrs(attributes: Mapping[bytes, bytes]) -> PackedXattrs:
    """Return the on-disk form of `attributes`, whose names must be supported ones.

    Raises Ext4UnsupportedError where they do not fit, ValueError for an ACL that is none.
    """
    inline: list[_Attribute] = []
    outside: list[_Attribute] = []
    inline_left = TAIL_SIZE - _TAIL_MAGIC.size - _END
    outside_left = BLOCK_SIZE - _BLOCK_HEADER.size - _END
    for full_name in sorted(attributes):
        prefix, name = _split(full_name)
        value = attributes[full_name]
        attribute = _Attribute(prefix, name, acl_to_disk(value) if prefix in _ACLS else value)
        if attribute.room <= inline_left:
            inline_left -= attribute.room
            inline.append(attribute)
        elif attribute.room <= outside_left:
            outside_left -= attribute.room
            outside.append(attribute)
        else:
            raise Ext4UnsupportedError(
                f"xattr {full_name.decode(errors='replace')} of {len(value)} bytes:"
                " the attributes of one file have to fit its inode and one block of 4096 bytes"
            )
    tail = bytes(TAIL_SIZE)
    if inline:
        body = _pack_entries(inline, size=TAIL_SIZE - _TAIL_MAGIC.size, base=0)
        tail = _TAIL_MAGIC.pack(XATTR_MAGIC) + body
    return PackedXattrs(tail, _pack_block(outside) if outside else None)


def seal_block(block: bytes, place: int, *, seed: int) -> bytes:
    """Return an xattr block that lies at block `place`, with its checksum."""
    return (
        block[:_CHECKSUM]
        + struct.pack("<I", block_checksum(block, place, seed=seed))
        + (block[_CHECKSUM + 4 :])
    )


def block_checksum(block: bytes, place: int, *, seed: int) -> int:
    """Return what h_checksum of the xattr block at block `place` has to be."""
    value = crc32c_raw(seed, struct.pack("<Q", place))
    return crc32c_raw(value, block[:_CHECKSUM] + bytes(4) + block[_CHECKSUM + 4 :])


def _pack_block(attributes: list[_Attribute]) -> bytes:
    attributes = sorted(attributes, key=lambda item: (item.prefix, len(item.name), item.name))
    total = 0
    for item in attributes:
        total = _rotate(total, 16) ^ _hash(item)
    body = _pack_entries(attributes, size=BLOCK_SIZE - _BLOCK_HEADER.size, base=_BLOCK_HEADER.size)
    return _BLOCK_HEADER.pack(XATTR_MAGIC, 1, 1, total, 0) + body


def _pack_entries(attributes: list[_Attribute], *, size: int, base: int) -> bytes:
    # Entries grow up from the start, values down from the end; offsets count from `base` before.
    raw = bytearray(size)
    place, end = 0, size
    for item in attributes:
        end -= len(item.value) + 3 & ~3
        raw[end : end + len(item.value)] = item.value
        offset = end + base if item.value else 0
        _ENTRY.pack_into(
            raw, place, len(item.name), item.prefix, offset, 0, len(item.value), _hash(item)
        )
        place += _ENTRY.size
        raw[place : place + len(item.name)] = item.name
        place += len(item.name) + 3 & ~3
    return bytes(raw)


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> 32 - bits) & 0xFFFF_FFFF


def _hash(item: _Attribute) -> int:
    value = 0
    for byte in item.name:
        value = _rotate(value, 5) ^ byte
    for (word,) in struct.iter_unpack("<I", item.value + bytes(-len(item.value) % 4)):
        value = _rotate(value, 16) ^ word
    return value


def unpack_tail(raw: bytes, *, at: int) -> dict[bytes, bytes]:
    """Return the xattrs in what follows an inode's fields; `at` is its offset on disk, for errors.

    Raises Ext4CorruptError, Ext4UnsupportedError.
    """
    if len(raw) < _TAIL_MAGIC.size or _TAIL_MAGIC.unpack_from(raw)[0] != XATTR_MAGIC:
        return {}
    return _unpack_entries(raw[_TAIL_MAGIC.size :], 0, at=at)


def unpack_block(raw: bytes, place: int, *, seed: int | None = None) -> dict[bytes, bytes]:
    """Return the xattrs in a block of their own, which lies at block `place`.

    Its checksum is verified where the file system's `seed` is given.
    Raises Ext4CorruptError, Ext4UnsupportedError.
    """
    at = place * len(raw)
    magic, _, blocks, _, checksum = _BLOCK_HEADER.unpack_from(raw)
    if magic != XATTR_MAGIC or blocks != 1:
        raise Ext4CorruptError("xattr block", f"magic {magic:#x}, {blocks} blocks", offset=at)
    if seed is not None and checksum != block_checksum(raw, place, seed=seed):
        raise Ext4CorruptError("xattr block checksum", "does not match its block", offset=at)
    return _unpack_entries(raw, _BLOCK_HEADER.size, at=at)


def _unpack_entries(raw: bytes, place: int, *, at: int) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    while place + _END <= len(raw) and raw[place : place + _END] != bytes(_END):
        if place + _ENTRY.size > len(raw):
            raise Ext4CorruptError("xattr entry", "cut short", offset=at + place)
        length, prefix, offset, inode, size, _ = _ENTRY.unpack_from(raw, place)
        if inode:
            raise Ext4UnsupportedError("an xattr whose value has an inode of its own (ea_inode)")
        name = raw[place + _ENTRY.size : place + _ENTRY.size + length]
        if len(name) < length or offset + size > len(raw):
            raise Ext4CorruptError("xattr entry", f"{size} bytes at {offset}", offset=at + place)
        value = raw[offset : offset + size] if size else b""
        if prefix in _ACLS:
            try:
                value = acl_from_disk(value)
            except ValueError as error:
                raise Ext4CorruptError("xattr entry", str(error), offset=at + place) from error
        found[_PREFIX_OF.get(prefix, b"") + name] = value
        place += _ENTRY.size + (length + 3 & ~3)
    return found

"""POSIX ACLs: the form that xattr calls and tars carry, and the shorter one on an ext4 disk.

Linux include/uapi/linux/posix_acl_xattr.h (version 2: every entry has an id) and fs/ext4/acl.h
(version 1: only named users and groups have one).
"""

from __future__ import annotations

import struct
from typing import Final

_XATTR_VERSION: Final = 2
_DISK_VERSION: Final = 1
_NAMED: Final = frozenset({0x02, 0x08})  # ACL_USER, ACL_GROUP
_NAMELESS: Final = frozenset({0x01, 0x04, 0x10, 0x20})  # owner, owning group, mask, others
_NO_ID: Final = 0xFFFF_FFFF
_VERSION = struct.Struct("<I")
_SHORT = struct.Struct("<HH")
_FULL = struct.Struct("<HHI")


def acl_to_disk(value: bytes) -> bytes:
    """Return the on-disk form of a `system.posix_acl_*` value. Raises ValueError."""
    if (
        len(value) < _VERSION.size
        or (len(value) - _VERSION.size) % _FULL.size
        or _VERSION.unpack_from(value)[0] != _XATTR_VERSION
    ):
        raise ValueError("not a POSIX ACL of version 2")
    disk = bytearray(_VERSION.pack(_DISK_VERSION))
    for tag, permissions, name in _FULL.iter_unpack(value[_VERSION.size :]):
        if tag in _NAMED:
            disk += _FULL.pack(tag, permissions, name)
        elif tag in _NAMELESS:
            disk += _SHORT.pack(tag, permissions)
        else:
            raise ValueError(f"a POSIX ACL entry with tag {tag:#x}")
    return bytes(disk)


def acl_from_disk(disk: bytes) -> bytes:
    """Return the `system.posix_acl_*` value of an on-disk ACL. Raises ValueError."""
    if len(disk) < _VERSION.size or _VERSION.unpack_from(disk)[0] != _DISK_VERSION:
        raise ValueError("not an on-disk ACL of version 1")
    value = bytearray(_VERSION.pack(_XATTR_VERSION))
    place = _VERSION.size
    while place < len(disk):
        if place + _SHORT.size > len(disk):
            raise ValueError("an ACL entry that is cut short")
        tag, permissions = _SHORT.unpack_from(disk, place)
        if tag in _NAMED:
            if place + _FULL.size > len(disk):
                raise ValueError("an ACL entry that is cut short")
            value += disk[place : place + _FULL.size]
            place += _FULL.size
        elif tag in _NAMELESS:
            value += _FULL.pack(tag, permissions, _NO_ID)
            place += _SHORT.size
        else:
            raise ValueError(f"an ACL entry with tag {tag:#x}")
    return bytes(value)

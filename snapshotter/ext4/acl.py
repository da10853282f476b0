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
_OWNER, _OWNING_GROUP, _MASK, _OTHERS = 0x01, 0x04, 0x10, 0x20
_NAMELESS: Final = frozenset({_OWNER, _OWNING_GROUP, _MASK, _OTHERS})
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


def acl_after_chmod(value: bytes, mode: int) -> bytes:
    """Return what chmod(2) to `mode` makes of a `system.posix_acl_access` value.

    The group's bits become the mask where there is one. A value that is no ACL comes back as it
    is. Linux fs/posix_acl.c, __posix_acl_chmod_masq.
    """
    body = value[_VERSION.size :]
    if len(value) < _VERSION.size or len(body) % _FULL.size:
        return value
    entries = list(_FULL.iter_unpack(body))
    group = _MASK if any(tag == _MASK for tag, _, _ in entries) else _OWNING_GROUP
    bits = {_OWNER: mode >> 6 & 7, group: mode >> 3 & 7, _OTHERS: mode & 7}
    changed = (_FULL.pack(tag, bits.get(tag, old), name) for tag, old, name in entries)
    return value[: _VERSION.size] + b"".join(changed)


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

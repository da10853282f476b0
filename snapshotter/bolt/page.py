"""The records of a bbolt file (go.etcd.io/bbolt page.go, bucket.go, db.go), little-endian.

Everything is checked against the bytes at hand; nothing in a file is believed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final, Self

from snapshotter.errors import BoltError

BRANCH_PAGE: Final = 0x01
LEAF_PAGE: Final = 0x02
_BUCKET_ELEMENT: Final = 0x01

_MAGIC: Final = 0xED0CDAED
_VERSION: Final = 2
_FNV_OFFSET: Final = 0xCBF29CE484222325
_FNV_PRIME: Final = 0x100000001B3
_MASK: Final = (1 << 64) - 1

MIN_PAGE_SIZE: Final = 1024
MAX_PAGE_SIZE: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class PageHeader:
    """id, flags, number of elements, and how many further pages belong to this one."""

    LAYOUT: ClassVar = struct.Struct("<QHHI")
    id: int
    flags: int
    count: int
    overflow: int

    @classmethod
    def unpack(cls, raw: bytes | memoryview, *, at: int) -> Self:
        """Decode 16 bytes. Raises BoltError."""
        if len(raw) < cls.LAYOUT.size:
            raise BoltError("page header", "cut short", offset=at)
        return cls(*cls.LAYOUT.unpack_from(raw))


@dataclass(frozen=True, slots=True)
class Meta:
    """A meta page's content: the root bucket and the number of the transaction that wrote it."""

    LAYOUT: ClassVar = struct.Struct("<IIIIQQQQQQ")
    page_size: int
    root: int
    sequence: int
    pages: int
    transaction: int

    @classmethod
    def unpack(cls, raw: bytes | memoryview, *, at: int) -> Self:
        """Decode 64 bytes after the page header. Raises BoltError."""
        if len(raw) < cls.LAYOUT.size:
            raise BoltError("meta page", "cut short", offset=at)
        magic, version, page_size, _, root, sequence, _, pages, transaction, checksum = (
            cls.LAYOUT.unpack_from(raw)
        )
        if magic != _MAGIC or version != _VERSION:
            raise BoltError("meta page", f"magic {magic:#x}, version {version}", offset=at)
        if checksum != fnv1a(bytes(raw[: cls.LAYOUT.size - 8])):
            raise BoltError("meta page", "wrong checksum", offset=at)
        if not MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE or page_size & (page_size - 1):
            raise BoltError("page size", page_size, offset=at)
        return cls(page_size, root, sequence, pages, transaction)


assert PageHeader.LAYOUT.size == 16
assert Meta.LAYOUT.size == 64


@dataclass(frozen=True, slots=True)
class LeafElement:
    """A key and its value, or a nested bucket's record."""

    key: bytes
    value: bytes
    is_bucket: bool


_LEAF: Final = struct.Struct("<IIII")
_BRANCH: Final = struct.Struct("<IIQ")
_BUCKET: Final = struct.Struct("<QQ")
BUCKET_SIZE: Final = _BUCKET.size


def leaf_elements(page: memoryview, count: int, *, at: int) -> Iterator[LeafElement]:
    """The elements of a leaf page, whose header is part of `page`. Raises BoltError."""
    for place in _places(page, count, at):
        flags, position, key_size, value_size = _LEAF.unpack_from(page, place)
        start = place + position
        _check_range(page, start, key_size + value_size, at)
        middle = start + key_size
        yield LeafElement(
            bytes(page[start:middle]),
            bytes(page[middle : middle + value_size]),
            bool(flags & _BUCKET_ELEMENT),
        )


def branch_children(page: memoryview, count: int, *, at: int) -> Iterator[int]:
    """The page numbers that a branch page leads to. Raises BoltError."""
    if count == 0:
        raise BoltError("branch page", "without elements", offset=at)
    for place in _places(page, count, at):
        position, key_size, child = _BRANCH.unpack_from(page, place)
        _check_range(page, place + position, key_size, at)
        yield child


def bucket_record(value: bytes, *, at: int) -> tuple[int, int]:
    """Root page (0 for a bucket whose page follows in the value) and sequence of a bucket."""
    if len(value) < BUCKET_SIZE:
        raise BoltError("bucket", "cut short", offset=at)
    root, sequence = _BUCKET.unpack_from(value)
    return root, sequence


def fnv1a(data: bytes) -> int:
    """FNV-1a of 64 bits, the checksum of a meta page."""
    value = _FNV_OFFSET
    for byte in data:
        value = ((value ^ byte) * _FNV_PRIME) & _MASK
    return value


def _places(page: memoryview, count: int, at: int) -> range:
    # A leaf's and a branch's elements are of one size, 16 bytes.
    end = PageHeader.LAYOUT.size + count * _LEAF.size
    if end > len(page):
        raise BoltError("page", f"{count} elements do not fit into it", offset=at)
    return range(PageHeader.LAYOUT.size, end, _LEAF.size)


def _check_range(page: memoryview, start: int, length: int, at: int) -> None:
    if start + length > len(page):
        raise BoltError("element", "leads outside its page", offset=at)

"""A bbolt file and its buckets.

Bounded whatever the file says: no page is read twice within one walk (so a loop ends at once),
trees are at most `_MAX_DEPTH` deep, and no element leads outside its page, nor a page outside the
file.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from snapshotter.bolt.page import (
    BRANCH_PAGE,
    BUCKET_SIZE,
    LEAF_PAGE,
    MAX_PAGE_SIZE,
    MIN_PAGE_SIZE,
    LeafElement,
    Meta,
    PageHeader,
    branch_children,
    bucket_record,
    leaf_elements,
)
from snapshotter.errors import BoltError, FailedPreconditionError, UnavailableError

_MAX_DEPTH: Final = 32
"""bbolt's pages hold two elements at least, so a file of 2^32 pages is no deeper."""


class BoltFile:
    """An open file; a context manager. `root` is the bucket that has all the others."""

    def __init__(self, data: memoryview, meta: Meta) -> None:
        self._data = data
        self._meta = meta
        self._mapped: mmap.mmap | None = None
        self._descriptor = -1

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the file, and keep a writer out for as long as it is open.

        Raises FileNotFoundError, BoltError (no bbolt file), FailedPreconditionError (a process
        has it open), UnavailableError.
        """
        target = Path(path)
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            descriptor = os.open(target, flags)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UnavailableError(f"cannot open {target}: {error.strerror}") from error
        mapped: mmap.mmap | None = None
        try:
            _lock(descriptor, target)
            if os.fstat(descriptor).st_size == 0:
                raise BoltError("file", "empty", offset=0)
            mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
            opened = cls.load(memoryview(mapped))
        except BaseException:
            if mapped is not None:
                _unmap(mapped)
            os.close(descriptor)
            raise
        opened._mapped = mapped
        opened._descriptor = descriptor
        return opened

    @classmethod
    def load(cls, data: bytes | memoryview) -> Self:
        """A file in memory. Raises BoltError."""
        view = memoryview(data)
        return cls(view, _newest_meta(view))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close; a second call does nothing. Buckets are of no use afterwards."""
        self._data.release()
        if self._mapped is not None:
            _unmap(self._mapped)
            os.close(self._descriptor)
            self._mapped = None

    @property
    def root(self) -> Bucket:
        """The bucket of buckets."""
        return Bucket(self, self._meta.root, self._meta.sequence, b"")

    def page(self, number: int) -> tuple[PageHeader, memoryview]:
        """A page with those that belong to it, its header included. Raises BoltError."""
        size = self._meta.page_size
        at = number * size
        # Pages 0 and 1 are the meta pages.
        if number < 2 or at + size > len(self._data):
            raise BoltError("page number", number, offset=None)
        header = PageHeader.unpack(self._data[at : at + size], at=at)
        end = at + (header.overflow + 1) * size
        if header.id != number or end > len(self._data):
            raise BoltError("page header", f"id {header.id}, overflow {header.overflow}", offset=at)
        return header, self._data[at:end]


class Bucket:
    """Keys with values and nested buckets, in the order of the keys."""

    def __init__(self, file: BoltFile, root: int, sequence: int, inline: bytes) -> None:
        self._file = file
        self._root = root
        self._inline = inline
        self.sequence = sequence

    def values(self) -> Iterator[tuple[bytes, bytes]]:
        """Every key that has a value. Raises BoltError."""
        for element in self._elements():
            if not element.is_bucket:
                yield element.key, element.value

    def buckets(self) -> Iterator[tuple[bytes, Bucket]]:
        """Every key that has a bucket. Raises BoltError."""
        for element in self._elements():
            if element.is_bucket:
                yield element.key, self._nested(element)

    def bucket(self, name: bytes) -> Bucket | None:
        """The bucket of that name, if any. Raises BoltError."""
        return next((bucket for key, bucket in self.buckets() if key == name), None)

    def _nested(self, element: LeafElement) -> Bucket:
        root, sequence = bucket_record(element.value, at=0)
        inline = element.value[BUCKET_SIZE:] if root == 0 else b""
        return Bucket(self._file, root, sequence, inline)

    def _elements(self) -> Iterator[LeafElement]:
        last: bytes | None = None
        for element in self._unordered():
            if last is not None and element.key <= last:
                raise BoltError("key", element.key[:64], offset=None)
            last = element.key
            yield element

    def _unordered(self) -> Iterator[LeafElement]:
        if self._root == 0:
            page = memoryview(self._inline)
            header = PageHeader.unpack(page, at=0)
            if not header.flags & LEAF_PAGE:
                raise BoltError("inline bucket", f"page flags {header.flags:#x}", offset=None)
            yield from leaf_elements(page, header.count, at=0)
            return
        seen: set[int] = set()
        pending = [(self._root, 1)]
        while pending:
            number, depth = pending.pop()
            if number in seen or depth > _MAX_DEPTH:
                raise BoltError("page number", f"{number} once more", offset=None)
            seen.add(number)
            header, page = self._file.page(number)
            at = number * len(page)
            if header.flags & BRANCH_PAGE:
                children = list(branch_children(page, header.count, at=at))
                pending += [(child, depth + 1) for child in reversed(children)]
            elif header.flags & LEAF_PAGE:
                yield from leaf_elements(page, header.count, at=at)
            else:
                raise BoltError("page", f"flags {header.flags:#x}", offset=at)


def _newest_meta(data: memoryview) -> Meta:
    """The valid meta page of the last transaction: one of them may be half written."""
    found: list[Meta] = []
    size = MIN_PAGE_SIZE
    places = [0]
    while size <= MAX_PAGE_SIZE:
        places.append(size)
        size *= 2
    for at in places:
        start = at + PageHeader.LAYOUT.size
        try:
            meta = Meta.unpack(data[start : start + Meta.LAYOUT.size], at=at)
        except BoltError:
            continue
        if at in (0, meta.page_size):
            found.append(meta)
    if not found:
        raise BoltError("file", "it has no valid meta page: no bbolt database", offset=0)
    return max(found, key=lambda meta: meta.transaction)


def _lock(descriptor: int, path: Path) -> None:
    # As bbolt's read-only mode does. On Windows bbolt locks a range that no Python call reaches;
    # there the documentation asks to stop containerd.
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FailedPreconditionError(
                f"{path} is open in a running containerd; stop it first"
            ) from error


def _unmap(mapped: mmap.mmap) -> None:
    # A page may still be referred to by a caller's iterator: then it goes with that.
    with contextlib.suppress(BufferError):
        mapped.close()

"""The files of an ext4 by path: what a test or a user looks for in a disk without mounting it.

Paths are POSIX paths from the root; bytes that are not UTF-8 are surrogate escapes, as in `os`.
Symlinks are never followed.
"""

from __future__ import annotations

import stat
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

from snapshotter.blockio import BlockReader
from snapshotter.errors import (
    Ext4CorruptError,
    Ext4UnsupportedError,
    InvalidArgumentError,
    NotFoundError,
)
from snapshotter.ext4.directory import unpack_directory_block
from snapshotter.ext4.format import BLOCK_SIZE, ROOT_INODE, Incompat, Superblock
from snapshotter.ext4.hashtree import check_directory_block
from snapshotter.ext4.inode import INLINE_AREA, Inode, InodeFlag, decode_device
from snapshotter.ext4.volume import Volume
from snapshotter.ext4.xattr import unpack_block, unpack_tail
from snapshotter.units import GIB

_MAX_READ: Final = 1 * GIB
_MAX_DIRECTORY: Final = 1 * GIB
_MAX_REMEMBERED: Final = 16  # directories


@dataclass(frozen=True, slots=True)
class FileStat:
    """What an inode says of its file, as `os.lstat` would."""

    inode: int
    mode: int  # type and permissions
    uid: int
    gid: int
    size: int
    links: int
    mtime_ns: int
    device: tuple[int, int] | None  # (major, minor) of a device node

    @property
    def is_directory(self) -> bool:
        """True for a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """True for a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        """True for a symlink."""
        return stat.S_ISLNK(self.mode)

    @property
    def is_whiteout(self) -> bool:
        """True for a character device 0:0, by which overlayfs hides a name of lower layers."""
        return stat.S_ISCHR(self.mode) and self.device == (0, 0)


class Ext4:
    """A file system to read from.

    Every method raises NotFoundError for a path that is not there, InvalidArgumentError for one
    of another type, Ext4CorruptError where the disk is damaged, Ext4UnsupportedError where it
    uses what is not handled. It holds no resource but the reader, which stays the caller's.
    Directories are remembered: a disk that changes has to be opened anew.
    """

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._directories: OrderedDict[int, dict[bytes, int]] = OrderedDict()

    @classmethod
    def open(cls, reader: BlockReader) -> Self:
        """Return the file system that starts at the first byte of `reader`."""
        return cls(Volume.open(reader))

    @property
    def superblock(self) -> Superblock:
        """The superblock as it is on disk."""
        return self._volume.superblock

    @property
    def needs_recovery(self) -> bool:
        """True where a journal waits to be replayed; what is read may then be a little old."""
        return bool(self.superblock.incompat & Incompat.RECOVER)

    def listdir(self, path: str) -> list[str]:
        """Return the names in a directory, in no order, without `.` and `..`."""
        number, inode = self._lookup(path)
        return [_text(name) for name in self._entries(number, inode, path)]

    def stat(self, path: str) -> FileStat:
        """Return what the inode of `path` says."""
        return _stat(*self._lookup(path))

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return the content of a regular file, or up to `length` bytes of it from `offset` on.

        At most 1 GiB a call.
        """
        return b"".join(self.read_parts(path, offset=offset, length=length, limit=_MAX_READ))

    def read_parts(
        self, path: str, *, offset: int = 0, length: int | None = None, limit: int | None = None
    ) -> Iterator[bytes]:
        """Yield what `read` returns in parts of at most 1 MiB, without its limit."""
        number, inode = self._lookup(path)
        if not stat.S_ISREG(inode.mode):
            raise InvalidArgumentError(f"{path}: not a regular file")
        if offset < 0 or (length is not None and length < 0):
            raise InvalidArgumentError(f"{path}: {length} bytes from {offset}")
        left = max(inode.size - offset, 0)
        left = left if length is None else min(left, length)
        if limit is not None and left > limit:
            raise InvalidArgumentError(f"{path}: {left} bytes at once: read it in parts")
        yield from self._volume.data(number, inode, offset, left)

    def readlink(self, path: str) -> str:
        """Return the target of a symlink."""
        number, inode = self._lookup(path)
        if not stat.S_ISLNK(inode.mode):
            raise InvalidArgumentError(f"{path}: not a symlink")
        if not 0 < inode.size <= BLOCK_SIZE:
            raise Ext4CorruptError("symlink", f"inode {number} of {inode.size} bytes")
        if not inode.flags & (InodeFlag.EXTENTS | InodeFlag.INLINE_DATA):
            if inode.size >= INLINE_AREA:
                raise Ext4UnsupportedError(f"inode {number} has a block map of ext2 or ext3")
            return _text(inode.block[: inode.size])
        return _text(b"".join(self._volume.data(number, inode, 0, inode.size)))

    def xattrs(self, path: str) -> dict[str, bytes]:
        """Return the extended attributes, POSIX ACLs in the form of the system calls."""
        number, inode = self._lookup(path)
        tail, at = self._volume.inode_tail(number, inode)
        found = unpack_tail(tail, at=at)
        if inode.xattr_block:
            block = self._volume.read_block(inode.xattr_block)
            superblock = self.superblock
            seed = superblock.checksum_seed if superblock.has_checksums else None
            found.update(unpack_block(block, inode.xattr_block, seed=seed))
        return {_text(name): value for name, value in found.items()}

    def walk(self, path: str = "/") -> Iterator[tuple[str, FileStat]]:
        """Yield (path, stat) of `path` and of everything below it, each directory first."""
        number, inode = self._lookup(path)
        start = "/" + "/".join(_parts(path))
        seen: set[int] = set()
        waiting = [(start, number)]
        while waiting:
            path, number = waiting.pop()
            inode = self._volume.inode(number)
            yield path, _stat(number, inode)
            if not stat.S_ISDIR(inode.mode):
                continue
            if number in seen:
                raise Ext4CorruptError("directory", f"{path}: inode {number} has two names")
            seen.add(number)
            above = path.rstrip("/")
            names = self._entries(number, inode, path)
            waiting += [
                (f"{above}/{_text(name)}", names[name]) for name in sorted(names, reverse=True)
            ]

    def _lookup(self, path: str) -> tuple[int, Inode]:
        number = ROOT_INODE
        inode = self._volume.inode(number)
        for part in _parts(path):
            if not stat.S_ISDIR(inode.mode):
                raise NotFoundError(f"{path}: {part!r} is below what is not a directory")
            child = self._entries(number, inode, path).get(part.encode(errors="surrogateescape"))
            if child is None:
                raise NotFoundError(f"{path}: not in the file system")
            number, inode = child, self._volume.inode(child)
        return number, inode

    def _entries(self, number: int, inode: Inode, path: str) -> dict[bytes, int]:
        if not stat.S_ISDIR(inode.mode):
            raise InvalidArgumentError(f"{path}: not a directory")
        entries = self._directories.get(number)
        if entries is None:
            entries = self._directories[number] = self._read_entries(number, inode)
            if len(self._directories) > _MAX_REMEMBERED:
                self._directories.popitem(last=False)
        self._directories.move_to_end(number)
        return entries

    def _read_entries(self, number: int, inode: Inode) -> dict[bytes, int]:
        size = self._volume.block_size
        if inode.size % size or inode.size > _MAX_DIRECTORY:
            raise Ext4CorruptError("directory", f"inode {number} of {inode.size} bytes")
        entries: dict[bytes, int] = {}
        seed = self._volume.seed_of(number, inode)
        for extent in self._volume.extents(number, inode):
            if not extent.written:
                raise Ext4CorruptError("directory", f"inode {number} has unwritten blocks")
            stop = min(extent.count, inode.size // size - extent.logical)
            for index in range(stop):
                block = extent.physical + index
                raw = self._volume.read_block(block)
                if seed is not None:
                    check_directory_block(raw, seed=seed, at=block * size)
                for entry in unpack_directory_block(raw, at=block * size):
                    if entry.name in (b".", b".."):
                        continue
                    if entry.name in entries:
                        # Also what stops a directory that maps one block a million times.
                        raise Ext4CorruptError(
                            "directory", f"inode {number} has {_text(entry.name)!r} twice"
                        )
                    entries[entry.name] = entry.inode
        return entries


def _parts(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path:
        raise InvalidArgumentError(f"{path!r}: give a path without `..` and NUL")
    return parts


def _text(name: bytes) -> str:
    return name.decode(errors="surrogateescape")


def _stat(number: int, inode: Inode) -> FileStat:
    is_device = stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode)
    return FileStat(
        inode=number,
        mode=inode.mode,
        uid=inode.uid,
        gid=inode.gid,
        size=inode.size,
        links=inode.links,
        mtime_ns=inode.mtime_ns,
        device=decode_device(inode.block) if is_device else None,
    )

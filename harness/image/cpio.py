"""A cpio archive in the "newc" form that the kernel unpacks as its initramfs.

The same calls give the same bytes: inode numbers count up, times are 0, owner is root. Source:
Linux Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import enum
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from harness.errors import ImageBuildError

_MAGIC = "070701"
_TRAILER = "TRAILER!!!"
_ALIGNMENT = 4
_HEADER = len(_MAGIC) + 13 * 8
_BLOCK = 512
_MAX_FILE = 2**32 - 1
_S_IFCHR, _S_IFDIR, _S_IFBLK, _S_IFREG, _S_IFLNK = 0o020000, 0o040000, 0o060000, 0o100000, 0o120000


class DeviceKind(enum.Enum):
    """What a device node stands for."""

    CHARACTER = _S_IFCHR
    BLOCK = _S_IFBLK


@dataclass(frozen=True, slots=True)
class Entry:
    """One path below the root, without a leading slash; the first field that is set says what.

    None of them set is a directory.
    """

    name: str
    mode: int
    content: bytes | None = None
    target: str | None = None
    device: tuple[int, int] | None = None
    """Major and minor number of a character device."""


def read_entries(archive: BinaryIO) -> Iterator[Entry]:
    """Yield what an archive of `CpioWriter` has, in its order. Raises ImageBuildError."""
    while True:
        header = archive.read(_HEADER)
        if len(header) < _HEADER or not header.startswith(_MAGIC.encode()):
            raise ImageBuildError("a cpio archive ends without its trailer, or is none")
        fields = [int(header[at : at + 8], 16) for at in range(len(_MAGIC), _HEADER, 8)]
        mode, size, major, minor, name_size = (fields[at] for at in (1, 6, 9, 10, 11))
        name = _read_padded(archive, name_size, _HEADER).rstrip(b"\0").decode()
        content = _read_padded(archive, size, 0)
        if name == _TRAILER:
            return
        permissions = stat.S_IMODE(mode)
        match stat.S_IFMT(mode):
            case stat.S_IFREG:
                yield Entry(name, permissions, content=content)
            case stat.S_IFLNK:
                yield Entry(name, permissions, target=content.decode())
            case stat.S_IFCHR:
                yield Entry(name, permissions, device=(major, minor))
            case _:
                yield Entry(name, permissions)


def _read_padded(archive: BinaryIO, size: int, before: int) -> bytes:
    """Read a part and the zeros up to the next alignment; `before` bytes went ahead of it."""
    data = archive.read(size)
    archive.read(-(before + size) % _ALIGNMENT)
    return data


class CpioWriter:
    """Writes entries to a binary stream in the order of the calls.

    Paths are relative to the root of the file system, without a leading slash. The kernel does not
    make parents: a directory comes before what is in it.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._inode = 0
        self._written = 0

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._written

    def directory(self, path: str, *, mode: int = 0o755) -> None:
        """Add a directory."""
        self._entry(path, _S_IFDIR | mode, links=2)

    def file(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._entry(path, _S_IFREG | mode, content)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link to `target`, which is stored as it is."""
        self._entry(path, _S_IFLNK | 0o777, target.encode())

    def device(
        self, path: str, kind: DeviceKind, *, major: int, minor: int, mode: int = 0o600
    ) -> None:
        """Add a device node."""
        self._entry(path, kind.value | mode, major=major, minor=minor)

    def finish(self) -> None:
        """Write the trailer and pad to a block; nothing may follow."""
        self._record(0, 0, 1, b"", 0, 0, _TRAILER)
        self._write(b"\0" * (-self._written % _BLOCK))

    def _entry(
        self,
        path: str,
        mode: int,
        content: bytes = b"",
        *,
        links: int = 1,
        major: int = 0,
        minor: int = 0,
    ) -> None:
        if not path or path.startswith("/") or "\0" in path or path == _TRAILER:
            raise ValueError(f"not a path of a cpio entry: {path!r}")
        if len(content) > _MAX_FILE:
            raise ValueError(f"{path}: {len(content)} bytes do not fit a newc entry")
        self._inode += 1
        self._record(self._inode, mode, links, content, major, minor, path)

    def _record(
        self, inode: int, mode: int, links: int, content: bytes, major: int, minor: int, name: str
    ) -> None:
        raw_name = name.encode() + b"\0"
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, major, minor, len(raw_name), 0)
        self._write(_MAGIC.encode() + b"".join(b"%08x" % field for field in fields))
        self._write(raw_name)
        self._align()
        self._write(content)
        self._align()

    def _align(self) -> None:
        self._write(b"\0" * (-self._written % _ALIGNMENT))

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self._written += len(data)

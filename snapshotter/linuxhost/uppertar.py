"""The upper directory of an overlay as an OCI layer tar (image-spec, layer.md).

Overlayfs' own marks become those of a layer: a character device 0:0 named x is `.wh.x`, the xattr
trusted.overlay.opaque=y of a directory is `.wh..wh..opq` in it. Its other marks (origin, impure)
mean something in this one overlay alone, and stay out. So do sockets, which no tar can hold.
"""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import io
import logging
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from snapshotter.errors import FailedPreconditionError
from snapshotter.units import KIB

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_log = logging.getLogger(__name__)

_WHITEOUT: Final = ".wh."
_OPAQUE_MARK: Final = ".wh..wh..opq"
_OVERLAY_XATTRS: Final = "trusted.overlay."
_OPAQUE_XATTR: Final = "trusted.overlay.opaque"
_REDIRECTS: Final = ("trusted.overlay.redirect", "trusted.overlay.metacopy")
_TAR_BLOCK: Final = tarfile.BLOCKSIZE
_END: Final = bytes(2 * _TAR_BLOCK)
_READ_SIZE: Final = 256 * KIB
_NANO: Final = 1_000_000_000
_TYPES: Final = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


def upper_tar(upper: Path) -> io.BufferedReader:
    """A tar of everything below `upper`, its own mode and owner included, made while it is read.

    The same content gives the same bytes. Reading raises FailedPreconditionError for what a layer
    cannot say: a file named like a whiteout, an entry that overlayfs redirects.
    """
    return io.BufferedReader(_Chunks(_Upper(upper).chunks()), _READ_SIZE)


class _Chunks(io.RawIOBase):
    """Chunks of bytes as a stream."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        super().__init__()
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class _Upper:
    def __init__(self, upper: Path) -> None:
        self._upper = upper
        self._names: dict[tuple[int, int], str] = {}  # first name of each file with several

    def chunks(self) -> Iterator[bytes]:
        """The tar, front to back."""
        yield from self._entry("./", str(self._upper), self._upper.lstat())
        yield from self._below("", str(self._upper))
        yield _END

    def _below(self, prefix: str, directory: str) -> Iterator[bytes]:
        with os.scandir(directory) as entries:
            found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        for entry in found:
            name = prefix + entry.name
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                yield tarfile.TarInfo(prefix + _WHITEOUT + entry.name).tobuf()
                continue
            if entry.name.startswith(_WHITEOUT):
                raise FailedPreconditionError(
                    f"{name!r} cannot be in a layer: names with {_WHITEOUT} are whiteouts there;"
                    " rename it and commit again"
                )
            if stat.S_ISSOCK(status.st_mode):
                _log.info("the socket %r does not become part of the layer", name)
                continue
            yield from self._entry(name, entry.path, status)
            if stat.S_ISDIR(status.st_mode):
                yield from self._below(f"{name}/", entry.path)

    def _entry(self, name: str, path: str, status: os.stat_result) -> Iterator[bytes]:
        info = tarfile.TarInfo(name)
        info.mode = stat.S_IMODE(status.st_mode)
        info.uid, info.gid = status.st_uid, status.st_gid
        info.mtime = status.st_mtime_ns // _NANO
        info.type = _TYPES[stat.S_IFMT(status.st_mode)]
        if info.type != tarfile.DIRTYPE and status.st_nlink > 1:
            first = self._names.setdefault((status.st_dev, status.st_ino), name)
            if first != name:
                info.type, info.linkname = tarfile.LNKTYPE, first
                yield _header(info)
                return
        xattrs = self._xattrs(name, path)
        opaque = xattrs.pop(_OPAQUE_XATTR, b"") == b"y"
        info.pax_headers = {
            f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape")
            for key, value in xattrs.items()
        }
        if status.st_mtime_ns % _NANO or info.mtime < 0:
            sign = "-" if status.st_mtime_ns < 0 else ""
            seconds, fraction = divmod(abs(status.st_mtime_ns), _NANO)
            info.pax_headers["mtime"] = f"{sign}{seconds}.{fraction:09d}"
        if info.type == tarfile.SYMTYPE:
            # A Path would drop a slash at the end, which asks for a directory.
            info.linkname = os.readlink(path)  # noqa: PTH115 (see above)
        elif info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE):
            info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        elif info.type == tarfile.REGTYPE:
            info.size = status.st_size
        yield _header(info)
        if info.type == tarfile.REGTYPE:
            yield from _content(name, path, info.size)
        if opaque:
            yield tarfile.TarInfo(f"{name.rstrip('/')}/{_OPAQUE_MARK}").tobuf()

    @staticmethod
    def _xattrs(name: str, path: str) -> dict[str, bytes]:
        found = {}
        for key in os.listxattr(path, follow_symlinks=False):
            if key in _REDIRECTS:
                raise FailedPreconditionError(
                    f"{name!r} has {key}: a layer cannot say that; mount the snapshot with"
                    " redirect_dir=off,metacopy=off"
                )
            if key == _OPAQUE_XATTR or not key.startswith(_OVERLAY_XATTRS):
                found[key] = os.getxattr(path, key, follow_symlinks=False)
        return found


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _content(name: str, path: str, size: int) -> Iterator[bytes]:
    left = size
    with open(path, "rb", buffering=0) as file:
        while left:
            data = file.read(min(left, _READ_SIZE))
            if not data:
                raise FailedPreconditionError(
                    f"{name!r} shrank while it was read: unmount the snapshot and commit again"
                )
            left -= len(data)
            yield data
    yield bytes(-size % _TAR_BLOCK)

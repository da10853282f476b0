"""Disks of the model: real files, really opened and locked, whose content lives in memory.

The first attachment reads the file system out of the VHD or VHDX. What guests write stays in
memory, keyed by the file's identity and the identifier inside the VHDX, and outlives the virtual
machines; the file itself is never written. Two writers, or a writer beside a reader, are refused
as Windows refuses them (0x80070020).
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from typing import Final

from harness.diskfiles import DiskFiles
from harness.errors import ComputeServiceError
from harness.hcs.document import Attachment, AttachmentType
from harness.model.files import BLOCK, FileSystem, Kind, Node, directory
from snapshotter.blockio import BlockReader
from snapshotter.errors import NotFoundError, SnapshotterError
from snapshotter.ext4.reader import Ext4, FileStat
from snapshotter.vhd import FixedVhd
from snapshotter.vhdx import VhdxDisk

E_NOTIMPL: Final = 0x80004001
FILE_NOT_FOUND: Final = 0x80070002
SHARING_VIOLATION: Final = 0x80070020
FILE_CORRUPT: Final = 0x80070570
_VHDX_SIGNATURE: Final = b"vhdxfile"
_BYTES_PER_INODE: Final = 4096  # mke2fs.conf, "small"
_EXT4_MAGIC_AT: Final = 1024 + 56


@dataclass(eq=False)
class ModelDisk:
    """A disk that is attached: its lock, and its file system (None: not formatted)."""

    path: str
    read_only: bool
    content: _Content
    _lock: int = -1

    @property
    def files(self) -> FileSystem | None:
        """The file system on it."""
        return self.content.files

    def format(self) -> None:
        """Make an empty ext4 on it."""
        self.content.files = FileSystem(
            directory(),
            name=self.path,
            free_blocks=self.content.size // BLOCK * 15 // 16,
            free_inodes=self.content.size // _BYTES_PER_INODE,
        )

    def close(self) -> None:
        """Let the file go; may be repeated."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


@dataclass(eq=False)
class _Content:
    size: int
    files: FileSystem | None


class DiskStore:
    """Every disk that this service has ever seen."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._contents: dict[tuple[object, ...], _Content] = {}
        self._versions: dict[tuple[int, ...], _Content] = {}

    def open(self, attachment: Attachment) -> ModelDisk:
        """Return the disk of an attachment, locked. Raises ComputeServiceError naming the file."""
        if attachment.type is not AttachmentType.VIRTUAL_DISK:
            raise ComputeServiceError(
                f"attachment type {attachment.type or '(none)'} of {attachment.path}: the model "
                f"attaches {AttachmentType.VIRTUAL_DISK} only",
                hresult=E_NOTIMPL,
            )
        path = os.path.realpath(attachment.path)
        try:
            lock = _lock_file(path, shared=attachment.read_only)
        except FileNotFoundError as error:
            raise ComputeServiceError(
                f"disk {path}: {error.strerror}", hresult=FILE_NOT_FOUND
            ) from error
        except OSError as error:
            raise ComputeServiceError(
                f"disk {path} is in use by another virtual machine or attached twice: "
                f"{error.strerror}",
                hresult=SHARING_VIOLATION,
            ) from error
        try:
            content = self._content(path)
            if not attachment.read_only and content.files is not None:
                content.files.sync()  # what is on the disk now survives the next crash
            return ModelDisk(path, attachment.read_only, content, lock)
        except SnapshotterError as error:
            os.close(lock)
            raise ComputeServiceError(f"disk {path}: {error}", hresult=FILE_CORRUPT) from error
        except BaseException:
            os.close(lock)
            raise

    def open_files(self, path: str | os.PathLike[str]) -> DiskFiles:
        """Return the files on a disk. Raises NotFoundError for a disk that is not formatted."""
        files = self._content(os.path.realpath(path)).files
        if files is None:
            raise NotFoundError(f"{os.fspath(path)} has no file system")
        return _Files(files)

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._contents.clear()
            self._versions.clear()

    def _content(self, path: str) -> _Content:
        with self._lock:
            status = os.stat(path)
            # The file is never written here, so an unchanged one need not be read again.
            version = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
            if version in self._versions:
                return self._versions[version]
            with open(path, "rb") as file:
                is_vhdx = file.read(len(_VHDX_SIGNATURE)) == _VHDX_SIGNATURE
            disk = _open_image(path, vhdx=is_vhdx)
            # A number that is used again for another file comes with another identifier inside.
            inner = disk.info().disk_id if isinstance(disk, VhdxDisk) else status.st_mtime_ns
            key = (status.st_dev, status.st_ino, inner)
            with disk:
                if key not in self._contents:
                    self._contents[key] = _Content(disk.size, _read_files(disk, path))
            self._versions[version] = self._contents[key]
            return self._contents[key]


@dataclass(frozen=True, slots=True)
class _Files:
    """Implements `harness.diskfiles.DiskFiles`."""

    files: FileSystem

    def listdir(self, path: str) -> list[str]:
        try:
            return self.files.names(path)
        except OSError as error:
            raise NotFoundError(f"{path}: {error.strerror}") from error

    def read(self, path: str) -> bytes:
        node = self.files.find(path)
        if node is None or node.kind is not Kind.FILE:
            raise NotFoundError(f"{path}: no such file")
        return node.content()


def _read_files(disk: BlockReader, path: str) -> FileSystem | None:
    if disk.read_at(_EXT4_MAGIC_AT, 2) != b"\x53\xef":
        return None
    ext4 = Ext4.open(disk)
    root = directory()
    inodes: dict[int, Node] = {}
    for name, status in ext4.walk():
        if name == "/":
            continue
        node = inodes.get(status.inode) or _node(ext4, name, status, disk_path=path)
        inodes[status.inode] = node
        parent = root
        for part in name.split("/")[1:-1]:
            parent = parent.children[part]
        parent.children[name.rsplit("/", 1)[1]] = node
    block = ext4.superblock
    return FileSystem(
        root,
        name=path,
        free_blocks=block.free_blocks_count_lo | block.free_blocks_count_hi << 32,
        reserved_blocks=block.reserved_blocks_count_lo | block.reserved_blocks_count_hi << 32,
        free_inodes=block.free_inodes_count,
    )


def _open_image(path: str, *, vhdx: bool) -> VhdxDisk | FixedVhd:
    return VhdxDisk.open(path) if vhdx else FixedVhd.open(path)


def _node(ext4: Ext4, path: str, status: FileStat, *, disk_path: str) -> Node:
    mode = status.mode & 0o7777
    if status.is_directory:
        opaque = ext4.xattrs(path).get("trusted.overlay.opaque") == b"y"
        return Node(Kind.DIRECTORY, mode, opaque=opaque)
    if status.is_symlink:
        return Node(Kind.LINK, mode, target=ext4.readlink(path))
    if status.is_file:
        # Read at its first use, if ever: no file of the host stays open for that.
        def load() -> bytes:
            with _open_image(disk_path, vhdx=disk_path.endswith(".vhdx")) as disk:
                return Ext4.open(disk).read(path)

        return Node(Kind.FILE, mode, load=load, loaded_size=status.size)
    if status.device is not None:
        return Node(Kind.CHARACTER, mode, device=status.device)
    return Node(Kind.FIFO, mode)


def _lock_file(path: str, *, shared: bool) -> int:
    """Return a descriptor that holds the file's lock. Raises OSError while others hold it."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    if sys.platform != "win32":
        import fcntl

        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
    return descriptor

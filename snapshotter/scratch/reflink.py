"""Scratch disks as clones of one file, on file systems that share blocks (XFS, Btrfs, bcachefs).

The clone shares every block with a nameless template file; what makes it a disk of its own, its
headers and metadata, is then written over. That is fewer bytes than even the sparse template.
Linux ioctl_ficlonerange(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from snapshotter.blockio import DiskContent
from snapshotter.errors import AlreadyExistsError, UnavailableError
from snapshotter.scratch.template import ScratchTemplate

_FICLONE: Final = 0x4004_9409  # _IOW(0x94, 9, int)
_NOT_HERE: Final = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.EISDIR, errno.ENOSYS}
)


class ReflinkSource:
    """A template file in a directory, to be cloned into that file system; a context manager."""

    def __init__(self, descriptor: int, template: ScratchTemplate, shared: DiskContent) -> None:
        self._descriptor = descriptor
        self._template = template
        self._shared = dict(shared.pieces)

    @classmethod
    @contextlib.contextmanager
    def open(cls, directory: Path, template: ScratchTemplate) -> Iterator[Self | None]:
        """Yield the source of clones of `template`, or None where files cannot share blocks.

        The file has no name: it is gone with the context, or with the process.
        Raises UnavailableError (disk full, no permission).
        """
        content = template.content()
        descriptor = -1
        try:
            try:
                descriptor = _nameless(directory)
                _fill(descriptor, content)
                supported = _can_clone(directory, descriptor)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise UnavailableError(
                        f"cannot make a template in {directory}: {error.strerror}"
                    ) from error
                supported = False
            yield cls(descriptor, template, content) if supported else None
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def write(self, path: Path, *, durable: bool = True) -> None:
        """Store a new scratch disk at `path`, as `ScratchTemplate.write` does.

        Raises AlreadyExistsError, UnavailableError.
        """
        own = [
            (offset, data)
            for offset, data in self._template.content().pieces
            if self._shared.get(offset) != data
        ]
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
            descriptor = os.open(temporary, flags, 0o644)
            try:
                _clone(descriptor, self._descriptor)
                for offset, data in own:
                    os.lseek(descriptor, offset, os.SEEK_SET)
                    os.write(descriptor, data)
                if durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.link(temporary, path)
        except FileExistsError as error:
            raise AlreadyExistsError(f"{path} exists already") from error
        except OSError as error:
            raise UnavailableError(f"cannot write {path}: {error.strerror}") from error
        finally:
            temporary.unlink(missing_ok=True)


def _fill(descriptor: int, content: DiskContent) -> None:
    os.ftruncate(descriptor, content.size)
    for offset, data in content.pieces:
        os.lseek(descriptor, offset, os.SEEK_SET)
        os.write(descriptor, data)


if sys.platform == "linux":
    import fcntl

    def _clone(target: int, source: int) -> None:
        fcntl.ioctl(target, _FICLONE, source)

    def _nameless(directory: Path) -> int:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)

    def _can_clone(directory: Path, source: int) -> bool:
        probe = _nameless(directory)
        try:
            _clone(probe, source)
        finally:
            os.close(probe)
        return True

else:

    def _clone(target: int, source: int) -> None:
        raise OSError(errno.EOPNOTSUPP, f"no clone of {source} to {target} here")

    def _nameless(directory: Path) -> int:
        raise OSError(errno.EOPNOTSUPP, f"no file without a name in {directory} here")

    def _can_clone(directory: Path, source: int) -> bool:
        del directory, source
        return False

"""What is mounted under `<root>/m`, and for whom.

::

    m/l<N>        layer.vhd of snapshot N, read-only
    m/v<N>        a directory that lies over m/l<N> and hides its lost+found
    m/s<K>        scratch disk K; below it <N>/fs and <N>/work of each snapshot N that uses it
    m/d<N>        the disk of an unpack snapshot N (it has no scratch disk), likewise
    m/d<N>.ext4   the file of that disk

A disk is mounted while a snapshot needs it; a layer until it is removed, but of those that no
snapshot needs now only the last ones used. All mounts go lazily: overlay mounts made of them keep
what they use. Nothing here outlives the process but what clients still have mounted.
"""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import contextlib
import errno
import logging
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from snapshotter.errors import UnavailableError
from snapshotter.linuxhost.loopdevice import loop_device
from snapshotter.linuxhost.syscalls import NO_FLAGS, MountFlag, mount, mounts_below, unmount

_log = logging.getLogger(__name__)

_LOST_AND_FOUND: Final = "lost+found"
_OVERLAY_XATTRS: Final = "trusted.overlay."
_EMPTY: Final = "empty"
_VEIL: Final = re.compile("v[0-9]+")
_MOUNT_POINT: Final = re.compile("[lsd][0-9]+")
_MAX_IDLE: Final = 256
"""Layers kept mounted for the next snapshot: a chain of 128 costs 8000 mounts without."""


class MountTable:
    """The mounts of one root; one process at a time has it open. Raises UnavailableError."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock
        self._guard = threading.RLock()
        # What is mounted, and for whom.
        self._users: dict[str, set[int]] = {}
        self._files: dict[str, Path] = {}
        self._idle: dict[str, None] = {}  # mounted layers without a user, the oldest first

    @classmethod
    def open(cls, path: Path) -> MountTable:
        """Take `path`, made where it is missing, and sweep what a killed process left mounted."""
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            lock = FileLock(path / "lock", mode=0o600, thread_local=False)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UnavailableError(
                f"another process serves {path.parent} in linux-host mode; stop it first"
            ) from error
        except OSError as error:
            raise _refused("use", path, error) from error
        table = cls(path, lock)
        table.sweep()
        return table

    def close(self) -> None:
        """Unmount everything and give `path` up; a second call does nothing."""
        if self._lock.is_locked:
            self.sweep()
            self._lock.release()

    def sweep(self) -> None:
        """Unmount everything below `path`."""
        with self._guard:
            self._users.clear()
            self._files.clear()
            self._idle.clear()
            for point in mounts_below(self.path):
                _detach(point.path)
            for path in self.path.iterdir():
                if _VEIL.fullmatch(path.name):
                    shutil.rmtree(path, ignore_errors=True)
                elif _MOUNT_POINT.fullmatch(path.name):
                    with contextlib.suppress(OSError):
                        path.rmdir()

    def layer(self, number: int, disk: Path, *, user: int) -> Path:
        """The mount point of a layer, mounted for `user` (a snapshot's number)."""
        if not disk.is_file():
            raise UnavailableError(
                f"{disk} is missing: linux-host mode needs the layer of every parent; remove the"
                " snapshot and unpack its image again"
            )
        return self._mount(f"l{number}", lambda: disk, user=user, writable=False)

    def disk(self, name: str, make: Callable[[], Path], *, user: int) -> Path:
        """The mount point `name` of a writable disk, mounted for `user`; `make` gives its file."""
        return self._mount(name, make, user=user, writable=True)

    def veil(self, number: int, layer: Path) -> Path:
        """A directory that as an upper neighbour of `layer` hides its lost+found.

        It looks like the root of the layer: overlayfs shows the root of the uppermost directory.
        """
        path = self.path / f"v{number}"
        with self._guard:
            try:
                path.mkdir(exist_ok=True)
                whiteout = path / _LOST_AND_FOUND
                if not os.path.lexists(whiteout):
                    os.mknod(whiteout, stat.S_IFCHR, os.makedev(0, 0))
                copy_attributes(layer, path)
            except OSError as error:
                raise _refused("make", path, error) from error
        return path

    def empty(self) -> Path:
        """An empty directory."""
        path = self.path / _EMPTY
        path.mkdir(mode=0o755, exist_ok=True)
        return path

    def release(self, user: int, *, discard: bool) -> None:
        """Unmount what nobody but `user` needed; layers stay for a while.

        With `discard`, the file of a disk that is unmounted is deleted: nobody wants it again.
        """
        with self._guard:
            for name in [name for name, users in self._users.items() if user in users]:
                self._users[name].discard(user)
                if self._users[name]:
                    continue
                if name.startswith("l"):
                    self._idle[name] = None
                    continue
                file = self._files[name]
                self._drop(name)
                if discard:
                    file.unlink(missing_ok=True)
            while len(self._idle) > _MAX_IDLE:
                self._drop(next(iter(self._idle)))

    def forget_layer(self, number: int) -> None:
        """Unmount a layer that is removed."""
        with self._guard:
            if f"l{number}" in self._users:
                self._drop(f"l{number}")

    def _mount(self, name: str, make: Callable[[], Path], *, user: int, writable: bool) -> Path:
        path = self.path / name
        with self._guard:
            if name not in self._users:
                file = make()
                try:
                    path.mkdir(mode=0o700, exist_ok=True)
                    flags = NO_FLAGS if writable else MountFlag.READ_ONLY
                    with loop_device(file, writable=writable) as loop:
                        mount(str(loop.path), path, kind="ext4", flags=flags)
                except OSError as error:
                    raise _refused(f"mount {file} at", path, error) from error
                self._files[name] = file
            self._users.setdefault(name, set()).add(user)
            self._idle.pop(name, None)
        return path

    def _drop(self, name: str) -> None:
        path = self.path / name
        del self._users[name], self._files[name]
        self._idle.pop(name, None)
        _detach(path)
        with contextlib.suppress(OSError):  # else the next mount of that name uses it
            path.rmdir()
        if name.startswith("l"):
            shutil.rmtree(self.path / f"v{name[1:]}", ignore_errors=True)


def copy_attributes(source: Path, target: Path) -> None:
    """Give the directory `target` mode, owner, times and xattrs of `source`, overlay marks apart.

    Raises OSError.
    """
    status = source.stat()
    os.chown(target, status.st_uid, status.st_gid)
    target.chmod(stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        if not name.startswith(_OVERLAY_XATTRS):
            try:
                os.setxattr(target, name, os.getxattr(source, name))
            except OSError as error:
                if error.errno != errno.ENOTSUP:
                    raise
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _detach(path: Path) -> None:
    try:
        unmount(path, lazily=True)
    except OSError as error:
        _log.warning("cannot unmount %s: %s; the next start tries again", path, error.strerror)


def _refused(verb: str, path: Path, error: OSError) -> UnavailableError:
    return UnavailableError(f"cannot {verb} {path}: {error.strerror}")

"""The private directory of a service's sockets, and the removal of those that a crash left.

The owner of a directory holds a lock (flock) on it. A directory that can be locked has no owner any
more: its process was killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from harness.errors import ComputeServiceError

_PREFIX: Final = "lcowlab-qemu-"
_MAX_SOCKET_PATH: Final = 100  # sun_path holds 108 bytes
_ROOM: Final = len("/4294967295/4294967295")  # a system's number, a stream's number


class RuntimeDirectory:
    """A directory (0700) whose path is short enough for Unix sockets; exists until `remove`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls) -> RuntimeDirectory:
        """Return a new one, after removing those whose owners are gone.

        It is made in XDG_RUNTIME_DIR, or else where temporary files go. Raises ComputeServiceError.
        """
        tried = []
        for parent in _parents():
            _sweep(parent)
            for _ in range(8):  # again, if another process swept it before it was locked
                try:
                    path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
                except OSError as error:
                    tried.append(str(error))
                    break
                if len(os.fsencode(path)) + _ROOM > _MAX_SOCKET_PATH:
                    path.rmdir()
                    tried.append(f"{path}: too long for Unix sockets")
                    break
                lock = _lock(path)
                if lock is not None:
                    return cls(path, lock)
        raise ComputeServiceError(f"no directory for sockets: {'; '.join(tried)}")

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _parents() -> Iterator[Path]:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        yield Path(runtime)
    yield Path(tempfile.gettempdir())
    yield Path("/tmp")  # noqa: S108 - a private directory is made in it


def _sweep(parent: Path) -> None:
    with contextlib.suppress(OSError):
        for path in parent.glob(f"{_PREFIX}*"):
            lock = _lock(path)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock of an existing directory of this user, or None."""
    if sys.platform != "win32":
        import fcntl

        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(descriptor)
            if held.st_uid == os.getuid() and os.path.samestat(held, os.stat(path)):
                return descriptor
        except OSError:
            pass  # owned by a living process, or swept meanwhile
        os.close(descriptor)
    return None

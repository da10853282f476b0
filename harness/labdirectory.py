"""The private directory of a lab: made, kept or removed, and swept where its owner was killed.

A living owner holds the lock of its directory; one that was kept on purpose has a mark.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from filelock import FileLock, Timeout

from harness.errors import InfrastructureError
from snapshotter.errors import UnavailableError

_LOCK_FILE: Final = "lock"
_KEEP_FILE: Final = "keep"
_PREFIX: Final = "lab-"
_ATTEMPTS: Final = 8


class LabDirectory:
    """A directory that is this process's until `remove` or `keep`."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock

    @property
    def name(self) -> str:
        """What tells it from its neighbours."""
        return self.path.name.removeprefix(_PREFIX)

    @classmethod
    def create(cls, base: Path, *, tell: Callable[[str], None]) -> Self:
        """Return a new one in `base`, after removing those whose owners are gone.

        What of those cannot be removed stays, and is told. Raises UnavailableError.
        """
        try:
            base.mkdir(parents=True, exist_ok=True)
            _sweep(base, tell)
            for _ in range(_ATTEMPTS):  # again, if another process swept it before it was locked
                path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
                lock = FileLock(path / _LOCK_FILE)
                with contextlib.suppress(Timeout, FileNotFoundError):
                    lock.acquire(timeout=0)
                    if (path / _LOCK_FILE).exists():
                        return cls(path, lock)
                lock.release()
        except OSError as error:
            raise UnavailableError(f"cannot make a lab in {base}: {error.strerror}") from error
        raise UnavailableError(f"cannot make a lab in {base}: each was removed at once")

    def keep(self) -> None:
        """Leave it for people to look at: nobody sweeps it."""
        (self.path / _KEEP_FILE).touch()
        self._lock.release()

    def remove(self) -> None:
        """Remove it with all that is in it. Raises InfrastructureError."""
        if sys.platform == "win32":
            self._lock.release()  # a file that is open cannot be removed there
        try:
            shutil.rmtree(self.path)
        except OSError as error:
            raise InfrastructureError(f"cannot remove {self.path}: {error}") from error
        finally:
            self._lock.release()


def _sweep(base: Path, tell: Callable[[str], None]) -> None:
    for path in base.glob(f"{_PREFIX}*"):
        lock_file = path / _LOCK_FILE
        if (path / _KEEP_FILE).exists() or not lock_file.exists():
            continue
        lock = FileLock(lock_file)
        with contextlib.suppress(Timeout, OSError):
            lock.acquire(timeout=0)
            try:
                LabDirectory(path, lock).remove()
            except InfrastructureError as error:
                tell(f"what a lab left that was killed stays: {error}")

"""Directories of numbered entries that appear and disappear by rename alone.

::

    new-<owner>-<n>   being written by a live process, outside any transaction
        | publish (inside the write transaction that adds the row)
    <number>          an entry; the metastore has its row
        | retire  (inside the write transaction that removes the row)
    rm-<number>       to be deleted once that transaction is committed

The metastore is the truth. Since entries are renamed only while the store's one write lock is
held, whoever holds that lock can tell what a killed process left behind, even while other
processes are at work (`recover`): `rm-<number>` with a row goes back; `rm-*` and numbers without
a row are garbage. Only `new-*` is written without the lock: its name carries the owner, whose
lock file is held for as long as its process has the store open.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import secrets
import shutil
import sys
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Final, Self

from filelock import FileLock, Timeout

from snapshotter.errors import FailedPreconditionError, UnavailableError

_log = logging.getLogger(__name__)

_DIRECTORY_MODE: Final = 0o700
_NUMBER: Final = re.compile("[1-9][0-9]*")
_NEW: Final = re.compile("new-([0-9a-f]+)-[0-9]+")
_LOCK: Final = re.compile(r"([0-9a-f]+)\.lock")


class Owner:
    """One open store: a random name and a lock file that lives as long as it does."""

    def __init__(self, directory: Path, name: str, lock: FileLock) -> None:
        self._directory = directory
        self.name = name
        self._lock = lock
        self._counter = itertools.count(1)

    @classmethod
    def enter(cls, directory: Path) -> Self:
        """Take a fresh name in `directory`, with the store's write lock held.

        The lock keeps another process's `living` from taking the new file for a dead one's.
        Raises UnavailableError.
        """
        name = secrets.token_hex(8)
        try:
            directory.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
            lock = _lock_file(directory / f"{name}.lock")
            lock.acquire(timeout=0)
        except OSError as error:
            raise _refused("lock", directory, error) from error
        return cls(directory, name, lock)

    def staging_name(self) -> str:
        """A name for something being written; every call gives another one."""
        return f"new-{self.name}-{next(self._counter)}"

    def leave(self) -> None:
        """Give up the name; a second call does nothing."""
        self._lock.release()
        (self._directory / f"{self.name}.lock").unlink(missing_ok=True)

    def living(self) -> frozenset[str]:
        """The names whose processes are alive, with the store's write lock held.

        Lock files of the others are deleted.
        """
        alive = {self.name}
        for entry in os.scandir(self._directory):
            match = _LOCK.fullmatch(entry.name)
            if match is None or match.group(1) == self.name:
                continue
            lock = _lock_file(Path(entry.path))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                alive.add(match.group(1))
            else:
                lock.release()
                Path(entry.path).unlink(missing_ok=True)
        return frozenset(alive)


def _lock_file(path: Path) -> FileLock:
    # Not thread-local: any thread may close the store.
    return FileLock(path, mode=0o600, thread_local=False)


class Shelf:
    """One directory of numbered entries. Raises UnavailableError for what the system refuses."""

    def __init__(self, path: Path, owner: Owner, *, durable: bool) -> None:
        self.path = path
        self._owner = owner
        self._durable = durable

    def create(self) -> None:
        """Make the directory where it is missing."""
        try:
            self.path.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
        except OSError as error:
            raise _refused("create", self.path, error) from error

    def entry(self, number: int) -> Path:
        """Where the entry of that number is."""
        return self.path / str(number)

    def stage(self) -> Path:
        """A new empty directory to be filled and published."""
        staged = self.path / self._owner.staging_name()
        try:
            staged.mkdir(mode=_DIRECTORY_MODE)
        except OSError as error:
            raise _refused("create", staged, error) from error
        return staged

    def flush(self) -> None:
        """Make the entries' names durable; after `publish`, before the commit of their rows."""
        try:
            self._flush(self.path)
        except OSError as error:
            raise _refused("flush", self.path, error) from error

    def publish(self, staged: Path, number: int) -> None:
        """Give a staged directory its number; write lock held, no row committed yet.

        Whatever has that name is what a killed process left of a transaction that was never
        committed: it is put aside, and never written to.
        """
        entry = self.entry(number)
        try:
            if os.path.lexists(entry):
                entry.rename(self.path / f"rm-{number}-{secrets.token_hex(4)}")
            staged.rename(entry)
        except OSError as error:
            raise _refused("publish", entry, error) from error

    def retire(self, number: int) -> Path | None:
        """Take an entry away; write lock held. None where there is none.

        Raises FailedPreconditionError where it is in use: containerd's garbage collector skips
        such a snapshot, any other error would stop it.
        """
        entry, retired = self.entry(number), self.path / f"rm-{number}"
        try:
            # Not flushed: until the row is gone, recovery puts the entry back.
            entry.rename(retired)
        except FileNotFoundError:
            return retired if retired.exists() else None
        except OSError as error:
            raise FailedPreconditionError(
                f"cannot remove {entry}: {error.strerror}; something still uses it"
            ) from error
        return retired

    def numbers(self) -> frozenset[int]:
        """The numbers of the entries that are there."""
        try:
            names = self._names()
        except OSError as error:
            raise _refused("list", self.path, error) from error
        return frozenset(int(name) for name in names if _NUMBER.fullmatch(name))

    def recover(self, known: Container[int], living: Container[str]) -> list[Path]:
        """Put entries of `known` rows back, and return what may be deleted; write lock held.

        `living` are the owners whose staged directories are still being written.
        """
        garbage: list[Path] = []
        try:
            for name in sorted(self._names()):
                # Nearly all names are those of rows: they cost no more than this.
                if not (name.isdecimal() and int(name) in known):
                    garbage += self._recover(self.path / name, known, living)
        except OSError as error:
            raise _refused("recover", self.path, error) from error
        return garbage

    def _recover(self, path: Path, known: Container[int], living: Container[str]) -> Iterable[Path]:
        if (staged := _NEW.fullmatch(path.name)) is not None:
            return () if staged.group(1) in living else (path,)
        if _NUMBER.fullmatch(path.name):
            if int(path.name) in known:
                return ()
            aside = self.path / f"rm-{path.name}-{secrets.token_hex(4)}"
            path.rename(aside)
            return (aside,)
        if not path.name.startswith("rm-"):
            return ()  # not ours
        number = path.name.removeprefix("rm-")
        if not _NUMBER.fullmatch(number) or int(number) not in known:
            return (path,)
        if self.entry(int(number)).exists():
            return (path,)
        path.rename(self.entry(int(number)))
        self._flush(self.path)
        _log.warning("put back %s, whose removal was not finished", self.entry(int(number)))
        return ()

    def _names(self) -> list[str]:
        # Not as Path objects: there may be a hundred thousand.
        with os.scandir(self.path) as entries:
            return [entry.name for entry in entries]

    def _flush(self, directory: Path) -> None:
        if self._durable:
            _flush_names(directory)


def _flush_names(directory: Path) -> None:
    """Return when the names in a directory would survive a power cut."""
    # NTFS journals its directories by itself, and opens none as files.
    if sys.platform != "win32":
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def discard(paths: Iterable[Path]) -> int:
    """Delete directories and return how many are gone; the others stay for the next recovery."""
    gone = 0
    for path in paths:
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            gone += 1
        except OSError as error:
            _log.warning("cannot delete %s: %s; the next cleanup tries again", path, error)
        else:
            gone += 1
    return gone


def _refused(verb: str, path: Path, error: OSError) -> UnavailableError:
    return UnavailableError(f"cannot {verb} {path}: {error.strerror}")

"""Directories of numbered entries that appear and disappear by rename alone.

::

    new-<owner>-<n>   being written by a live process, outside any transaction
        | publish (inside the write transaction that adds the row; `make` for an empty entry)
    <number>          an entry; the metastore has its row
        | retire  (inside the write transaction that removes the row)
    rm-<number>       to be deleted once that transaction is committed

A rename that meets an open file is taken back (`withdraw`, `restore`), so that the caller may end
the transaction, wait without any lock, and try again.

The metastore is the truth. Since entries are renamed only while the store's one write lock is
held, whoever holds that lock can tell what a killed process left behind, even while other
processes are at work (`recover`): `rm-<number>` with a row goes back; `rm-*` and numbers without
a row are garbage. Only `new-*` is written without the lock: its name carries the owner, whose
lock file is held for as long as its process has the store open.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import re
import secrets
from collections.abc import Container, Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from filelock import FileLock, Timeout

from snapshotter.errors import DiskInUseError, SnapshotterError, UnavailableError
from snapshotter.platform import Platform
from snapshotter.platform.patience import patiently

_log = logging.getLogger(__name__)

_NUMBER: Final = re.compile("[1-9][0-9]*")
_NEW: Final = re.compile("new-([0-9a-f]+)-[0-9]+")
_LOCK: Final = re.compile(r"([0-9a-f]+)\.lock")


_ENTRIES: Final = 1024
"""Paths that are kept: making one costs as much as a system call, and each is asked for often."""


class Owner:
    """One open store: a random name and a lock file that lives as long as it does."""

    def __init__(self, platform: Platform, directory: Path, name: str, lock: FileLock) -> None:
        self._platform = platform
        self.directory = directory
        self.name = name
        self._lock = lock
        self._counter = itertools.count(1)

    @classmethod
    def enter(cls, directory: Path, platform: Platform) -> Self:
        """Take a fresh name in `directory`, with the store's write lock held.

        The lock keeps another process's `living` from taking the new file for a dead one's.
        Raises UnavailableError.
        """
        name = secrets.token_hex(8)
        try:
            if not platform.exists(directory):
                platform.make_directory(directory)
            lock = _lock_file(platform.long(directory / f"{name}.lock"))
            lock.acquire(timeout=0)
        except OSError as error:
            raise _refused("lock", directory, error) from error
        return cls(platform, directory, name, lock)

    def staging_name(self) -> str:
        """A name for something being written; every call gives another one."""
        return f"new-{self.name}-{next(self._counter)}"

    def leave(self) -> None:
        """Give up the name; a second call does nothing."""
        self._lock.release()
        _remove_lock(self._platform.long(self.directory / f"{self.name}.lock"))

    def living(self) -> frozenset[str]:
        """The names whose processes are alive, with the store's write lock held.

        Lock files of the others are deleted.
        """
        return frozenset({self.name, *living(self._platform, self.directory, but=self.name)})


def living(platform: Platform, directory: Path, *, but: str = "") -> Iterator[str]:
    """The names in `directory` whose processes are alive, apart from `but`; write lock held.

    Lock files of the others are deleted.
    """
    for name in platform.names(directory):
        match = _LOCK.fullmatch(name)
        if match is None or match.group(1) == but:
            continue
        path = platform.long(directory / name)
        lock = _lock_file(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield match.group(1)
        else:
            lock.release()
            _remove_lock(path)


def _remove_lock(path: Path) -> None:
    # Another process may just look whether it is locked, and so have it open: on Windows it stays
    # then, for the next one that looks.
    with contextlib.suppress(FileNotFoundError, PermissionError):
        path.unlink()


def _lock_file(path: Path) -> FileLock:
    # Not thread-local: any thread may close the store.
    return FileLock(path, mode=0o600, thread_local=False)


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a recovery found: directories to delete, and numbers of rows that had no entry.

    Some of the latter may have been put back.
    """

    garbage: list[Path]
    missing: frozenset[int]


class Shelf:
    """One directory of numbered entries. Raises UnavailableError for what the system refuses."""

    def __init__(self, path: Path, owner: Owner, platform: Platform, *, durable: bool) -> None:
        self.path = path
        self._owner = owner
        self._platform = platform
        self._durable = durable
        self._entries = functools.lru_cache(maxsize=_ENTRIES)(self._entry)

    def create(self) -> None:
        """Make the directory where it is missing."""
        try:
            if not self._platform.exists(self.path):
                self._platform.make_directory(self.path)
        except FileExistsError:
            pass  # another process was faster
        except OSError as error:
            raise _refused("create", self.path, error) from error

    def entry(self, number: int) -> Path:
        """Where the entry of that number is."""
        return self._entries(number)

    def stage(self) -> Path:
        """A new empty directory to be filled and published."""
        staged = self.path / self._owner.staging_name()
        try:
            self._platform.make_directory(staged)
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
        committed: it is put aside, and never written to. Raises DiskInUseError, which leaves
        `staged` as it was, or UnavailableError.
        """
        entry = self.entry(number)
        try:
            if self._platform.exists(entry):
                self._platform.rename(entry, self._aside(number))
            self._platform.rename(staged, entry)
        except OSError as error:
            raise self._not_published(entry, error) from error

    def make(self, number: int) -> None:
        """Make an empty entry, as `publish` would; write lock held, no row committed yet.

        Raises DiskInUseError, UnavailableError.
        """
        entry = self.entry(number)
        try:
            try:
                self._platform.make_directory(entry)
            except FileExistsError:
                self._platform.rename(entry, self._aside(number))
                self._platform.make_directory(entry)
        except OSError as error:
            raise self._not_published(entry, error) from error

    def clear(self, number: int) -> None:
        """Put aside what a killed process left under a number whose row gets no directory.

        Write lock held. Raises DiskInUseError, UnavailableError.
        """
        entry = self.entry(number)
        try:
            if self._platform.exists(entry):
                self._platform.rename(entry, self._aside(number))
        except OSError as error:
            if self._platform.may_pass(error):
                raise DiskInUseError(
                    f"cannot put {entry} aside: {error.strerror}; something has a file in it open",
                    may_pass=True,
                ) from error
            raise _refused("put aside", entry, error) from error

    def withdraw(self, number: int, staged: Path) -> None:
        """Take `publish` back, with the write lock still held. Raises DiskInUseError."""
        self._move_back(self.entry(number), staged)

    def retire(self, number: int) -> Path | None:
        """Take an entry away; write lock held. None where there is none.

        Raises DiskInUseError, whatever the system's reason: see there.
        """
        entry, retired = self.entry(number), self.path / f"rm-{number}"
        try:
            if self._platform.exists(retired) and self._platform.exists(entry):
                self._platform.rename(retired, self._aside(number))
            # Not flushed: until the row is gone, recovery puts the entry back.
            self._platform.rename(entry, retired)
        except FileNotFoundError:
            return retired if self._platform.exists(retired) else None
        except OSError as error:
            raise DiskInUseError(
                f"cannot remove {entry}: {error.strerror}; something still uses it",
                may_pass=self._platform.may_pass(error),
            ) from error
        return retired

    def restore(self, number: int) -> None:
        """Take `retire` back, with the write lock still held. Raises DiskInUseError."""
        self._move_back(self.path / f"rm-{number}", self.entry(number))

    def numbers(self) -> frozenset[int]:
        """The numbers of the entries that are there."""
        try:
            names = self._platform.names(self.path)
        except OSError as error:
            raise _refused("list", self.path, error) from error
        return frozenset(int(name) for name in names if _NUMBER.fullmatch(name))

    def _entry(self, number: int) -> Path:
        return self.path / str(number)

    def _not_published(self, entry: Path, error: OSError) -> SnapshotterError:
        if self._platform.may_pass(error):
            return DiskInUseError(
                f"cannot publish {entry}: {error.strerror}; something has a file in it open",
                may_pass=True,
            )
        return _refused("publish", entry, error)

    def _move_back(self, moved: Path, origin: Path) -> None:
        try:
            self._platform.rename(moved, origin)
        except OSError as error:
            raise DiskInUseError(
                f"cannot move {moved} back: {error.strerror}; the next recovery does it",
                may_pass=False,
            ) from error

    def _aside(self, number: int | str) -> Path:
        return self.path / f"rm-{number}-{secrets.token_hex(4)}"

    def recover(self, known: Set[int], living: Container[str]) -> Recovered:
        """Put entries of `known` rows back, and tell garbage from what is missing; lock held.

        `living` are the owners whose staged directories are still being written.
        """
        # Nearly all names are those of rows, and there may be very many: whole sets at once.
        entries = frozenset(map(str, known))
        garbage: list[Path] = []
        try:
            names = frozenset(self._platform.names(self.path))
            for name in sorted(names - entries):
                garbage += self._recover(self.path / name, known, living)
        except OSError as error:
            raise _refused("recover", self.path, error) from error
        return Recovered(garbage, frozenset(map(int, entries - names)))

    def _recover(self, path: Path, known: Container[int], living: Container[str]) -> Iterable[Path]:
        if (staged := _NEW.fullmatch(path.name)) is not None:
            return () if staged.group(1) in living else (path,)
        if _NUMBER.fullmatch(path.name):
            if int(path.name) in known:
                return ()
            return self._put_aside(path)
        if not path.name.startswith("rm-"):
            return ()  # not ours
        number = path.name.removeprefix("rm-")
        if not _NUMBER.fullmatch(number) or int(number) not in known:
            return (path,)
        if self._platform.exists(self.entry(int(number))):
            return (path,)
        # It has to go back before anything else: a row without its entry would get an empty one.
        entry = self.entry(int(number))
        patiently(lambda: self._platform.rename(path, entry))
        self._flush(self.path)
        _log.warning("put back %s, whose removal was not finished", entry)
        return ()

    def _put_aside(self, path: Path) -> Iterable[Path]:
        # Renamed first: its number must be free at once, however long deleting it takes.
        aside = self._aside(path.name)
        try:
            self._platform.rename(path, aside)
        except OSError as error:
            if not self._platform.may_pass(error):
                raise
            _log.warning("%s is in use; the next cleanup tries again: %s", path, error.strerror)
            return ()
        return (aside,)

    def _flush(self, directory: Path) -> None:
        if self._durable:
            self._platform.flush_names(directory)


def discard(platform: Platform, paths: Iterable[Path]) -> int:
    """Delete directories and return how many are gone; the others stay for the next recovery."""
    gone = 0
    for path in paths:
        try:
            platform.remove_tree(path)
        except FileNotFoundError:
            gone += 1
        except OSError as error:
            _log.warning("cannot delete %s: %s; the next cleanup tries again", path, error)
        else:
            gone += 1
    return gone


def _refused(verb: str, path: Path, error: OSError) -> UnavailableError:
    return UnavailableError(f"cannot {verb} {path}: {error.strerror}")

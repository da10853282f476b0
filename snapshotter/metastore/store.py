"""The SQLite file: connections, and transactions for any thread of any process.

One writer at a time over all processes; readers see the last committed state and never wait
for it (WAL). A commit that returned survives a power cut (synchronous=FULL).

Threads that write at the same time share one SQLite transaction and its flush (group commit)::

    thread 1  BEGIN IMMEDIATE ...       -- somebody waits: hand on, wait for COMMIT
    thread 2  SAVEPOINT ... RELEASE     -- somebody waits: hand on, wait for COMMIT
    thread 3  SAVEPOINT ... RELEASE     -- nobody waits: COMMIT, and all three return

Each sees what the ones before it did. One that raises undoes its own part alone; where COMMIT
fails, all of them fail.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from snapshotter.errors import SnapshotterError, UnavailableError
from snapshotter.metastore.properties import Properties
from snapshotter.metastore.reserve import Reserve
from snapshotter.metastore.schema import migrate
from snapshotter.metastore.scratches import Scratches
from snapshotter.metastore.snapshots import Snapshots
from snapshotter.metastore.turns import Turns

DEFAULT_BUSY_TIMEOUT_S: Final = 10.0
_IDLE_CONNECTIONS: Final = 8
_BUGS: Final = (sqlite3.IntegrityError, sqlite3.ProgrammingError)
"""Errors that are ours: the checks come before the statements."""
_MAX_GROUP: Final = 64
"""Members of a group commit; the first one waits for all of them."""


class StoreFullError(UnavailableError):
    """No space for the metadata; `MetaStore.reserve` has a little."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """The tables, as one transaction sees them."""

    snapshots: Snapshots
    scratches: Scratches
    properties: Properties
    _flushes: dict[Path, Callable[[], None]]

    def flush_before_commit(self, path: Path, flush: Callable[[], None]) -> None:
        """Have `flush` called once before the commit, however many ask for this path.

        Where it raises, nothing is committed.
        """
        self._flushes[path] = flush


@dataclass(slots=True)
class _Group:
    """Threads whose changes are committed together, and how that ended."""

    connection: sqlite3.Connection
    flushes: dict[Path, Callable[[], None]] = field(default_factory=dict)
    members: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    failure: Exception | None = None

    def transaction(self) -> Transaction:
        return Transaction(
            Snapshots(self.connection),
            Scratches(self.connection),
            Properties(self.connection),
            self.flushes,
        )


class MetaStore:
    """The metadata of one root."""

    def __init__(self, path: Path, *, busy_timeout_s: float = DEFAULT_BUSY_TIMEOUT_S) -> None:
        self.path = path
        self.reserve = Reserve(path.with_suffix(".reserve"))
        self._busy_timeout_s = busy_timeout_s
        self._turns = Turns()
        self._group: _Group | None = None  # belongs to the thread whose turn it is
        self._idle_lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False

    @classmethod
    def open(cls, path: Path, *, busy_timeout_s: float = DEFAULT_BUSY_TIMEOUT_S) -> Self:
        """Open the file, making or migrating it where needed. Raises UnavailableError."""
        store = cls(path, busy_timeout_s=busy_timeout_s)
        with store._errors():
            connection = store._connect()
            try:
                store._use_wal(connection)
                migrate(connection)
            except BaseException:
                connection.close()
                raise
        store._give_back(connection)
        store.reserve.fill()
        return store

    def close(self) -> None:
        """Close; a second call does nothing. Transactions under way end by themselves."""
        with self._idle_lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[Transaction]:
        """A transaction: committed when the block ends, rolled back when it raises.

        A write transaction waits for every other one, of this process or another. Its block must
        not start another. Raises UnavailableError: still locked after the busy timeout, disk
        full, store closed.
        """
        with self._write() if write else self._read() as transaction:
            yield transaction

    @contextmanager
    def _read(self) -> Iterator[Transaction]:
        with self._errors(), self._connection() as connection:
            connection.execute("BEGIN")
            try:
                yield _Group(connection).transaction()
            finally:
                if connection.in_transaction:
                    connection.execute("COMMIT")

    @contextmanager
    def _write(self) -> Iterator[Transaction]:
        if not self._turns.take(timeout_s=self._busy_timeout_s, abandon=self._abandon_turn):
            raise self._locked()
        group = self._group
        if group is None:
            try:
                group = self._group = self._begin()
            except BaseException:
                self._turns.free()
                raise
        connection = group.connection
        first = group.members == 0
        try:
            with self._errors():
                if not first:
                    connection.execute("SAVEPOINT member")
                yield group.transaction()
                if not first:
                    connection.execute("RELEASE member")
            group.members += 1
        except BaseException as error:
            if first:
                self._end_group(group)
            else:
                self._undo_member(group, error)
                self._end_turn(group)
            raise
        self._end_turn(group)
        group.ended.wait()
        if group.failure is not None:
            # An exception of its own for each thread.
            raise type(group.failure)(str(group.failure)) from group.failure

    def _begin(self) -> _Group:
        with self._errors():
            connection = self._take_connection()
            try:
                connection.execute("BEGIN IMMEDIATE")
            except BaseException:
                connection.close()
                raise
        return _Group(connection)

    def _undo_member(self, group: _Group, error: BaseException) -> None:
        """Undo what one member did, and nothing of the others."""
        try:
            if group.connection.in_transaction:
                group.connection.execute("ROLLBACK TO member")
                group.connection.execute("RELEASE member")
                return
        except sqlite3.Error as failure:
            error = failure
        # After some errors, such as a full disk, SQLite has rolled back everything by itself.
        if isinstance(error, sqlite3.DatabaseError):
            group.failure = self._error(error)
        else:
            group.failure = UnavailableError(f"the store {self.path} failed: {error}; try again")

    def _end_turn(self, group: _Group) -> None:
        """Hand on, where somebody waits, or commit."""
        if group.failure is None and group.members < _MAX_GROUP and self._turns.hand_on():
            return
        try:
            if group.failure is None:
                for flush in group.flushes.values():
                    flush()
                group.connection.execute("COMMIT")
        except (SnapshotterError, *_BUGS) as error:
            group.failure = error
        except sqlite3.DatabaseError as error:
            group.failure = self._error(error)
        except BaseException as error:
            group.failure = UnavailableError(f"the store {self.path} failed: {error}; try again")
            raise
        finally:
            self._end_group(group)

    def _end_group(self, group: _Group) -> None:
        """Roll back what is not committed, and let the members go, and the next group begin."""
        try:
            if group.connection.in_transaction:
                group.connection.execute("ROLLBACK")
        except sqlite3.Error:
            group.connection.close()
        else:
            self._give_back(group.connection)
        finally:
            self._group = None
            self._turns.free()
            group.ended.set()

    def _abandon_turn(self) -> None:
        if self._group is None:
            self._turns.free()
        else:
            self._end_turn(self._group)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = self._take_connection()
        try:
            yield connection
        except BaseException:
            if connection.in_transaction:
                connection.close()
            else:
                self._give_back(connection)
            raise
        self._give_back(connection)

    def _take_connection(self) -> sqlite3.Connection:
        with self._idle_lock:
            if self._closed:
                raise UnavailableError(f"the store {self.path} is closed; open it again")
            if self._idle:
                return self._idle.pop()
        return self._connect()

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._idle_lock:
            if not self._closed and len(self._idle) < _IDLE_CONNECTIONS:
                self._idle.append(connection)
                return
        connection.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path,
            timeout=self._busy_timeout_s,
            isolation_level=None,  # BEGIN is ours
            check_same_thread=False,  # one thread at a time: it is out of the idle list
            cached_statements=256,
        )
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        # Changing the journal mode takes an exclusive lock without the busy handler, so two
        # processes that make the same store at the same time have to take turns here.
        deadline = time.monotonic() + self._busy_timeout_s
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
            else:
                return

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except _BUGS:
            raise
        except sqlite3.DatabaseError as error:
            raise self._error(error) from error

    def _error(self, error: sqlite3.DatabaseError) -> UnavailableError:
        return self._locked() if _is_busy(error) else self._failed(error)

    def _locked(self) -> UnavailableError:
        return UnavailableError(
            f"the store {self.path} is still locked by another operation"
            f" after {self._busy_timeout_s:g} s; try again"
        )

    def _failed(self, error: sqlite3.DatabaseError) -> UnavailableError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        hint = {
            sqlite3.SQLITE_FULL: "free some space and try again",
            sqlite3.SQLITE_NOTADB: "this is no store of lcow-snapshotter; use another root",
            sqlite3.SQLITE_CORRUPT: "restore it from a backup",
            sqlite3.SQLITE_READONLY: "make the directory writable",
            sqlite3.SQLITE_CANTOPEN: "check that the directory exists and is writable",
        }.get(code, "check the disk")
        kind = StoreFullError if code == sqlite3.SQLITE_FULL else UnavailableError
        return kind(f"the store {self.path} failed: {error}; {hint}")


def _is_busy(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

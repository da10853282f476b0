"""The SQLite file: connections, and transactions for any thread of any process.

One writer at a time over all processes; readers see the last committed state and never wait
for it (WAL). A commit that returned survives a power cut (synchronous=FULL).
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from snapshotter.errors import UnavailableError
from snapshotter.metastore.properties import Properties
from snapshotter.metastore.reserve import Reserve
from snapshotter.metastore.schema import migrate
from snapshotter.metastore.scratches import Scratches
from snapshotter.metastore.snapshots import Snapshots

DEFAULT_BUSY_TIMEOUT_S: Final = 10.0
_IDLE_CONNECTIONS: Final = 8


class StoreFullError(UnavailableError):
    """No space for the metadata; `MetaStore.reserve` has a little."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """The tables, as one transaction sees them."""

    snapshots: Snapshots
    scratches: Scratches
    properties: Properties


class MetaStore:
    """The metadata of one root."""

    def __init__(self, path: Path, *, busy_timeout_s: float = DEFAULT_BUSY_TIMEOUT_S) -> None:
        self.path = path
        self.reserve = Reserve(path.with_suffix(".reserve"))
        self._busy_timeout_s = busy_timeout_s
        self._write_lock = threading.Lock()
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

        A write transaction waits for every other one, of this process or another. Raises
        UnavailableError: still locked after the busy timeout, disk full, store closed.
        """
        if write and not self._write_lock.acquire(timeout=self._busy_timeout_s):
            raise self._locked()
        try:
            with self._errors(), self._connection() as connection:
                connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                try:
                    yield Transaction(
                        Snapshots(connection), Scratches(connection), Properties(connection)
                    )
                    connection.execute("COMMIT")
                except BaseException:
                    # SQLite has rolled back by itself after some errors, such as a full disk.
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
        finally:
            if write:
                self._write_lock.release()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with self._idle_lock:
            if self._closed:
                raise UnavailableError(f"the store {self.path} is closed; open it again")
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = self._connect()
        try:
            yield connection
        except BaseException:
            if connection.in_transaction:
                connection.close()
            else:
                self._give_back(connection)
            raise
        self._give_back(connection)

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
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise  # a bug of ours: the checks come before the statements
        except sqlite3.DatabaseError as error:
            raise self._locked() if _is_busy(error) else self._failed(error) from error

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

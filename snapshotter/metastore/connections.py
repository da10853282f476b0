"""The connections of one metadata file, and the tables in them.

Any number of threads read, each with a connection that is its own meanwhile. Whoever has the turn
to write gets the one that wrote last: what SQLite keeps of the file in memory is good for as long
as nobody else changes it, so that a writer alone reads no page twice.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Final

from snapshotter.metastore.properties import Properties
from snapshotter.metastore.scratches import Scratches
from snapshotter.metastore.snapshots import Snapshots

_IDLE: Final = 8
"""Connections for readers that are kept open."""


class ClosedError(Exception):
    """There are no connections any more."""


class Tables:
    """A connection and the tables in it; one thread at a time has it."""

    __slots__ = ("connection", "properties", "scratches", "snapshots", "writes")

    def __init__(self, connection: sqlite3.Connection, *, writes: bool) -> None:
        self.connection = connection
        self.snapshots = Snapshots(connection)
        self.scratches = Scratches(connection)
        self.properties = Properties(connection)
        self.writes = writes


class Connections:
    """Opens connections, and keeps those that no thread has."""

    def __init__(self, path: Path, *, busy_timeout_s: float) -> None:
        self._path = path
        self._busy_timeout_s = busy_timeout_s
        self._lock = threading.Lock()
        self._readers: list[Tables] = []
        self._writer: Tables | None = None
        self._closed = False

    def connect(self) -> sqlite3.Connection:
        """A new connection. Raises sqlite3.Error."""
        connection = sqlite3.connect(
            self._path,
            timeout=self._busy_timeout_s,
            isolation_level=None,  # BEGIN is ours
            check_same_thread=False,  # one thread at a time: nobody else is given it
            cached_statements=256,
        )
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def reader(self) -> Tables:
        """A connection to read with; to be given back. Raises ClosedError, sqlite3.Error."""
        with self._lock:
            if self._closed:
                raise ClosedError
            if self._readers:
                return self._readers.pop()
        return Tables(self.connect(), writes=False)

    def writer(self) -> Tables:
        """The connection of whoever has the turn to write, see `reader`."""
        with self._lock:
            if self._closed:
                raise ClosedError
            kept, self._writer = self._writer, None
        return kept or Tables(self.connect(), writes=True)

    def give_back(self, tables: Tables) -> None:
        """Keep a connection that is in no transaction, or close it."""
        with self._lock:
            if not self._closed:
                if tables.writes and self._writer is None:
                    self._writer = tables
                    return
                if not tables.writes and len(self._readers) < _IDLE:
                    self._readers.append(tables)
                    return
        tables.connection.close()

    def close(self) -> None:
        """Close what nobody has, and what is given back from now on; again does nothing."""
        with self._lock:
            self._closed = True
            kept, self._readers = self._readers, []
            if self._writer is not None:
                kept.append(self._writer)
                self._writer = None
        for tables in kept:
            tables.connection.close()

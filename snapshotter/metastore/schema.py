"""The tables, and how an older store becomes a present one.

Migrations only ever get appended. Each is recorded in the transaction that performs it, so that
a store killed in the middle is either before or after a migration.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from snapshotter.errors import UnavailableError
from snapshotter.metastore.model import Info, Kind
from snapshotter.metastore.wire import info_frame

APPLICATION_ID: Final = 0x6C636F77
"""`lcow` in the header of the file, so that file(1) and we tell it from other SQLite files."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step; `version` is its place in the list, from 1. `fill` runs after the statements."""

    version: int
    name: str
    statements: tuple[str, ...]
    fill: Callable[[sqlite3.Connection], None] | None = None


def _fill_frames(connection: sqlite3.Connection) -> None:
    rows = connection.execute(
        "SELECT s.id, s.key, s.kind, coalesce(p.key, ''), s.created_ns, s.updated_ns,"
        " (SELECT json_group_object(name, value) FROM label WHERE snapshot_id = s.id)"
        " FROM snapshot s LEFT JOIN snapshot p ON p.id = s.parent_id"
    ).fetchall()
    for number, key, kind, parent, created_ns, updated_ns, labels in rows:
        info = Info(key, Kind(kind), parent, json.loads(labels), created_ns, updated_ns)
        connection.execute("UPDATE snapshot SET frame = ? WHERE id = ?", (info_frame(info), number))


MIGRATIONS: Final = (
    Migration(
        1,
        "snapshots, labels, scratch disks and who shares them",
        (
            "CREATE TABLE property (name TEXT PRIMARY KEY, value TEXT NOT NULL)"
            " STRICT, WITHOUT ROWID",
            # AUTOINCREMENT: the number of a removed snapshot must not come back, because its
            # directory may still be on disk.
            """CREATE TABLE snapshot (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                key TEXT NOT NULL UNIQUE CHECK (key <> ''),
                namespace TEXT NOT NULL,
                client TEXT NOT NULL,
                kind INTEGER NOT NULL CHECK (kind IN (1, 2, 3)),
                parent_id INTEGER REFERENCES snapshot (id) ON DELETE RESTRICT,
                created_ns INTEGER NOT NULL,
                updated_ns INTEGER NOT NULL,
                size INTEGER NOT NULL DEFAULT 0,
                inodes INTEGER NOT NULL DEFAULT 0
            ) STRICT""",
            "CREATE INDEX snapshot_parent ON snapshot (parent_id)",
            "CREATE INDEX snapshot_client ON snapshot (client, namespace)",
            """CREATE TABLE label (
                snapshot_id INTEGER NOT NULL REFERENCES snapshot (id) ON DELETE CASCADE,
                name TEXT NOT NULL,
                value TEXT NOT NULL CHECK (value <> ''),
                PRIMARY KEY (snapshot_id, name)
            ) STRICT, WITHOUT ROWID""",
            "CREATE INDEX label_value ON label (name, value)",
            """CREATE TABLE scratch (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                size INTEGER NOT NULL CHECK (size > 0),
                location TEXT NOT NULL
            ) STRICT""",
            # The relation has a table of its own because labels can be updated away, and
            # because Commit replaces them.
            """CREATE TABLE share (
                snapshot_id INTEGER PRIMARY KEY REFERENCES snapshot (id)
                    DEFERRABLE INITIALLY DEFERRED,
                scratch_id INTEGER NOT NULL REFERENCES scratch (id) ON DELETE RESTRICT,
                owner INTEGER NOT NULL CHECK (owner IN (0, 1))
            ) STRICT""",
            "CREATE INDEX share_scratch ON share (scratch_id)",
        ),
    ),
    Migration(
        2,
        "each snapshot's Info as gRPC sends it",
        ("ALTER TABLE snapshot ADD COLUMN frame BLOB NOT NULL DEFAULT x''",),
        _fill_frames,
    ),
)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the store to the last migration; at once where it is there already.

    Raises UnavailableError for a file that is not ours or that a newer version wrote.
    """
    if _version(connection) == MIGRATIONS[-1].version:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        done = _version(connection)
        if done == 0 and connection.execute("SELECT 1 FROM sqlite_schema").fetchone():
            raise UnavailableError("the metadata file is an SQLite database of something else")
        if done > MIGRATIONS[-1].version:
            raise UnavailableError(
                f"the store was written by a newer version (schema {done}, this one knows"
                f" {MIGRATIONS[-1].version}); upgrade lcowlab"
            )
        if done == 0:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(
                "CREATE TABLE migration (version INTEGER PRIMARY KEY, name TEXT NOT NULL,"
                " applied_ns INTEGER NOT NULL) STRICT"
            )
        for migration in MIGRATIONS[done:]:
            for statement in migration.statements:
                connection.execute(statement)
            if migration.fill is not None:
                migration.fill(connection)
            connection.execute(
                "INSERT INTO migration (version, name, applied_ns) VALUES (?, ?, ?)",
                (migration.version, migration.name, time.time_ns()),
            )
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        return 0
    row = connection.execute("SELECT max(version) FROM migration").fetchone()
    return int(row[0] or 0)

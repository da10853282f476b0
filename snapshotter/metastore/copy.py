"""A metadata file copied whole while it is in use (SQLite's online backup)."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from snapshotter.errors import UnavailableError
from snapshotter.metastore.schema import APPLICATION_ID


def copy_metadata(source: Path, target: Path) -> None:
    """Write the last committed state of `source` to the new file `target`, durably, and check it.

    Writers of `source` are not hindered. On failure nothing is left. Raises UnavailableError.
    """
    try:
        with (
            contextlib.closing(sqlite3.connect(source)) as reading,
            contextlib.closing(sqlite3.connect(target)) as writing,
        ):
            reading.backup(writing)  # in one step: a reader holds up nobody (WAL)
            writing.execute("PRAGMA journal_mode = DELETE")  # one file, without -wal and -shm
            check_metadata(writing, source)
        descriptor = os.open(target, os.O_RDWR | getattr(os, "O_BINARY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except sqlite3.DatabaseError as error:
        target.unlink(missing_ok=True)
        raise UnavailableError(f"cannot copy {source}: {error}") from error
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def check_metadata(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse what is no sound metadata of ours. Raises UnavailableError."""
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise UnavailableError(f"{path} is no store of lcow-snapshotter, nor a backup of one")
    (result,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if result != "ok":
        raise UnavailableError(f"{path} is damaged: {result}")


def last_numbers(path: Path) -> tuple[int, int]:
    """The numbers last given out, of snapshots and of scratch disks; 0 where it cannot be read."""
    try:
        with contextlib.closing(sqlite3.connect(path)) as reading:
            found = dict(reading.execute("SELECT name, seq FROM sqlite_sequence"))
    except sqlite3.DatabaseError:
        return 0, 0
    return found.get("snapshot", 0), found.get("scratch", 0)

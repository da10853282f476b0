"""The rows as fsck looks at them, and whether SQLite itself finds the file in order."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from snapshotter.errors import UnavailableError
from snapshotter.metastore.model import Kind, Scratch, ScratchId, SnapshotId
from snapshotter.metastore.schema import APPLICATION_ID


@dataclass(frozen=True, slots=True)
class Row:
    """A snapshot, the scratch disk that it holds, and the diff ID in its labels.

    `inodes` is what its commit recorded.
    """

    id: SnapshotId
    key: str
    kind: Kind
    parent: SnapshotId | None
    children: int
    scratch: ScratchId | None
    diff_id: str
    inodes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """Everything that fsck compares with directories."""

    rows: tuple[Row, ...]
    scratches: tuple[Scratch, ...]
    store_id: str
    damage: tuple[str, ...]

    @classmethod
    @contextlib.contextmanager
    def begin(cls, path: Path, *, timeout_s: float, diff_id_label: str) -> Iterator[Self]:
        """Read all rows; nobody renames anything until the block ends.

        Raises UnavailableError (locked, or no store of ours).
        """
        try:
            with contextlib.closing(sqlite3.connect(path, timeout=timeout_s)) as connection:
                connection.isolation_level = None
                # The write lock, although nothing is written: whoever renames has it.
                connection.execute("BEGIN IMMEDIATE")
                if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                    raise UnavailableError(f"{path} is no store of lcow-snapshotter")
                yield cls(
                    tuple(_rows(connection, diff_id_label)),
                    tuple(
                        Scratch(*row)
                        for row in connection.execute("SELECT id, size, location FROM scratch")
                    ),
                    _store_id(connection),
                    tuple(_damage(connection)),
                )
        except sqlite3.DatabaseError as error:
            raise UnavailableError(
                f"the store {path} cannot be read: {error}; restore it from a backup"
            ) from error

    @property
    def held(self) -> frozenset[ScratchId]:
        """The scratch disks that a snapshot holds."""
        return frozenset(row.scratch for row in self.rows if row.scratch is not None)


def _rows(connection: sqlite3.Connection, diff_id_label: str) -> Iterator[Row]:
    found = connection.execute(
        """SELECT s.id, s.key, s.kind, s.parent_id,
            (SELECT count(*) FROM snapshot c WHERE c.parent_id = s.id), h.scratch_id,
            coalesce((SELECT value FROM label WHERE snapshot_id = s.id AND name = ?), ''), s.inodes
        FROM snapshot s LEFT JOIN share h ON h.snapshot_id = s.id ORDER BY s.id""",
        (diff_id_label,),
    )
    for number, key, kind, parent, children, scratch, diff_id, inodes in found:
        yield Row(number, key, Kind(kind), parent, children, scratch, diff_id, inodes)


def _store_id(connection: sqlite3.Connection) -> str:
    row = connection.execute("SELECT value FROM property WHERE name = 'store-id'").fetchone()
    return "" if row is None else str(row[0])


def _damage(connection: sqlite3.Connection) -> Iterator[str]:
    for (text,) in connection.execute("PRAGMA integrity_check(20)"):
        if text != "ok":
            yield str(text)
    for table, row, other, _ in connection.execute("PRAGMA foreign_key_check"):
        yield f"row {row} of {table} refers to a row of {other} that is not there"

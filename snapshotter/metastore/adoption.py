"""Rows that come from elsewhere: another snapshotter's metadata, or a backup of ours.

They keep their numbers, which the tables' own operations never allow.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from snapshotter.errors import FailedPreconditionError
from snapshotter.keys import BackendKey
from snapshotter.labels import without_empty
from snapshotter.metastore.model import Info, ScratchId, SnapshotId, Usage
from snapshotter.metastore.wire import info_frame


@dataclass(frozen=True, slots=True)
class AdoptedScratch:
    """A scratch disk of `size` bytes in the store's own place, and who holds it: its owner first.

    The owner is None where only sharers are left.
    """

    id: ScratchId
    size: int
    owner: SnapshotId | None
    sharers: tuple[SnapshotId, ...]


class Adoption:
    """One transaction on a store's metadata file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    @contextlib.contextmanager
    def begin(cls, path: Path) -> Iterator[Self]:
        """Adopt into the file at `path`; all of it or, where the block raises, nothing."""
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield cls(connection)
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def check_empty(self) -> None:
        """Refuse a store that has, or had, snapshots. Raises FailedPreconditionError."""
        if self._connection.execute("SELECT 1 FROM sqlite_sequence").fetchone() is not None:
            raise FailedPreconditionError(
                "the store has had snapshots of its own; adopt into a new root"
            )

    def add(self, number: SnapshotId, info: Info, parent: SnapshotId | None, usage: Usage) -> None:
        """Add a snapshot; its parent must be there."""
        key = BackendKey.parse(info.name)
        labels = without_empty(info.labels)
        self._connection.execute(
            "INSERT INTO snapshot (id, key, namespace, client, kind, parent_id, created_ns,"
            " updated_ns, size, inodes, frame) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(number, info.name, key.namespace, key.client, info.kind, parent),
                *(info.created_ns, info.updated_ns, usage.size, usage.inodes),
                info_frame(replace(info, labels=labels)),
            ),
        )
        self._connection.executemany(
            "INSERT INTO label (snapshot_id, name, value) VALUES (?, ?, ?)",
            [(number, name, value) for name, value in labels.items()],
        )

    def add_scratch(self, scratch: AdoptedScratch) -> None:
        """Add a scratch disk and its holders."""
        self._connection.execute(
            "INSERT INTO scratch (id, size, location) VALUES (?, ?, '')", (scratch.id, scratch.size)
        )
        holders = [(number, scratch.id, 0) for number in scratch.sharers]
        if scratch.owner is not None:
            holders.append((scratch.owner, scratch.id, 1))
        self._connection.executemany(
            "INSERT INTO share (snapshot_id, scratch_id, owner) VALUES (?, ?, ?)", holders
        )

    def drop_unheld(self, scratch: ScratchId) -> None:
        """Remove a scratch disk's row where nobody holds it."""
        self._connection.execute(
            "DELETE FROM scratch WHERE id = ? AND id NOT IN (SELECT scratch_id FROM share)",
            (scratch,),
        )

    def reserve(self, *, snapshots: int = 0, scratches: int = 0) -> None:
        """Give out no number up to these any more."""
        for table, last in (("snapshot", snapshots), ("scratch", scratches)):
            cursor = self._connection.execute(
                "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = ?", (last, table)
            )
            if cursor.rowcount == 0 and last:
                self._connection.execute(
                    "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, last)
                )

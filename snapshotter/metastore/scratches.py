"""The scratch disks and the snapshots that hold them.

A scratch disk lives from the Prepare of its owner to the Remove of its last holder; the owner
may go first.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from snapshotter.metastore.model import Holder, Kind, Scratch, ScratchId, SnapshotId


@dataclass(frozen=True, slots=True)
class Candidate:
    """A snapshot that an owner key may mean; `scratch` is None where it has no scratch disk."""

    key: str
    kind: Kind
    scratch: Scratch | None


_CANDIDATE = """
    SELECT s.key, s.kind, c.id, c.size, c.location FROM snapshot s
    LEFT JOIN share h ON h.snapshot_id = s.id LEFT JOIN scratch c ON c.id = h.scratch_id
"""


class Scratches:
    """The scratch disks of one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def add(self, size: int, location: str) -> Scratch:
        """A new scratch disk of `size` bytes; it needs a holder in the same transaction."""
        cursor = self._connection.execute(
            "INSERT INTO scratch (size, location) VALUES (?, ?)", (size, location)
        )
        return Scratch(ScratchId(cursor.lastrowid or 0), size, location)

    def hold(self, snapshot: SnapshotId, scratch: ScratchId, *, owner: bool) -> None:
        """Record that the snapshot uses the scratch disk."""
        self._connection.execute(
            "INSERT INTO share (snapshot_id, scratch_id, owner) VALUES (?, ?, ?)",
            (snapshot, scratch, int(owner)),
        )

    def release(self, snapshot: SnapshotId) -> Scratch | None:
        """Drop the snapshot's hold; its scratch disk where that was the last one, now removed."""
        scratch = self.held_by(snapshot)
        if scratch is None:
            return None
        self._connection.execute("DELETE FROM share WHERE snapshot_id = ?", (snapshot,))
        if self.holders(scratch.id):
            return None
        self._connection.execute("DELETE FROM scratch WHERE id = ?", (scratch.id,))
        return scratch

    def held_by(self, snapshot: SnapshotId) -> Scratch | None:
        """The scratch disk that the snapshot uses, if any."""
        row = self._connection.execute(
            "SELECT c.id, c.size, c.location FROM share h JOIN scratch c ON c.id = h.scratch_id"
            " WHERE h.snapshot_id = ?",
            (snapshot,),
        ).fetchone()
        return None if row is None else Scratch(*row)

    def holders(self, scratch: ScratchId) -> tuple[Holder, ...]:
        """Who uses the scratch disk: its owner, while it is there, then the others by age."""
        rows = self._connection.execute(
            "SELECT s.id, s.key, s.kind, h.owner FROM share h JOIN snapshot s"
            " ON s.id = h.snapshot_id WHERE h.scratch_id = ? ORDER BY h.owner DESC, s.id",
            (scratch,),
        )
        return tuple(
            Holder(number, key, Kind(kind), owner == 1) for number, key, kind, owner in rows
        )

    def pays_for(self, snapshot: SnapshotId, scratch: ScratchId) -> bool:
        """Whether the snapshot is the one holder whose usage counts the disk: the first."""
        row = self._connection.execute(
            "SELECT snapshot_id FROM share WHERE scratch_id = ?"
            " ORDER BY owner DESC, snapshot_id LIMIT 1",
            (scratch,),
        ).fetchone()
        return row is not None and bool(row[0] == snapshot)

    def candidates_by_key(self, key: str) -> list[Candidate]:
        """The snapshot with exactly this key, if any."""
        return _candidates(self._connection.execute(_CANDIDATE + " WHERE s.key = ?", (key,)))

    def candidates_by_client_key(self, namespace: str, client: str) -> list[Candidate]:
        """The snapshots of one namespace whose client key is exactly this, in byte order."""
        return _candidates(
            self._connection.execute(
                _CANDIDATE + " WHERE s.client = ? AND s.namespace = ? ORDER BY s.key",
                (client, namespace),
            )
        )

    def numbers(self, location: str) -> frozenset[int]:
        """The numbers of the scratch disks in one place."""
        rows = self._connection.execute("SELECT id FROM scratch WHERE location = ?", (location,))
        return frozenset(row[0] for row in rows)

    def locations(self) -> frozenset[str]:
        """Every place that holds a scratch disk."""
        return frozenset(
            row[0] for row in self._connection.execute("SELECT DISTINCT location FROM scratch")
        )

    def links(self) -> Iterator[tuple[SnapshotId, Scratch]]:
        """Every holder and the disk that it uses."""
        rows = self._connection.execute(
            "SELECT h.snapshot_id, c.id, c.size, c.location FROM share h"
            " JOIN scratch c ON c.id = h.scratch_id"
        )
        for number, *scratch in rows:
            yield SnapshotId(number), Scratch(*scratch)


def _candidates(rows: sqlite3.Cursor) -> list[Candidate]:
    return [
        Candidate(key, Kind(kind), None if number is None else Scratch(number, size, location))
        for key, kind, number, size, location in rows
    ]

"""The snapshot table: containerd's core/snapshots/storage semantics, error kinds included.

Where an operation can fail in more than one way, the order of the checks is containerd's.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from snapshotter.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from snapshotter.filters import Filters
from snapshotter.keys import BackendKey, check_text
from snapshotter.labels import without_empty
from snapshotter.metastore.model import Info, Kind, Snapshot, SnapshotId, Usage
from snapshotter.metastore.wire import info_frame

_SELECT_INFO: Final = """
    SELECT s.key, s.kind, coalesce(p.key, ''), s.created_ns, s.updated_ns,
        (SELECT json_group_object(name, value) FROM label WHERE snapshot_id = s.id)
    FROM snapshot s LEFT JOIN snapshot p ON p.id = s.parent_id
"""
_SELECT_FRAME: Final = "SELECT s.frame FROM snapshot s"
_LABELS_FIELD: Final = "labels"
_LABEL_FIELD: Final = "labels."


class _Row(NamedTuple):
    """What most operations need of a snapshot; `parent` is its parent's key, or ""."""

    id: SnapshotId
    kind: Kind
    parent_id: SnapshotId | None
    parent: str


class Snapshots:
    """The snapshots of one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def check_create(self, key: str, parent: str) -> SnapshotId | None:
        """The parent's number, after every check that `create` makes; None without a parent.

        Raises NotFoundError or InvalidArgumentError (parent missing, not committed), then
        AlreadyExistsError.
        """
        row = self._base(key, parent)
        return None if row is None else row.id

    def create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> Snapshot:
        """Add an active snapshot or a view, with the labels that have a value.

        Raises NotFoundError, InvalidArgumentError, AlreadyExistsError.
        """
        base = self._base(key, parent)
        parent_id = None if base is None else base.id
        kept = _checked(labels)
        name = BackendKey.parse(key)
        now = time.time_ns()
        cursor = self._connection.execute(
            "INSERT INTO snapshot"
            " (key, namespace, client, kind, parent_id, created_ns, updated_ns, frame)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(key, name.namespace, name.client, kind, parent_id, now, now),
                info_frame(Info(key, kind, parent, kept, now, now)),
            ),
        )
        number = SnapshotId(cursor.lastrowid or 0)
        self._set_labels(number, kept)
        return Snapshot(number, kind, () if base is None else self._chain(base))

    def number(self, key: str) -> SnapshotId | None:
        """The number of the snapshot with this key, if there is one."""
        row = self._find(key).get(key)
        return None if row is None else row.id

    def commit(
        self,
        name: str,
        key: str,
        *,
        labels: Mapping[str, str],
        usage: Usage,
        parent: str = "",
        only: SnapshotId | None = None,
    ) -> SnapshotId:
        """Make the active `key` the committed `name`: labels replaced, both times set to now.

        An active snapshot without a parent may be given `parent` (containerd 2.2's rebase).
        Where `only` is given and the number is another one, nothing is done; it is returned.
        Raises AlreadyExistsError (name), NotFoundError (key, parent), FailedPreconditionError
        (`key` not active, `parent` not committed), InvalidArgumentError (another parent).
        """
        rows = self._find(name, key, parent)
        row = _committable(name, key, rows)
        if only is not None and row.id != only:
            return row.id
        parent_id, base = row.parent_id, row.parent
        if parent:
            parent_id, base = _rebased(key, row, parent, rows.get(parent)), parent
        kept = _checked(labels)
        new = BackendKey.parse(name)
        now = time.time_ns()
        info = Info(name, Kind.COMMITTED, base, kept, now, now)
        self._connection.execute(
            "UPDATE snapshot SET key = ?, namespace = ?, client = ?, kind = ?, parent_id = ?,"
            " created_ns = ?, updated_ns = ?, size = ?, inodes = ?, frame = ? WHERE id = ?",
            (
                *(name, new.namespace, new.client, Kind.COMMITTED, parent_id),
                *(now, now, usage.size, usage.inodes, info_frame(info), row.id),
            ),
        )
        self._replace_labels(row.id, kept)
        return row.id

    def remove(self, key: str) -> SnapshotId:
        """Remove a snapshot of any kind, and the number that it had.

        Raises NotFoundError, FailedPreconditionError (it has children).
        """
        row = self._connection.execute(
            "SELECT id, (SELECT key FROM snapshot c WHERE c.parent_id = s.id LIMIT 1)"
            " FROM snapshot s WHERE key = ?",
            (key,),
        ).fetchone()
        if row is None:
            raise _missing(key)
        number, child = row
        if child is not None:
            raise FailedPreconditionError(
                f"cannot remove snapshot {key!r} with child; remove {child!r} first"
            )
        self._connection.execute("DELETE FROM snapshot WHERE id = ?", (number,))
        return SnapshotId(number)

    def update(self, info: Info, fieldpaths: Sequence[str]) -> Info:
        """Set labels and return the result; all labels without field paths.

        Paths are `labels` and `labels.<key>`; a label absent from `info` is deleted. Kind,
        parent and creation time never change. Raises NotFoundError, InvalidArgumentError.
        """
        row = self._existing(info.name)
        found = self.info(info.name)
        labels = dict(found.labels)
        for path in fieldpaths or (_LABELS_FIELD,):
            if path == _LABELS_FIELD:
                labels = dict(info.labels)
            elif path.startswith(_LABEL_FIELD) and path != _LABEL_FIELD:
                name = path.removeprefix(_LABEL_FIELD)
                labels[name] = info.labels.get(name, "")
            else:
                raise InvalidArgumentError(
                    f"cannot update {path!r} field on snapshot {info.name!r};"
                    " only labels and labels.<key> can change"
                )
        updated = replace(found, labels=_checked(labels), updated_ns=time.time_ns())
        self._replace_labels(row.id, updated.labels)
        self._connection.execute(
            "UPDATE snapshot SET updated_ns = ?, frame = ? WHERE id = ?",
            (updated.updated_ns, info_frame(updated), row.id),
        )
        return updated

    def info(self, key: str) -> Info:
        """Stat. Raises NotFoundError."""
        row = self._connection.execute(_SELECT_INFO + " WHERE s.key = ?", (key,)).fetchone()
        if row is None:
            raise _missing(key)
        return _info(row)

    def frame(self, key: str) -> bytes:
        """Stat as gRPC sends it, see `snapshotter.metastore.wire`. Raises NotFoundError."""
        row = self._connection.execute(
            "SELECT frame FROM snapshot WHERE key = ?", (key,)
        ).fetchone()
        if row is None:
            raise _missing(key)
        return bytes(row[0])

    def frames(self, filters: Filters) -> Iterator[bytes]:
        """What `walk` gives, as gRPC sends it."""
        condition = filters.where()
        if condition.exact:
            rows = self._connection.execute(
                f"{_SELECT_FRAME} WHERE {condition.sql} ORDER BY s.key", condition.parameters
            )
            yield from itertools.chain.from_iterable(rows)
        else:
            for info in self.walk(filters):
                yield info_frame(info)

    def walk(self, filters: Filters) -> Iterator[Info]:
        """Every snapshot that one of the filters matches, in the byte order of their keys."""
        condition = filters.where()
        rows = self._connection.execute(
            f"{_SELECT_INFO} WHERE {condition.sql} ORDER BY s.key", condition.parameters
        )
        for row in rows:
            info = _info(row)
            if condition.exact or filters.match(info):
                yield info

    def snapshot(self, key: str) -> Snapshot:
        """An active snapshot or a view, with its parents.

        Raises NotFoundError, FailedPreconditionError (committed).
        """
        row = self._existing(key)
        if row.kind is Kind.COMMITTED:
            raise FailedPreconditionError(
                f"requested snapshot {key!r} not active or view; prepare a snapshot on top of it"
            )
        return Snapshot(row.id, row.kind, self._ancestors(row.parent_id))

    def usage(self, key: str) -> tuple[SnapshotId, Kind, Usage]:
        """A snapshot's number and kind, and the usage that its commit recorded (else zero).

        Raises NotFoundError.
        """
        row = self._connection.execute(
            "SELECT id, kind, size, inodes FROM snapshot WHERE key = ?", (key,)
        ).fetchone()
        if row is None:
            raise _missing(key)
        return SnapshotId(row[0]), Kind(row[1]), Usage(row[2], row[3])

    def with_directory(self, *, among: Iterable[int]) -> list[tuple[SnapshotId, Kind, Usage]]:
        """The snapshots of these numbers that have a directory of their own, oldest first.

        The usage is what their commit recorded. A view of a parent has no directory.
        """
        rows = self._connection.execute(
            "SELECT id, kind, size, inodes FROM snapshot"
            " WHERE id IN (SELECT value FROM json_each(?))"
            " AND (kind <> ? OR parent_id IS NULL) ORDER BY id",
            (json.dumps(list(among)), Kind.VIEW),
        )
        return [
            (SnapshotId(number), Kind(kind), Usage(size, inodes))
            for number, kind, size, inodes in rows
        ]

    def directories(self) -> frozenset[int]:
        """The numbers of all snapshots that have a directory; a view of a parent has none."""
        rows = self._connection.execute(
            "SELECT id FROM snapshot WHERE kind <> ? OR parent_id IS NULL", (Kind.VIEW,)
        )
        return frozenset(itertools.chain.from_iterable(rows))

    def _find(self, first: str, second: str = "", third: str = "") -> dict[str, _Row]:
        """The snapshots with these keys, those that there are; no snapshot has the key ""."""
        rows = self._connection.execute(
            "SELECT s.key, s.id, s.kind, s.parent_id, coalesce(p.key, '')"
            " FROM snapshot s LEFT JOIN snapshot p ON p.id = s.parent_id"
            " WHERE s.key IN (?, ?, ?)",
            (first, second, third),
        )
        return {
            key: _Row(number, Kind(kind), parent_id, parent)
            for key, number, kind, parent_id, parent in rows
        }

    def _existing(self, key: str) -> _Row:
        row = self._find(key).get(key)
        if row is None:
            raise _missing(key)
        return row

    def _base(self, key: str, parent: str) -> _Row | None:
        """The parent, after the checks of `check_create`; None without one."""
        rows = self._find(key, parent)
        base = None
        if parent:
            base = rows.get(parent)
            if base is None:
                raise NotFoundError(f"parent snapshot {parent!r} does not exist")
            if base.kind is not Kind.COMMITTED:
                raise InvalidArgumentError(
                    f"parent snapshot {parent!r} is {base.kind.word}, not committed;"
                    " commit it first"
                )
        if key in rows:
            raise AlreadyExistsError(f"snapshot {key!r} already exists")
        return base

    def _chain(self, row: _Row) -> tuple[SnapshotId, ...]:
        """A snapshot and those that it is on, nearest first."""
        return (row.id, *self._ancestors(row.parent_id))

    def _ancestors(self, parent_id: SnapshotId | None) -> tuple[SnapshotId, ...]:
        if parent_id is None:
            return ()
        rows = self._connection.execute(
            """WITH RECURSIVE chain (id, depth) AS (
                SELECT ?, 0
                UNION ALL
                SELECT s.parent_id, depth + 1 FROM chain JOIN snapshot s ON s.id = chain.id
                WHERE s.parent_id IS NOT NULL
            ) SELECT id FROM chain ORDER BY depth""",
            (parent_id,),
        )
        return tuple(SnapshotId(row[0]) for row in rows)

    def _replace_labels(self, number: SnapshotId, labels: Mapping[str, str]) -> None:
        self._connection.execute("DELETE FROM label WHERE snapshot_id = ?", (number,))
        self._set_labels(number, labels)

    def _set_labels(self, number: SnapshotId, labels: Mapping[str, str]) -> None:
        if labels:
            self._connection.executemany(
                "INSERT INTO label (snapshot_id, name, value) VALUES (?, ?, ?)",
                [(number, name, value) for name, value in labels.items()],
            )


def _committable(name: str, key: str, rows: Mapping[str, _Row]) -> _Row:
    if name in rows:
        raise AlreadyExistsError(f"snapshot {name!r} already exists")
    row = rows.get(key)
    if row is None:
        raise _missing(key)
    if row.kind is not Kind.ACTIVE:
        raise FailedPreconditionError(f"snapshot {key!r} is {row.kind.word}, not active")
    return row


def _rebased(key: str, row: _Row, parent: str, found: _Row | None) -> SnapshotId:
    if row.parent_id is not None:
        if found is None or found.id != row.parent_id:
            raise InvalidArgumentError(
                f"cannot change parent of active snapshot {key!r} to {parent!r}"
            )
        return row.parent_id
    if found is None:
        raise NotFoundError(f"parent snapshot {parent!r} does not exist")
    if found.kind is not Kind.COMMITTED:
        raise FailedPreconditionError(
            f"parent snapshot {parent!r} is {found.kind.word}, not committed; commit it first"
        )
    return found.id


def _checked(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels that have a value. Raises InvalidArgumentError for what cannot be stored."""
    kept = without_empty(labels)
    for name, value in kept.items():
        check_text("label", name)
        check_text(f"value of label {name}", value)
    return kept


def _info(row: tuple[str, int, str, int, int, str]) -> Info:
    key, kind, parent, created_ns, updated_ns, labels = row
    return Info(key, Kind(kind), parent, json.loads(labels), created_ns, updated_ns)


def _missing(key: str) -> NotFoundError:
    return NotFoundError(f"snapshot {key!r} does not exist")

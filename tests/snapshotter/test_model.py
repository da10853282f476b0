"""Any sequence of operations against a model of a few lines."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from snapshotter import Kind, Snapshotter
from snapshotter.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    SnapshotterError,
)
from snapshotter.labels import OWNER_KEY, REUSE_SCRATCH

KEYS = st.sampled_from(["a", "b", "ns/1/a", "ns/2/c", "extract-1 x"])
NAMES = st.sampled_from(["L", "M", "ns/3/a"])
PARENTS = st.sampled_from(["", "L", "M", "a"])


@dataclass
class Row:
    kind: Kind
    parent: str
    disk: int | None = None


class SnapshotterMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.rows: dict[str, Row] = {}
        self.disks = 0

    @initialize()
    def open(self) -> None:
        self.store = Snapshotter.open(self.root, durable=False)

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.root)

    def create_error(self, key: str, parent: str) -> type[SnapshotterError] | None:
        if parent and parent not in self.rows:
            return NotFoundError
        if parent and self.rows[parent].kind is not Kind.COMMITTED:
            return InvalidArgumentError
        return AlreadyExistsError if key in self.rows else None

    @rule(key=KEYS, parent=PARENTS)
    def prepare(self, key: str, parent: str) -> None:
        if (error := self.create_error(key, parent)) is not None:
            with pytest.raises(error):
                self.store.prepare(key, parent)
            return
        self.store.prepare(key, parent)
        self.rows[key] = Row(Kind.ACTIVE, parent)
        if not key.startswith("extract-"):
            self.disks += 1
            self.rows[key].disk = self.disks

    @rule(key=KEYS, owner=KEYS)
    def share(self, key: str, owner: str) -> None:
        labels = {REUSE_SCRATCH: "true", OWNER_KEY: owner}
        unpack = key.startswith("extract-")
        namespace = key.rpartition("/")[0].partition("/")[0]
        owners = [
            row
            for name, row in self.rows.items()
            if row.kind is Kind.ACTIVE
            and row.disk is not None
            and (not namespace or name.startswith(f"{namespace}/"))
            and (name == owner or (namespace and name.rpartition("/")[2] == owner))
        ]
        if key in self.rows:
            with pytest.raises(AlreadyExistsError):
                self.store.prepare(key, labels=labels)
        elif unpack or owners:
            self.store.prepare(key, labels=labels)
            self.rows[key] = Row(Kind.ACTIVE, "", None if unpack else owners[0].disk)
        else:
            with pytest.raises(NotFoundError):
                self.store.prepare(key, labels=labels)

    @rule(key=KEYS, parent=PARENTS)
    def view(self, key: str, parent: str) -> None:
        if (error := self.create_error(key, parent)) is not None:
            with pytest.raises(error):
                self.store.view(key, parent)
            return
        self.store.view(key, parent)
        self.rows[key] = Row(Kind.VIEW, parent)

    @rule(name=NAMES, key=KEYS)
    def commit(self, name: str, key: str) -> None:
        error: type[SnapshotterError] | None = None
        if name in self.rows:
            error = AlreadyExistsError
        elif key not in self.rows:
            error = NotFoundError
        elif self.rows[key].kind is not Kind.ACTIVE:
            error = FailedPreconditionError
        if error is not None:
            with pytest.raises(error):
                self.store.commit(name, key)
            return
        self.store.commit(name, key)
        self.rows[name] = self.rows.pop(key)
        self.rows[name].kind = Kind.COMMITTED

    @rule(key=st.one_of(KEYS, NAMES))
    def remove(self, key: str) -> None:
        if key not in self.rows:
            with pytest.raises(NotFoundError):
                self.store.remove(key)
        elif any(row.parent == key for row in self.rows.values()):
            with pytest.raises(FailedPreconditionError):
                self.store.remove(key)
        else:
            self.store.remove(key)
            del self.rows[key]

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Snapshotter.open(self.root, durable=False)

    @invariant()
    def the_store_is_what_the_model_says(self) -> None:
        found = {info.name: (info.kind, info.parent) for info in self.store.walk()}
        assert found == {name: (row.kind, row.parent) for name, row in self.rows.items()}

    @invariant()
    def snapshots_that_share_resolve_to_one_disk_and_no_other_file_is_left(self) -> None:
        paths: dict[int, set[Path]] = {}
        for name, row in self.rows.items():
            link = self.store.directory(name) / "sandbox.vhdx"
            assert link.is_symlink() == (row.disk is not None)
            if row.disk is not None:
                paths.setdefault(row.disk, set()).add(link.resolve(strict=True))
        assert all(len(found) == 1 for found in paths.values())
        disks = {path for found in paths.values() for path in found}
        assert len(disks) == len(paths)
        assert set((self.root / "scratch").glob("*/*")) == disks


SnapshotterMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None
)
TestSnapshotter = SnapshotterMachine.TestCase

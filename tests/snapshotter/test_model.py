"""Any sequence of operations against a model of a few lines, on Linux and as if on NTFS."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from snapshotter import Kind, Snapshotter
from snapshotter.errors import (
    AlreadyExistsError,
    DiskInUseError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    SnapshotterError,
)
from snapshotter.labels import OWNER_KEY, REUSE_SCRATCH, SIZE_GB
from snapshotter.platform import Platform, local_platform
from snapshotter.units import GIB
from tests.fakes.ntfs import FakeNtfs, NtfsPlatform

KEYS = st.sampled_from(["a", "b", "ns/1/a", "ns/2/c", "other/4/a", "extract-1 x"])
NAMES = st.sampled_from(["L", "M", "ns/3/a"])
PARENTS = st.sampled_from(["", "", "", "L", "M", "a"])  # most often none: then it succeeds
LABELS = st.dictionaries(st.sampled_from(["x", "y.z"]), st.sampled_from(["", "1", "2"]), max_size=2)
SIZES = st.sampled_from([1, 2])


@dataclass
class Disk:
    """A scratch disk: its size in GiB, and its holders, the owner first while it is there."""

    size: int
    owner: str | None
    holders: list[str]


@dataclass
class Row:
    kind: Kind
    parent: str
    number: int
    disk: Disk | None = None
    labels: dict[str, str] = field(default_factory=dict)


def kept(labels: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in labels.items() if value}


class SnapshotterMachine(RuleBasedStateMachine):
    """The model is `rows`: a plain dictionary."""

    platform: Platform = local_platform()

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.rows: dict[str, Row] = {}
        self.last_number = 0

    @initialize()
    def open(self) -> None:
        self.store = Snapshotter.open(
            self.root,
            durable=False,
            platform=self.platform,
            default_scratch_size=GIB,
            busy_wait_s=0,
        )

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.root)

    # -- what the model says

    def parent_error(
        self, parent: str, kind: type[SnapshotterError]
    ) -> type[SnapshotterError] | None:
        if not parent:
            return None
        if parent not in self.rows:
            return NotFoundError
        return None if self.rows[parent].kind is Kind.COMMITTED else kind

    def create_error(self, key: str, parent: str) -> type[SnapshotterError] | None:
        wrong = self.parent_error(parent, InvalidArgumentError)
        return wrong or (AlreadyExistsError if key in self.rows else None)

    def owners(self, key: str, owner: str) -> list[Row]:
        namespace = key.partition("/")[0] if "/" in key else ""
        found = [
            row
            for name, row in self.rows.items()
            if row.kind is Kind.ACTIVE
            and row.disk is not None
            and (not namespace or name.startswith(f"{namespace}/"))
            and (name == owner or (namespace and name.rpartition("/")[2] == owner))
        ]
        exact = [row for row in found if self.rows.get(owner) is row]
        return exact or found

    def created(self, key: str, row: Row) -> None:
        # Numbers only ever grow, whatever was removed, refused or swept meanwhile.
        number = int(self.store.directory(key).name)
        assert number > self.last_number
        self.last_number = number
        self.rows[key] = replace(row, number=number)

    # -- operations

    @rule(key=KEYS, parent=PARENTS, labels=LABELS, size=SIZES)
    def prepare(self, key: str, parent: str, labels: dict[str, str], size: int) -> None:
        wanted = {**labels, SIZE_GB: str(size)}
        if (error := self.create_error(key, parent)) is not None:
            with pytest.raises(error):
                self.store.prepare(key, parent, labels=wanted)
            return
        mounts = self.store.prepare(key, parent, labels=wanted)
        disk = None if key.startswith("extract-") else Disk(size, key, [key])
        self.created(key, Row(Kind.ACTIVE, parent, 0, disk, kept(wanted)))
        assert mounts == self.store.mounts(key)

    @rule(key=KEYS, owner=KEYS, size=st.sampled_from([None, 1, 2]), parent=PARENTS)
    def share(self, key: str, owner: str, size: int | None, parent: str) -> None:
        labels = {REUSE_SCRATCH: "true", OWNER_KEY: owner}
        if size is not None:
            labels[SIZE_GB] = str(size)
        unpack = key.startswith("extract-")
        owners = self.owners(key, owner)
        error = self.create_error(key, parent)
        if error is None and not unpack:
            if not owners:
                error = NotFoundError
            elif size is not None and owners[0].disk is not None and owners[0].disk.size != size:
                error = InvalidArgumentError
        if error is not None:
            with pytest.raises(error):
                self.store.prepare(key, parent, labels=labels)
            return
        self.store.prepare(key, parent, labels=labels)
        disk = None if unpack else owners[0].disk
        self.created(key, Row(Kind.ACTIVE, parent, 0, disk, labels))
        if disk is not None:
            disk.holders.append(key)

    @rule(key=KEYS, parent=PARENTS, labels=LABELS)
    def view(self, key: str, parent: str, labels: dict[str, str]) -> None:
        if (error := self.create_error(key, parent)) is not None:
            with pytest.raises(error):
                self.store.view(key, parent, labels=labels)
            return
        (mount,) = self.store.view(key, parent, labels=labels)
        self.created(key, Row(Kind.VIEW, parent, 0, None, kept(labels)))
        shown = self.rows[parent] if parent else self.rows[key]
        assert (Path(mount.source).name, mount.options[0]) == (str(shown.number), "ro")

    @rule(name=NAMES, key=KEYS, parent=PARENTS, labels=LABELS)
    def commit(self, name: str, key: str, parent: str, labels: dict[str, str]) -> None:
        error: type[SnapshotterError] | None = None
        row = self.rows.get(key)
        if name in self.rows:
            error = AlreadyExistsError
        elif row is None:
            error = NotFoundError
        elif row.kind is not Kind.ACTIVE:
            error = FailedPreconditionError
        elif parent and row.parent:
            error = None if parent == row.parent else InvalidArgumentError
        else:
            error = self.parent_error(parent, FailedPreconditionError)
        if error is not None:
            with pytest.raises(error):
                self.store.commit(name, key, parent=parent, labels=labels)
            return
        assert row is not None
        self.store.commit(name, key, parent=parent, labels=labels)
        del self.rows[key]
        self.rows[name] = replace(
            row, kind=Kind.COMMITTED, parent=parent or row.parent, labels=kept(labels)
        )
        if row.disk is not None:
            row.disk.holders = [name if each == key else each for each in row.disk.holders]
            row.disk.owner = name if row.disk.owner == key else row.disk.owner

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
            self.forget(key)

    def forget(self, key: str) -> None:
        disk = self.rows.pop(key).disk
        if disk is not None:
            disk.holders.remove(key)
            disk.owner = None if disk.owner == key else disk.owner

    @rule(key=st.one_of(KEYS, NAMES), labels=LABELS, whole=st.booleans())
    def update(self, key: str, labels: dict[str, str], whole: bool) -> None:
        if key not in self.rows:
            return
        info = replace(self.store.stat(key), labels=labels)
        row = self.rows[key]
        if whole:
            self.store.update(info)
            row.labels = kept(labels)
        else:
            self.store.update(info, "labels.y.z")
            row.labels = kept({**row.labels, "y.z": labels.get("y.z", "")})

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.open()

    @rule(shelf=st.sampled_from(["snapshots", "scratch"]))
    def a_killed_process_leaves_directories(self, shelf: str) -> None:
        # Under the numbers that are given out next, which is where it hurts.
        coming = range(self.last_number + 1, self.last_number + 4)
        for name in (*map(str, coming), *(f"rm-{number}" for number in coming), "new-0f-1"):
            orphan = self.root / shelf / name
            if not orphan.exists():
                orphan.mkdir()
                (orphan / "layer.vhd").write_bytes(b"stale")

    @rule()
    def cleanup(self) -> None:
        self.store.cleanup()
        self.nothing_else_is_on_disk()

    @precondition(lambda self: isinstance(self.platform, NtfsPlatform))
    @rule(key=st.one_of(KEYS, NAMES))
    def remove_while_its_disk_is_attached(self, key: str) -> None:
        row = self.rows.get(key)
        if row is None or row.disk is None or not isinstance(self.platform, NtfsPlatform):
            return
        shared = self.store.shared_disk(key)
        assert shared is not None
        with self.platform.kernel.hold(shared.path):
            if any(other.parent == key for other in self.rows.values()):
                with pytest.raises(FailedPreconditionError):
                    self.store.remove(key)
            elif row.disk.holders == [key]:
                with pytest.raises(DiskInUseError):
                    self.store.remove(key)
            else:
                self.store.remove(key)
                self.forget(key)

    # -- what must hold at any time

    @invariant()
    def the_store_is_what_the_model_says(self) -> None:
        found = {
            info.name: (info.kind, info.parent, dict(info.labels)) for info in self.store.walk()
        }
        assert found == {
            name: (row.kind, row.parent, row.labels) for name, row in self.rows.items()
        }

    @invariant()
    def numbers_stay(self) -> None:
        for name, row in self.rows.items():
            directory = self.store.directory(name)
            assert directory.name == str(row.number)
            assert not (directory / "layer.vhd").exists()  # nothing stale is ever adopted

    @invariant()
    def snapshots_that_share_resolve_to_one_disk(self) -> None:
        paths: dict[Path, Disk] = {}
        for name, row in self.rows.items():
            link = self.store.directory(name) / "sandbox.vhdx"
            shared = self.store.shared_disk(name)
            assert link.is_symlink() == (row.disk is not None)
            if row.disk is None or shared is None:
                assert row.disk is None
                assert shared is None
                continue
            assert link.resolve(strict=True) == shared.path
            assert paths.setdefault(shared.path, row.disk) is row.disk
            assert shared.size == row.disk.size * GIB
            assert {each.key for each in shared.holders} == set(row.disk.holders)
            assert [each.key for each in shared.holders if each.owner] == (
                [row.disk.owner] if row.disk.owner else []
            )

    @invariant()
    def the_disk_is_counted_once(self) -> None:
        for disk in {id(row.disk): row.disk for row in self.rows.values() if row.disk}.values():
            payers = [key for key in disk.holders if self.store.usage(key).size > (1 << 15)]
            assert len(payers) == 1

    def nothing_else_is_on_disk(self) -> None:
        disks = {shared.path for name in self.rows if (shared := self.store.shared_disk(name))}
        assert set((self.root / "scratch").glob("*/*")) == disks
        directories = {
            row.number for row in self.rows.values() if row.kind is not Kind.VIEW or not row.parent
        }
        found = {path.name for path in (self.root / "snapshots").iterdir()}
        assert found == set(map(str, directories))


class NtfsMachine(SnapshotterMachine):
    """The same on a volume that behaves as NTFS."""

    platform = NtfsPlatform(FakeNtfs())


@pytest.mark.parametrize("machine", [SnapshotterMachine, NtfsMachine])
def test_any_sequence_of_operations_leaves_what_the_model_says(
    machine: type[SnapshotterMachine],
) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=15, stateful_step_count=30, deadline=None)
    )

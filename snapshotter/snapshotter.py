"""The LCOW snapshotter: containerd's snapshots.Snapshotter on a crash-safe store.

::

    prepare/view --> active | view --remove--> gone
                       |
                     commit --> committed --remove (no children)--> gone

    <root>/metadata.db                SQLite, the truth about everything below
    <root>/snapshots/<id>/            layer.vhd, or sandbox.vhdx: a link into scratch/
    <root>/scratch/<id>/sandbox.vhdx  see `snapshotter.scratch.store`
    <root>/metadata.reserve           space for removals on a full disk
    <root>/owners/<name>.lock         one per process that has the store open

What takes long (writing a scratch disk, deleting files, adding up usage) happens outside the
write transaction; inside it there are renames and rows. Any number of threads and processes may
work on one root at the same time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from snapshotter.errors import (
    InvalidArgumentError,
    NotFoundError,
    SnapshotterError,
    UnavailableError,
)
from snapshotter.filters import Filters
from snapshotter.keys import check_key, is_unpack
from snapshotter.labels import (
    DEFAULT_SCRATCH_SIZE,
    OwnScratch,
    ScratchRequest,
    SharedScratch,
    check_scratch_size,
    scratch_request,
    without_empty,
)
from snapshotter.metastore.model import Holder, Info, Kind, Scratch, Snapshot, Usage
from snapshotter.metastore.store import (
    DEFAULT_BUSY_TIMEOUT_S,
    MetaStore,
    StoreFullError,
    Transaction,
)
from snapshotter.mounts import SCRATCH_NAME, Mount, lcow_mounts
from snapshotter.recovery import follow_moved_root, recover
from snapshotter.scratch.sharing import shared_scratch
from snapshotter.scratch.store import ScratchStore
from snapshotter.shelf import Owner, Shelf, discard
from snapshotter.usage import disk_usage

_log = logging.getLogger(__name__)

METADATA_NAME: Final = "metadata.db"
_STORE_ID: Final = "store-id"


@dataclass(frozen=True, slots=True)
class SharedDisk:
    """A scratch disk: canonical path, virtual size in bytes, allocated bytes, and its holders.

    The first holder is the one whose usage counts the disk.
    """

    path: Path
    size: int
    allocated: int
    holders: tuple[Holder, ...]


class Snapshotter:
    """One open store; a context manager. Open it with `Snapshotter.open`."""

    def __init__(
        self,
        root: Path,
        store: MetaStore,
        owner: Owner,
        snapshots: Shelf,
        scratches: ScratchStore,
        *,
        default_scratch_size: int,
    ) -> None:
        self.root = root
        self._store = store
        self._owner = owner
        self._snapshots = snapshots
        self._scratches = scratches
        self._default_scratch_size = default_scratch_size

    @classmethod
    def open(
        cls,
        root: str | os.PathLike[str],
        *,
        create: bool = True,
        default_scratch_size: int = DEFAULT_SCRATCH_SIZE,
        scratch_locations: Sequence[str | os.PathLike[str]] = (),
        durable: bool = True,
        busy_timeout_s: float = DEFAULT_BUSY_TIMEOUT_S,
    ) -> Self:
        """Open the store at `root`, and put right what a killed process left there.

        `default_scratch_size` (bytes) is for snapshots whose labels name none;
        `scratch_locations` are the absolute directories that the location label may name.
        Without `durable`, files are not flushed, which only a test should want.

        Raises NotFoundError (no store there and not `create`), InvalidArgumentError (a size or
        location), UnavailableError (not a directory, locked, damaged).
        """
        size = check_scratch_size(default_scratch_size)
        locations = tuple(_allowed_location(Path(path)) for path in scratch_locations)
        # Resolved, since links to scratch disks name it: a relative root would dangle.
        base = Path(root).resolve()
        if not create and not (base / METADATA_NAME).is_file():
            raise NotFoundError(f"there is no snapshotter store at {base}; check the root")
        try:
            base.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UnavailableError(f"cannot create the root {base}: {error.strerror}") from error
        with contextlib.ExitStack() as undo:
            store = MetaStore.open(base / METADATA_NAME, busy_timeout_s=busy_timeout_s)
            undo.callback(store.close)
            with store.transaction(write=True) as tx:
                owner = Owner.enter(base / "owners")
                undo.callback(owner.leave)
                store_id = tx.properties.get(_STORE_ID) or uuid.uuid4().hex
                tx.properties.put(_STORE_ID, store_id)
            snapshots = Shelf(base / "snapshots", owner, durable=durable)
            snapshots.create()
            scratches = ScratchStore(base, store_id, owner, durable=durable, locations=locations)
            scratches.create()
            recover(store, owner, snapshots, scratches)
            follow_moved_root(store, base, snapshots, scratches)
            undo.pop_all()
        return cls(base, store, owner, snapshots, scratches, default_scratch_size=size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close; a second call does nothing. Every other call then raises UnavailableError."""
        self._store.close()
        self._owner.leave()

    # -- containerd's core/snapshots.Snapshotter

    def prepare(
        self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        """Mounts of a new active snapshot on top of `parent` (a committed one, or "").

        It gets a scratch disk of its own, or by its labels that of another snapshot; an unpack
        snapshot (`extract-...`) gets none. On failure nothing is left.

        Raises NotFoundError (parent or scratch owner), AlreadyExistsError,
        InvalidArgumentError (parent not committed, a bad label), UnavailableError (disk full).
        """
        kept = without_empty(labels or {})
        request: ScratchRequest | None = None
        if not is_unpack(key, kept):
            request = scratch_request(
                kept,
                default_size=self._default_scratch_size,
                locations=tuple(map(Path, self._scratches.locations)),
            )
        return self._create(Kind.ACTIVE, key, parent, kept, request)

    def view(
        self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        """Read-only mounts of `parent`. Raises as `prepare` does, scratch disks apart."""
        return self._create(Kind.VIEW, key, parent, without_empty(labels or {}), None)

    def mounts(self, key: str) -> list[Mount]:
        """Mounts of an active snapshot or a view.

        Raises NotFoundError, FailedPreconditionError (committed).
        """
        with self._store.transaction(write=False) as tx:
            return self._mounts(tx.snapshots.snapshot(key))

    def commit(
        self,
        name: str,
        key: str,
        *,
        labels: Mapping[str, str] | None = None,
        parent: str = "",
    ) -> None:
        """Turn the active `key` into the committed `name`, with these labels and no others.

        `parent` may be given for one prepared without. A scratch disk stays with the snapshot,
        so that nothing written to it is lost, but no layer is made of it.

        Raises AlreadyExistsError (name), NotFoundError, FailedPreconditionError (not active),
        InvalidArgumentError.
        """
        check_key("name", name)
        while True:
            with self._store.transaction(write=False) as tx:
                number = tx.snapshots.check_commit(name, key)
            usage = disk_usage(self._snapshots.entry(number))
            with self._store.transaction(write=True) as tx:
                # Another snapshot may have taken the key meanwhile: then measure that one.
                if tx.snapshots.check_commit(name, key) == number:
                    # From now on it holds a layer that nothing can make anew.
                    tx.flush_before_commit(self._snapshots.path, self._snapshots.flush)
                    tx.snapshots.commit(name, key, labels=labels or {}, usage=usage, parent=parent)
                    return

    def remove(self, key: str) -> None:
        """Remove a snapshot; its scratch disk goes with the last one that uses it.

        It works on a full disk too, where it is what helps. Raises NotFoundError,
        FailedPreconditionError (it has children, or is in use).
        """
        try:
            self._remove(key)
        except StoreFullError:
            self._store.reserve.spend()
            self._remove(key)
            self._store.reserve.fill()

    def stat(self, key: str) -> Info:
        """What the store knows about a snapshot. Raises NotFoundError."""
        with self._store.transaction(write=False) as tx:
            return tx.snapshots.info(key)

    def update(self, info: Info, *fieldpaths: str) -> Info:
        """Set the labels of `info.name`: all of them, or `labels.<key>` each; the new Info.

        Raises NotFoundError, InvalidArgumentError (another field).
        """
        with self._store.transaction(write=True) as tx:
            return tx.snapshots.update(info, fieldpaths)

    def usage(self, key: str) -> Usage:
        """Disk space of a snapshot without its parents; zero for a view.

        Of several that share a scratch disk only the first counts it: its owner, or the oldest
        one left. Raises NotFoundError.
        """
        with self._store.transaction(write=False) as tx:
            number, kind, usage = tx.snapshots.usage(key)
            scratch = tx.scratches.held_by(number)
            if scratch is not None and not tx.scratches.pays_for(number, scratch.id):
                scratch = None
        if kind is Kind.ACTIVE:
            usage = disk_usage(self._snapshots.entry(number))
        if scratch is not None:
            usage += disk_usage(self._scratches.disk(scratch.location, scratch.id))
        return usage

    def walk(self, *filters: str) -> Iterator[Info]:
        """Every snapshot that one of the filters matches, in the byte order of their names.

        The iterator sees the store as it is at its first step, and allows any call meanwhile.
        Raises InvalidArgumentError (a malformed filter) before the first step.
        """
        return self._walk(Filters.parse(*filters))

    def stat_frame(self, key: str) -> bytes:
        """What `stat` gives, as gRPC sends it (`snapshotter.metastore.wire`).

        Raises NotFoundError.
        """
        with self._store.transaction(write=False) as tx:
            return tx.snapshots.frame(key)

    def walk_frames(self, *filters: str) -> Iterator[bytes]:
        """What `walk` gives, as gRPC sends it. Raises as `walk` does."""
        return self._walk_frames(Filters.parse(*filters))

    def cleanup(self) -> int:
        """Delete what killed processes left; how many directories are gone.

        Safe while other processes use the store: what they are writing is left alone.
        """
        return recover(self._store, self._owner, self._snapshots, self._scratches)

    # -- what containerd's interface has no word for

    @property
    def session(self) -> str:
        """Names this open store. As label `SESSION` it binds an active snapshot to it.

        The next recovery, of any process, removes such a snapshot once this store is closed.
        """
        return self._owner.name

    def shared_disk(self, key: str) -> SharedDisk | None:
        """The scratch disk that a snapshot uses, and who else does; None for one without.

        Raises NotFoundError.
        """
        with self._store.transaction(write=False) as tx:
            number, _, _ = tx.snapshots.usage(key)
            scratch = tx.scratches.held_by(number)
            if scratch is None:
                return None
            holders = tx.scratches.holders(scratch.id)
        path = self._scratches.disk(scratch.location, scratch.id)
        return SharedDisk(path, scratch.size, disk_usage(path).size, holders)

    def directory(self, key: str) -> Path:
        """The directory of a snapshot of any kind, where its layer.vhd is. Raises NotFoundError."""
        with self._store.transaction(write=False) as tx:
            number, _, _ = tx.snapshots.usage(key)
        return self._snapshots.entry(number)

    # -- inside

    def _create(
        self,
        kind: Kind,
        key: str,
        parent: str,
        labels: Mapping[str, str],
        request: ScratchRequest | None,
    ) -> list[Mount]:
        check_key("key", key)
        with self._store.transaction(write=False) as tx:
            # Once before the work, so that what cannot succeed costs nothing, and once more
            # with the row.
            tx.snapshots.check_create(key, parent)
            if isinstance(request, SharedScratch):
                shared_scratch(tx.scratches, key, request)
        staged: list[Path] = []
        publishing = False
        try:
            disk = None
            if isinstance(request, OwnScratch):
                disk = self._scratches.stage(request.location, request.size)
                staged.append(disk)
            directory = None
            if kind is Kind.ACTIVE or not parent:
                directory = self._snapshots.stage()
                staged.append(directory)
            with self._store.transaction(write=True) as tx:
                snapshot = tx.snapshots.create(kind, key, parent, labels)
                if request is not None:
                    scratch = self._scratch(tx, key, request)
                    owned = disk is not None
                    tx.scratches.hold(snapshot.id, scratch.id, owner=owned)
                    if disk is not None:
                        publishing = True
                        shelf = self._scratches.shelf(scratch.location)
                        shelf.publish(disk, scratch.id)
                        tx.flush_before_commit(shelf.path, shelf.flush)
                    assert directory is not None
                    self._link(directory, scratch)
                if directory is not None:
                    publishing = True
                    # Not flushed: all that it holds so far, recovery can make anew.
                    self._snapshots.publish(directory, snapshot.id)
        except BaseException:
            if publishing:
                self._recover_after_failure()
            discard(staged)
            raise
        return self._mounts(snapshot)

    def _remove(self, key: str) -> None:
        retired: list[Path | None] = []
        renaming = False
        try:
            with self._store.transaction(write=True) as tx:
                removed = tx.snapshots.remove(key)
                scratch = tx.scratches.release(removed.id)
                renaming = True
                retired.append(self._snapshots.retire(removed.id))
                if scratch is not None:
                    shelf = self._scratches.shelf(scratch.location)
                    retired.append(shelf.retire(scratch.id))
        except BaseException:
            if renaming:
                self._recover_after_failure()
            raise
        discard(path for path in retired if path is not None)

    def _scratch(self, tx: Transaction, key: str, request: ScratchRequest) -> Scratch:
        if isinstance(request, SharedScratch):
            return shared_scratch(tx.scratches, key, request)
        return tx.scratches.add(request.size, request.location)

    def _link(self, directory: Path, scratch: Scratch) -> None:
        target = self._scratches.disk(scratch.location, scratch.id)
        if not target.is_file():
            raise UnavailableError(
                f"the scratch disk {target} is missing; remove the snapshots that share it"
            )
        try:
            (directory / SCRATCH_NAME).symlink_to(target)
        except OSError as error:
            raise UnavailableError(
                f"cannot link {SCRATCH_NAME} to {target}: {error.strerror}; on Windows this needs"
                " the right to create symbolic links"
            ) from error

    def _mounts(self, snapshot: Snapshot) -> list[Mount]:
        return lcow_mounts(snapshot, self._snapshots.entry)

    def _walk(self, filters: Filters) -> Iterator[Info]:
        with self._store.transaction(write=False) as tx:
            yield from tx.snapshots.walk(filters)

    def _walk_frames(self, filters: Filters) -> Iterator[bytes]:
        with self._store.transaction(write=False) as tx:
            yield from tx.snapshots.frames(filters)

    def _recover_after_failure(self) -> None:
        # The transaction is rolled back, so the directories must follow. Where even this fails
        # (a full disk, say) the next open does it.
        try:
            self.cleanup()
        except SnapshotterError as error:
            _log.warning("cannot clean up after a failure: %s", error)


def _allowed_location(path: Path) -> Path:
    if not path.is_absolute():
        raise InvalidArgumentError(f"the scratch location {path} is not an absolute path")
    return Path(os.path.normpath(path))

"""The LCOW snapshotter: containerd's snapshots.Snapshotter on a crash-safe store.

::

    prepare/view --> active | view --remove--> gone
                       |
                     commit --> committed --remove (no children)--> gone

    <root>/metadata.db                SQLite, the truth about everything below
    <root>/snapshots/<id>/            layer.vhd, or sandbox.vhdx: a link into scratch/
    <root>/scratch/<id>/sandbox.vhdx  see `snapshotter.scratch.store`
    <root>/layers/<digest>            see `snapshotter.layercache`
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

from snapshotter.deletion import Deletion
from snapshotter.errors import (
    InvalidArgumentError,
    NotFoundError,
    SnapshotterError,
    UnavailableError,
)
from snapshotter.filters import Filters
from snapshotter.keys import is_unpack
from snapshotter.labels import (
    DEFAULT_SCRATCH_SIZE,
    ScratchRequest,
    check_scratch_size,
    scratch_request,
    without_empty,
)
from snapshotter.layercache import LayerCache
from snapshotter.metastore.model import Holder, Info, Kind, Snapshot, Usage
from snapshotter.metastore.store import (
    DEFAULT_BUSY_TIMEOUT_S,
    MetaStore,
    StoreFullError,
)
from snapshotter.mounts import Mount, lcow_mounts
from snapshotter.placement import Placement
from snapshotter.platform import Platform, local_platform
from snapshotter.platform.links import probe_links
from snapshotter.platform.patience import DEFAULT_BUSY_WAIT_S
from snapshotter.recovery import follow_moved_root, recover
from snapshotter.scratch.store import ScratchStore
from snapshotter.shelf import Owner, Shelf
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
        platform: Platform,
        *,
        default_scratch_size: int,
        busy_wait_s: float,
        links_refused: OSError | None,
        layers: LayerCache | None,
        delete_later: bool,
    ) -> None:
        self.root = root
        self._store = store
        self._owner = owner
        self._snapshots = snapshots
        self._scratches = scratches
        self._platform = platform
        self._default_scratch_size = default_scratch_size
        self._deletion = Deletion(platform, later=delete_later)
        self._placement = Placement(
            *(store, snapshots, scratches, platform, self._deletion),
            recover=self._recover,
            links_refused=links_refused,
            busy_wait_s=busy_wait_s,
        )
        self.layers = layers

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
        busy_wait_s: float = DEFAULT_BUSY_WAIT_S,
        reuse_layers: bool = True,
        delete_later: bool = False,
        platform: Platform | None = None,
    ) -> Self:
        """Open the store at `root`, and put right what a killed process left there.

        `default_scratch_size` (bytes) is for snapshots whose labels name none;
        `scratch_locations` are the absolute directories that the location label may name, or
        name a part of. An operation waits up to `busy_timeout_s` for another one's transaction,
        and up to `busy_wait_s` for files that something has open (on Windows). With
        `reuse_layers`, a layer that is there already is cloned or linked to. With `delete_later`,
        the files of removed snapshots are deleted a moment after the call; `cleanup` and `close`
        wait for that. Without `durable`, files are not flushed, which only a test should want.
        `platform` is this machine's where none is given.

        Raises NotFoundError (no store there and not `create`), InvalidArgumentError (a size or
        location), UnavailableError (not a directory, locked, damaged).
        """
        platform = platform or local_platform()
        size = check_scratch_size(default_scratch_size)
        locations = tuple(_allowed_location(Path(path)) for path in scratch_locations)
        # Resolved, since links to scratch disks name it: a relative root would dangle.
        base = Path(root).resolve()
        files = platform.long(base)
        if not create and not (files / METADATA_NAME).is_file():
            raise NotFoundError(f"there is no snapshotter store at {base}; check the root")
        try:
            files.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UnavailableError(f"cannot create the root {base}: {error.strerror}") from error
        _refuse_lost_metadata(base, platform)
        with contextlib.ExitStack() as undo:
            store = MetaStore.open(files / METADATA_NAME, busy_timeout_s=busy_timeout_s)
            undo.callback(store.close)
            with store.transaction(write=True) as tx:
                owner = Owner.enter(base / "owners", platform)
                undo.callback(owner.leave)
                store_id = tx.properties.get(_STORE_ID) or uuid.uuid4().hex
                tx.properties.put(_STORE_ID, store_id)
            snapshots = Shelf(base / "snapshots", owner, platform, durable=durable)
            snapshots.create()
            scratches = ScratchStore(
                base, store_id, owner, platform, durable=durable, locations=locations
            )
            scratches.create()
            recover(store, owner, snapshots, scratches, platform)
            follow_moved_root(store, base, snapshots, scratches, platform)
            links_refused = probe_links(platform, owner.directory)
            undo.pop_all()
        return cls(
            *(base, store, owner, snapshots, scratches, platform),
            default_scratch_size=size,
            busy_wait_s=busy_wait_s,
            links_refused=links_refused,
            layers=LayerCache(base / "layers", snapshots.path, platform) if reuse_layers else None,
            delete_later=delete_later,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close; a second call does nothing. Every other call then raises UnavailableError."""
        if self.layers is not None:
            self.layers.close()
        self._deletion.close()
        self._scratches.close()
        self._store.close()
        self._owner.leave()

    # -- containerd's core/snapshots.Snapshotter

    def prepare(
        self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        """Mounts of a new active snapshot on top of `parent` (a committed one, or "").

        It gets a scratch disk of its own, or by its labels that of another snapshot; an unpack
        snapshot (`extract-...`) gets none. On failure nothing is left.

        Raises NotFoundError (parent or scratch owner), AlreadyExistsError (key; or the layer that
        an unpacker's label names is committed on this parent: containerd then takes that one),
        InvalidArgumentError (parent not committed, a bad label), FailedPreconditionError (a disk
        is in use, a template is none, links are refused), UnavailableError (disk full).
        """
        kept = without_empty(labels or {})
        request: ScratchRequest | None = None
        if not is_unpack(key, kept):
            request = scratch_request(
                kept,
                default_size=self._default_scratch_size,
                locations=tuple(map(Path, self._scratches.locations)),
                fold=self._platform.fold,
            )
        return self._mounts(self._placement.create(Kind.ACTIVE, key, parent, kept, request))

    def view(
        self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        """Read-only mounts of `parent`. Raises as `prepare` does, scratch disks apart."""
        kept = without_empty(labels or {})
        return self._mounts(self._placement.create(Kind.VIEW, key, parent, kept, None))

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
        self._placement.commit(name, key, labels or {}, parent)

    def remove(self, key: str) -> None:
        """Remove a snapshot; its scratch disk goes with the last one that uses it.

        It works on a full disk too, where it is what helps. Raises NotFoundError,
        FailedPreconditionError (it has children, or is in use).
        """
        try:
            self._placement.remove(key)
        except StoreFullError:
            self._store.reserve.spend()
            self._placement.remove(key)
            self._deletion.finish()
            self._store.reserve.fill()

    def stat(self, key: str) -> Info:
        """What the store knows about a snapshot. Raises NotFoundError."""
        with self._store.looking() as tx:
            return tx.snapshots.info(key)

    def update(self, info: Info, *fieldpaths: str) -> Info:
        """Set the labels of `info.name`: all of them, or `labels.<key>` each; the new Info.

        Raises NotFoundError, InvalidArgumentError (another field).
        """
        return self._store.write(lambda tx: tx.snapshots.update(info, fieldpaths))

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
            usage = self._disk_usage(self._snapshots.entry(number))
        if scratch is not None:
            usage += self._disk_usage(self._scratches.disk(scratch.location, scratch.id))
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
        with self._store.looking() as tx:
            return tx.snapshots.frame(key)

    def walk_frames(self, *filters: str) -> Iterator[bytes]:
        """What `walk` gives, as gRPC sends it. Raises as `walk` does."""
        return self._walk_frames(Filters.parse(*filters))

    def cleanup(self) -> int:
        """Delete what killed processes left; how many directories are gone.

        Safe while other processes use the store: what they are writing is left alone.
        """
        if self.layers is not None:
            self.layers.sweep()
        self._deletion.finish()
        return self._recover()

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
        return SharedDisk(path, scratch.size, self._disk_usage(path).size, holders)

    @property
    def platform(self) -> Platform:
        """How the system's files are spelled and moved; for who writes into snapshots."""
        return self._platform

    def directory(self, key: str) -> Path:
        """The directory of a snapshot of any kind, where its layer.vhd is. Raises NotFoundError."""
        with self._store.transaction(write=False) as tx:
            number, _, _ = tx.snapshots.usage(key)
        return self._snapshots.entry(number)

    def warm(self) -> None:
        """Do now what the first calls would have to: it takes a moment, and makes them faster."""
        try:
            self._store.warm()
            self._scratches.warm(self._default_scratch_size)
        except SnapshotterError as error:
            _log.warning("no scratch disk can be made: %s", error)

    # -- inside

    def _disk_usage(self, path: Path) -> Usage:
        return disk_usage(self._platform.long(path))

    def _mounts(self, snapshot: Snapshot) -> list[Mount]:
        return lcow_mounts(snapshot, self._snapshots.entry)

    def _recover(self) -> int:
        return recover(self._store, self._owner, self._snapshots, self._scratches, self._platform)

    def _walk(self, filters: Filters) -> Iterator[Info]:
        with self._store.looking() as tx:
            yield from tx.snapshots.walk(filters)

    def _walk_frames(self, filters: Filters) -> Iterator[bytes]:
        with self._store.looking() as tx:
            yield from tx.snapshots.frames(filters)


def _refuse_lost_metadata(root: Path, platform: Platform) -> None:
    """Refuse to begin a new store where one has lost its metadata: all would be swept as orphans.

    Raises UnavailableError.
    """
    directory = root / "snapshots"
    if platform.exists(root / METADATA_NAME) or not platform.exists(directory):
        return
    if any(name.isdecimal() for name in platform.names(directory)):
        raise UnavailableError(
            f"{root} has snapshots but no {METADATA_NAME}: restore a backup of it, or use a new"
            " root"
        )


def _allowed_location(path: Path) -> Path:
    if not path.is_absolute():
        raise InvalidArgumentError(f"the scratch location {path} is not an absolute path")
    return Path(os.path.normpath(path))

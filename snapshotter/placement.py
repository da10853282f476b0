"""Snapshots come and go: rows in one transaction with the renames of their directories.

::

    create   stage directories (slow) -> [ rows, publish ] -> the snapshot
    remove   [ rows, retire ] -> delete directories (slow)

The brackets are the write transaction. A directory that begins empty is made in there. A rename in
it that meets an open file (on Windows) takes everything back; then there is a pause without any
lock, and another try, within a bound.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from snapshotter.deletion import Deletion
from snapshotter.errors import (
    AlreadyExistsError,
    DiskInUseError,
    FailedPreconditionError,
    SnapshotterError,
    UnavailableError,
)
from snapshotter.filters import Filters, Operator, Selector
from snapshotter.keys import check_key
from snapshotter.labels import SNAPSHOT_REF, OwnScratch, ScratchRequest, SharedScratch
from snapshotter.metastore.model import Kind, Scratch, Snapshot, SnapshotId, Usage
from snapshotter.metastore.store import MetaStore, Transaction
from snapshotter.mounts import LAYER_NAME, SCRATCH_NAME
from snapshotter.platform import Platform
from snapshotter.platform.patience import Patience
from snapshotter.recent import Recent
from snapshotter.scratch.sharing import shared_scratch
from snapshotter.scratch.store import ScratchStore
from snapshotter.shelf import Shelf, discard
from snapshotter.usage import EMPTY_INODES, disk_usage

_log = logging.getLogger(__name__)

_MOST_PREPARED: Final = 1000
"""Numbers that are remembered; those of snapshots that are never committed go by and by."""

_NONE: Final = SnapshotId(0)
"""The number of no snapshot."""


@dataclass(frozen=True, slots=True)
class _Staged:
    """Directories to be published: of the snapshot, and of its new scratch disk.

    `holds_disk` where the snapshot's own has the disk itself, which nothing can make anew.
    """

    directory: Path | None = None
    disk: Path | None = None
    holds_disk: bool = False


class Placement:
    """What adds and removes snapshots of one store.

    `recover` puts directories right after a failure; `links_refused` is why the system makes no
    symbolic links, if it makes none; `busy_wait_s` bounds the pauses of one operation.
    """

    def __init__(
        self,
        store: MetaStore,
        snapshots: Shelf,
        scratches: ScratchStore,
        platform: Platform,
        deletion: Deletion,
        *,
        recover: Callable[[], object],
        links_refused: OSError | None,
        busy_wait_s: float,
    ) -> None:
        self._store = store
        self._snapshots = snapshots
        self._scratches = scratches
        self._platform = platform
        self._deletion = deletion
        self._recover = recover
        self._links_refused = links_refused
        self._busy_wait_s = busy_wait_s
        # For their commits, which check the number anyway and need not ask for it then.
        self._prepared: Recent[str, SnapshotId] = Recent(most=_MOST_PREPARED)

    def create(
        self,
        kind: Kind,
        key: str,
        parent: str,
        labels: Mapping[str, str],
        request: ScratchRequest | None,
    ) -> Snapshot:
        """Add an active snapshot or a view, with the scratch disk that is requested.

        On failure nothing is left. Raises as `Snapshotter.prepare` does.
        """
        check_key("key", key)
        self._check_links(request)
        try:
            return self._create(kind, key, parent, labels, request)
        except UnavailableError:
            # The disk may be full of what is about to be deleted.
            if not self._deletion.finish():
                raise
        return self._create(kind, key, parent, labels, request)

    def _create(
        self,
        kind: Kind,
        key: str,
        parent: str,
        labels: Mapping[str, str],
        request: ScratchRequest | None,
    ) -> Snapshot:
        if request is not None or SNAPSHOT_REF in labels:
            with self._store.transaction(write=False) as tx:
                # Once before the work, so that what cannot succeed costs nothing, and once more
                # with the row.
                tx.snapshots.check_create(key, parent)
                if isinstance(request, SharedScratch):
                    shared_scratch(tx.scratches, key, request)
                self._check_not_unpacked(tx, key, parent, labels)
        staged: list[Path] = []
        try:
            ready = _Staged()
            if request is not None:
                directory = self._snapshots.stage()
                staged.append(directory)
                ready = _Staged(directory)
            if isinstance(request, OwnScratch):
                if self._links_refused is not None:
                    self._scratches.write(directory, request.size)
                    request = None  # the disk is the snapshot's own file, which nobody shares
                    ready = _Staged(directory, holds_disk=True)
                else:
                    disk = self._scratches.stage(request.location, request.size)
                    staged.append(disk)
                    ready = _Staged(directory, disk)
            patience = Patience(self._busy_wait_s)
            while True:
                try:
                    made = self._publish(kind, key, parent, labels, request, ready)
                except DiskInUseError as error:
                    if not error.may_pass or not patience.wait():
                        raise
                else:
                    if kind is Kind.ACTIVE:
                        self._prepared.put(key, made.id)
                    return made
        except BaseException:
            discard(self._platform, staged)
            raise

    def _publish(
        self,
        kind: Kind,
        key: str,
        parent: str,
        labels: Mapping[str, str],
        request: ScratchRequest | None,
        staged: _Staged,
    ) -> Snapshot:
        """Add the rows and give the staged directories their numbers, in one transaction.

        After a DiskInUseError that may pass, everything is as it was before.
        """
        publishing = False

        def publish(tx: Transaction) -> Snapshot:
            nonlocal publishing
            snapshot = tx.snapshots.create(kind, key, parent, labels)
            if staged.directory is None:
                publishing = True
                if kind is Kind.VIEW and parent:
                    self._snapshots.clear(snapshot.id)
                else:
                    self._snapshots.make(snapshot.id)
                return snapshot
            with contextlib.ExitStack() as undo:
                if request is not None:
                    scratch = self._scratch(tx, key, request)
                    tx.scratches.hold(snapshot.id, scratch.id, owner=staged.disk is not None)
                    if staged.disk is not None:
                        publishing = True
                        shelf = self._scratches.shelf(scratch.location)
                        shelf.publish(staged.disk, scratch.id)
                        undo.callback(shelf.withdraw, scratch.id, staged.disk)
                    self._link(staged.directory, scratch)
                publishing = True
                self._snapshots.publish(staged.directory, snapshot.id)
                if staged.holds_disk:
                    tx.flush_before_commit(self._snapshots.path, self._snapshots.flush)
                # Else not flushed: all that it holds so far, recovery can make anew.
                if request is not None and staged.disk is not None:
                    self._flush_disk(tx, scratch)
                undo.pop_all()
            return snapshot

        try:
            return self._store.write(publish)
        except DiskInUseError as error:
            if not error.may_pass:
                self._recover_after_failure()
            raise
        except BaseException:
            if publishing:
                self._recover_after_failure()
            raise

    def _flush_disk(self, tx: Transaction, scratch: Scratch) -> None:
        # In this order: a file system with a journal writes the rename with the disk, and has
        # nothing left to do for the directory.
        flush = partial(self._scratches.flush, scratch.location, scratch.id)
        tx.flush_before_commit(self._scratches.disk(scratch.location, scratch.id), flush)
        if not self._scratches.flush_keeps_path(scratch.location):
            shelf = self._scratches.shelf(scratch.location)
            tx.flush_before_commit(shelf.path, shelf.flush)

    def commit(self, name: str, key: str, labels: Mapping[str, str], parent: str) -> None:
        """Turn the active `key` into the committed `name`. Raises as `Snapshotter.commit` does."""
        check_key("name", name)
        number = self._prepared.take(key)
        while True:
            if number is None:
                with self._store.looking() as tx:
                    number = tx.snapshots.number(key)
            usage = Usage()
            if number is not None:
                usage = disk_usage(self._platform.long(self._snapshots.entry(number)))
            if self._store.write(
                partial(self._commit, name, key, labels, parent, number or _NONE, usage)
            ):
                return
            number = None

    def _commit(
        self,
        name: str,
        key: str,
        labels: Mapping[str, str],
        parent: str,
        number: SnapshotId,
        usage: Usage,
        tx: Transaction,
    ) -> bool:
        """Whether it is done: another snapshot may have taken the key since it was measured."""
        committed = tx.snapshots.commit(
            name, key, labels=labels, usage=usage, parent=parent, only=number
        )
        if committed != number:
            return False
        if usage.inodes != EMPTY_INODES:
            # From now on it holds a layer that nothing can make anew.
            tx.flush_before_commit(self._snapshots.path, self._snapshots.flush)
        return True

    def remove(self, key: str) -> None:
        """Remove a snapshot, and its scratch disk with the last one that uses it.

        On failure everything is there. Raises as `Snapshotter.remove` does.
        """
        patience = Patience(self._busy_wait_s)
        while True:
            try:
                retired = self._retire(key)
            except DiskInUseError as error:
                if not error.may_pass or not patience.wait():
                    raise
            else:
                self._deletion.delete(retired)
                return

    def _retire(self, key: str) -> list[Path]:
        """Delete the rows and take the directories away, in one transaction; what to delete.

        After a DiskInUseError that may pass, everything is as it was before.
        """
        renaming = False

        def retire(tx: Transaction) -> list[Path]:
            nonlocal renaming
            retired: list[Path | None] = []
            number = tx.snapshots.remove(key)
            scratch = tx.scratches.release(number)
            renaming = True
            with contextlib.ExitStack() as undo:
                if scratch is not None:
                    # First the one that a utility VM may have attached.
                    shelf = self._scratches.shelf(scratch.location)
                    retired.append(shelf.retire(scratch.id))
                    if retired[-1] is not None:
                        undo.callback(shelf.restore, scratch.id)
                retired.append(self._snapshots.retire(number))
                undo.pop_all()
            return [path for path in retired if path is not None]

        try:
            return self._store.write(retire)
        except DiskInUseError as error:
            if not error.may_pass:
                self._recover_after_failure()
            raise
        except BaseException:
            if renaming:
                self._recover_after_failure()
            raise

    def _check_links(self, request: ScratchRequest | None) -> None:
        """Refuse what needs symbolic links, where the system refuses them.

        A copy or a hard link instead would be another disk to hcsshim, attached twice.
        """
        refused = self._links_refused
        if refused is None or request is None or request == OwnScratch(request.size or 0):
            return
        what = "sharing a scratch disk"
        if isinstance(request, OwnScratch):
            what = f"a scratch disk at {request.location}"
        raise FailedPreconditionError(
            f"{what} needs symbolic links, which the system refuses ({refused.strerror}):"
            f" {self._platform.link_fix}, and open the store again"
        )

    def _check_not_unpacked(
        self, tx: Transaction, key: str, parent: str, labels: Mapping[str, str]
    ) -> None:
        """Refuse to unpack a layer anew (containerd's remote snapshots, core/metadata).

        Whoever sets the label looks for the committed snapshot with it, and takes that one.
        """
        ref = labels.get(SNAPSHOT_REF)
        if ref is None:
            return
        for info in tx.snapshots.walk(_committed_as(ref, parent)):
            number, _, _ = tx.snapshots.usage(info.name)
            if self._platform.exists(self._snapshots.entry(number) / LAYER_NAME):
                raise AlreadyExistsError(
                    f"the layer {ref} that snapshot {key!r} is for is committed as {info.name!r}"
                )

    def _scratch(self, tx: Transaction, key: str, request: ScratchRequest) -> Scratch:
        if isinstance(request, SharedScratch):
            return shared_scratch(tx.scratches, key, request)
        return tx.scratches.add(request.size, request.location)

    def _link(self, directory: Path, scratch: Scratch) -> None:
        target = self._scratches.disk(scratch.location, scratch.id)
        if not self._platform.long(target).is_file():
            raise UnavailableError(
                f"the scratch disk {target} is missing; remove the snapshots that share it"
            )
        link = directory / SCRATCH_NAME
        try:
            self._platform.long(link).unlink(missing_ok=True)  # of a try that was taken back
            self._platform.symlink(link, target)
        except OSError as error:
            raise UnavailableError(
                f"cannot link {SCRATCH_NAME} to {target}: {error.strerror};"
                f" {self._platform.link_fix}"
            ) from error

    def _recover_after_failure(self) -> None:
        # The transaction is rolled back, so the directories must follow. Where even this fails
        # (a full disk, say) the next open does it.
        try:
            self._recover()
        except SnapshotterError as error:
            _log.warning("cannot clean up after a failure: %s", error)


def _committed_as(ref: str, parent: str) -> Filters:
    """Committed snapshots on `parent` that an unpacker made for `ref`."""
    wanted = ((("kind",), Kind.COMMITTED.word), (("labels", SNAPSHOT_REF), ref))
    return Filters(
        (
            tuple(
                Selector(path, Operator.EQUAL, value)
                for path, value in (*wanted, (("parent",), parent))
            ),
        )
    )

"""Making directories and links agree with the metastore, at open and after failures."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from snapshotter.errors import UnavailableError
from snapshotter.filters import Filters
from snapshotter.labels import SESSION
from snapshotter.metastore.model import Kind
from snapshotter.metastore.store import MetaStore, Transaction
from snapshotter.mounts import SCRATCH_NAME
from snapshotter.scratch.store import ScratchStore
from snapshotter.shelf import Owner, Shelf, discard

_log = logging.getLogger(__name__)

_ROOT: Final = "root"
_SESSION_BOUND: Final = f'kind==active,labels."{SESSION}"'


def recover(store: MetaStore, owner: Owner, snapshots: Shelf, scratches: ScratchStore) -> int:
    """Undo what killed processes left half done; how many directories were deleted.

    An active snapshot that is bound to a session goes with it. Renames are undone under the write
    lock, files are deleted after it. Raises UnavailableError.
    """
    with store.transaction(write=True) as tx:
        living = owner.living()
        # Without their rows, the directories of abandoned snapshots are garbage below.
        for info in list(tx.snapshots.walk(Filters.parse(_SESSION_BOUND))):
            if info.labels[SESSION] not in living:
                tx.scratches.release(tx.snapshots.remove(info.name).id)
                _log.warning("removed %r, which a killed process left", info.name)
        garbage = snapshots.recover(tx.snapshots.numbers(), living)
        _restore_missing(tx, snapshots, scratches)
        for location, shelf in scratches.shelves(tx.scratches.locations()):
            garbage += shelf.recover(tx.scratches.numbers(location), living)
    return discard(garbage)


def _restore_missing(tx: Transaction, snapshots: Shelf, scratches: ScratchStore) -> None:
    """Make the directories of active snapshots that a power cut took, and the links in them.

    Prepare does not flush them, Commit does: a committed snapshot without one has lost its layer.
    """
    for number, kind in sorted(tx.snapshots.with_directory(besides=snapshots.numbers())):
        if kind is Kind.COMMITTED:
            _log.error("snapshot %s has lost its directory, and its layer with it", number)
            continue
        staged = snapshots.stage()
        scratch = tx.scratches.held_by(number)
        if scratch is not None:
            _link(staged / SCRATCH_NAME, scratches.disk(scratch.location, scratch.id))
        snapshots.publish(staged, number)
        _log.warning("made the directory of snapshot %s anew, which a power cut took", number)


def follow_moved_root(
    store: MetaStore, root: Path, snapshots: Shelf, scratches: ScratchStore
) -> None:
    """Point links to scratch disks at this root where the store was moved and they dangle.

    The links are absolute, since that is what hcsshim resolves. Raises UnavailableError.
    """
    with store.transaction(write=False) as tx:
        if tx.properties.get(_ROOT) == str(root):
            return
    with store.transaction(write=True) as tx:
        for number, scratch in tx.scratches.links():
            link = snapshots.entry(number) / SCRATCH_NAME
            target = scratches.disk(scratch.location, scratch.id)
            if not link.exists() and target.exists():
                _replace_link(link, target)
        tx.properties.put(_ROOT, str(root))


def _link(link: Path, target: Path) -> None:
    try:
        link.symlink_to(target)
    except OSError as error:
        raise UnavailableError(f"cannot link {link} to {target}: {error.strerror}") from error


def _replace_link(link: Path, target: Path) -> None:
    fresh = link.with_name(f"{link.name}.new")
    try:
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(link)
    except OSError as error:
        raise UnavailableError(f"cannot link {link} to {target}: {error.strerror}") from error
    _log.info("the store was moved: %s now links to %s", link, target)

"""Making directories and links agree with the metastore, at open and after failures."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from snapshotter.errors import DiskInUseError, UnavailableError
from snapshotter.filters import Filters
from snapshotter.labels import SESSION
from snapshotter.metastore.model import Kind
from snapshotter.metastore.store import MetaStore, Transaction
from snapshotter.mounts import SCRATCH_NAME
from snapshotter.platform import Platform
from snapshotter.platform.patience import patiently
from snapshotter.scratch.store import ScratchStore
from snapshotter.shelf import Owner, Shelf, discard
from snapshotter.usage import EMPTY_INODES

_log = logging.getLogger(__name__)

_ROOT: Final = "root"
_SESSION_BOUND: Final = f'kind==active,labels."{SESSION}"'


def recover(
    store: MetaStore,
    owner: Owner,
    snapshots: Shelf,
    scratches: ScratchStore,
    platform: Platform,
) -> int:
    """Undo what killed processes left half done; how many directories were deleted.

    An active snapshot that is bound to a session goes with it. Renames are undone under the write
    lock, files are deleted after it. Raises UnavailableError.
    """
    with store.transaction(write=True) as tx:
        living = owner.living()
        # Without their rows, the directories of abandoned snapshots are garbage below.
        for info in list(tx.snapshots.walk(Filters.parse(_SESSION_BOUND))):
            if info.labels[SESSION] not in living:
                tx.scratches.release(tx.snapshots.remove(info.name))
                _log.warning("removed %r, which a killed process left", info.name)
        found = snapshots.recover(tx.snapshots.directories(), living)
        garbage = found.garbage
        _restore_missing(tx, found.missing, snapshots, scratches, platform)
        recorded = tx.scratches.locations()
        # All numbers for every place: two spellings of one place must not cost a disk.
        numbers = frozenset[int]().union(*map(tx.scratches.numbers, recorded))
        for shelf in scratches.shelves(recorded):
            garbage += shelf.recover(numbers, living).garbage
    return discard(platform, garbage)


def _restore_missing(
    tx: Transaction,
    missing: Iterable[int],
    snapshots: Shelf,
    scratches: ScratchStore,
    platform: Platform,
) -> None:
    """Make the directories of snapshots that a power cut took, and the links in them.

    Prepare does not flush them. Commit does where they hold something: without its directory such
    a snapshot has lost its layer.
    """
    for number, kind, usage in tx.snapshots.with_directory(among=missing):
        if platform.exists(snapshots.entry(number)):
            continue  # put back a moment ago
        if kind is Kind.COMMITTED and usage.inodes != EMPTY_INODES:
            _log.error("snapshot %s has lost its directory, and its layer with it", number)
            continue
        staged = snapshots.stage()
        try:
            scratch = tx.scratches.held_by(number)
            if scratch is not None:
                target = scratches.disk(scratch.location, scratch.id)
                _link(platform, staged / SCRATCH_NAME, target)
            snapshots.publish(staged, number)
        except DiskInUseError as error:
            discard(platform, [staged])
            _log.warning("snapshot %s has no directory; the next cleanup: %s", number, error)
        except BaseException:
            discard(platform, [staged])
            raise
        else:
            _log.warning("made the directory of snapshot %s anew, which a power cut took", number)


def follow_moved_root(
    store: MetaStore,
    root: Path,
    snapshots: Shelf,
    scratches: ScratchStore,
    platform: Platform,
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
            # Asked by Python's own calls, which follow the link.
            if not platform.long(link).exists() and platform.long(target).exists():
                replace_link(platform, link, target)
                _log.info("the store was moved: %s now links to %s", link, target)
        tx.properties.put(_ROOT, str(root))


def _link(platform: Platform, link: Path, target: Path) -> None:
    try:
        platform.symlink(link, target)
    except OSError as error:
        raise UnavailableError(
            f"cannot link {link} to {target}: {error.strerror}; {platform.link_fix}"
        ) from error


def replace_link(platform: Platform, link: Path, target: Path) -> None:
    """Make `link` lead to `target`, at no moment to nothing. Raises UnavailableError."""
    fresh = link.with_name(f"{link.name}.new")
    try:
        platform.long(fresh).unlink(missing_ok=True)
        platform.symlink(fresh, target)
        patiently(lambda: platform.replace(fresh, link))
    except OSError as error:
        raise UnavailableError(
            f"cannot link {link} to {target}: {error.strerror}; {platform.link_fix}"
        ) from error

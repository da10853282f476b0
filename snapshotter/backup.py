"""Copies of a store's metadata, made while it is in use, and put back.

A backup is metadata.db alone, one SQLite file. Layers and scratch disks are not in it: they stay
where they are, and the metadata says what they are.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from snapshotter.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
    UnavailableError,
)
from snapshotter.metastore.adoption import Adoption
from snapshotter.metastore.copy import copy_metadata, last_numbers
from snapshotter.platform import Platform, local_platform
from snapshotter.platform.patience import patiently
from snapshotter.shelf import living
from snapshotter.snapshotter import METADATA_NAME

_ENTRY: Final = re.compile(r"(?:rm-)?([1-9][0-9]{0,18})(?:-[0-9a-f]+)?")
_PARTS: Final = ("", "-wal", "-shm")
"""A file of SQLite in WAL mode, and what belongs to it: another file's log would destroy it."""


def back_up(root: Path, out: Path, *, platform: Platform | None = None) -> None:
    """Write the metadata of the store at `root` to the new file `out`: all of it, or no file.

    Any number of processes may be working on the store. Raises NotFoundError (no store),
    AlreadyExistsError (`out`), UnavailableError (disk full, damaged).
    """
    platform = platform or local_platform()
    metadata = platform.long(root.resolve() / METADATA_NAME)
    if not metadata.is_file():
        raise NotFoundError(f"there is no snapshotter store at {root}; check the root")
    target = out.absolute()
    if platform.exists(target):
        raise AlreadyExistsError(f"{out} exists already; give another name")
    staged = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        copy_metadata(metadata, platform.long(staged))
        patiently(lambda: platform.rename(staged, target))
        platform.flush_names(target.parent)
    except OSError as error:
        raise UnavailableError(f"cannot write {out}: {error.strerror}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            platform.long(staged).unlink()


def restore(backup: Path, root: Path, *, platform: Platform | None = None) -> Path | None:
    """Put a backup in the place of a store's metadata; where the former metadata is now.

    Nothing may have the store open. Numbers given out since the backup are not given out again.
    The next open deletes the directories of snapshots made since. Raises NotFoundError,
    FailedPreconditionError (in use), UnavailableError (no backup of ours, disk full).
    """
    platform = platform or local_platform()
    base = root.resolve()
    if not platform.long(backup.resolve()).is_file():
        raise NotFoundError(f"there is no backup {backup}; check the path")
    if not platform.exists(base):
        raise NotFoundError(f"there is no directory {base} to restore into; check the root")
    owners = base / "owners"
    if platform.exists(owners) and list(living(platform, owners)):
        raise FailedPreconditionError(f"a process has the store {base} open; stop it first")
    metadata = base / METADATA_NAME
    former = last_numbers(platform.long(metadata)) if platform.exists(metadata) else (0, 0)
    staged = base / f"{METADATA_NAME}.{secrets.token_hex(6)}.tmp"
    try:
        copy_metadata(platform.long(backup.resolve()), platform.long(staged))
        with Adoption.begin(platform.long(staged)) as adoption:
            adoption.reserve(
                snapshots=max(former[0], _highest(base / "snapshots", platform)),
                scratches=max(former[1], _highest(base / "scratch", platform)),
            )
        return _exchange(staged, metadata, platform)
    except OSError as error:
        raise UnavailableError(f"cannot restore {metadata}: {error.strerror}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            platform.long(staged).unlink()


def _exchange(staged: Path, metadata: Path, platform: Platform) -> Path | None:
    # Between the two renames there is no metadata.db, which every open refuses while there are
    # snapshots: a restore that is killed here has to be repeated, and costs nothing.
    kept: Path | None = None
    if platform.exists(metadata):
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        kept = metadata.with_name(f"{METADATA_NAME}.before-{stamp}-{secrets.token_hex(2)}")
        for part in reversed(_PARTS):
            old = metadata.with_name(metadata.name + part)
            if platform.exists(old):
                platform.rename(old, kept.with_name(kept.name + part))
    patiently(lambda: platform.rename(staged, metadata))
    platform.flush_names(metadata.parent)
    return kept


def _highest(directory: Path, platform: Platform) -> int:
    if not platform.exists(directory):
        return 0
    found = map(_ENTRY.fullmatch, platform.names(directory))
    return max((int(match.group(1)) for match in found if match is not None), default=0)

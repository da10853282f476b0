"""Adopting the snapshots of containerd's own lcow plugin.

Its root has `metadata.db` (bbolt) and `snapshots/<id>/` with `layer.vhd`, and `sandbox.vhdx`: a
file, or a symbolic link to that of the snapshot it shares with. The new root gets the same
numbers, keys, kinds, parents, labels, usages and times; a disk that others link to becomes a
scratch disk with its holders. The old root is only read, except that files may be linked to:

    layer.vhd      a reflink, else a hard link, else a copy
    sandbox.vhdx   a reflink, else a copy: it is written to

Links are followed by the numbers in them and within the old root alone, wherever it was when they
were made.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Final

from snapshotter.bolt import BoltFile
from snapshotter.bolt.containerd import BoltSnapshot, last_number, snapshots
from snapshotter.errors import (
    BoltError,
    FailedPreconditionError,
    NotFoundError,
    StorageError,
    UnavailableError,
)
from snapshotter.keys import check_key, check_text
from snapshotter.metastore.adoption import AdoptedScratch, Adoption
from snapshotter.metastore.model import Kind, ScratchId, SnapshotId
from snapshotter.mounts import LAYER_NAME, SCRATCH_NAME
from snapshotter.platform import Platform, local_platform
from snapshotter.snapshotter import METADATA_NAME, Snapshotter

_log = logging.getLogger(__name__)

_DIRECTORIES: Final = "snapshots"
_NUMBER: Final = re.compile("[1-9][0-9]{0,18}")
_MAX_LINKS: Final = 64
"""Upstream links a sharer of a sharer to the first one's link, and so on."""


@dataclass(frozen=True, slots=True)
class AdoptedStore:
    """What was adopted; `problems` are what the old root had lost already, a line each."""

    snapshots: int
    scratches: int
    sharers: int
    problems: tuple[str, ...]


@dataclass(slots=True)
class _Disks:
    """The scratch disk of each snapshot that has one: by the number of the one with the file."""

    files: dict[int, list[int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def import_bolt(metadata: Path, root: Path, *, platform: Platform | None = None) -> AdoptedStore:
    """Adopt the store of `metadata`, a metadata.db in containerd's root, into a new `root`.

    Stop containerd first. On failure nothing is left. Raises BoltError, NotFoundError,
    FailedPreconditionError (`root` is in use, containerd runs), UnavailableError (disk full).
    """
    platform = platform or local_platform()
    target = root.resolve()
    if platform.exists(target) and platform.names(target):
        raise FailedPreconditionError(f"{target} is not empty; adopt into a new root")
    try:
        opened = BoltFile.open(metadata)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no {metadata}; check the path") from error
    existed = platform.exists(target)
    with opened as file:
        rows = _checked(list(snapshots(file)))
        last = max([last_number(file), *(row.number for row in rows)])
        with contextlib.ExitStack() as undo:
            undo.callback(_remove_root, target, platform, existed=existed)
            adopted = _Adoption(metadata.resolve().parent, target, platform, rows, last).run()
            undo.pop_all()
    return adopted


def _remove_root(root: Path, platform: Platform, *, existed: bool) -> None:
    with contextlib.suppress(FileNotFoundError):
        platform.remove_tree(root)
    if existed:
        platform.make_directory(root)


def _checked(rows: list[BoltSnapshot]) -> list[BoltSnapshot]:
    """The rows in an order where parents come first. Raises BoltError."""
    by_key = {row.info.name: row for row in rows}
    if len({row.number for row in rows}) != len(rows):
        raise BoltError("snapshots", "two have one number", offset=None)
    ordered: dict[str, BoltSnapshot] = {}
    for row in rows:
        check_key("key", row.info.name)
        for name, value in row.info.labels.items():
            check_text("label", name)
            check_text(f"value of label {name}", value)
        chain: dict[str, BoltSnapshot] = {}
        above = row
        while above.info.name not in ordered:
            if above.info.name in chain:
                raise BoltError("parent", f"{above.info.name!r} is its own ancestor", offset=None)
            chain[above.info.name] = above
            if not above.info.parent:
                break
            try:
                above = by_key[above.info.parent]
            except KeyError:
                raise BoltError(
                    f"parent of {above.info.name!r}", repr(above.info.parent), offset=None
                ) from None
            if above.info.kind is not Kind.COMMITTED:
                raise BoltError("parent", f"{above.info.name!r} is not committed", offset=None)
        for name in reversed(chain):
            ordered[name] = chain[name]
    return list(ordered.values())


class _Adoption:
    """One adoption under way: from the old root `source` to the new root `target`."""

    def __init__(
        self,
        source: Path,
        target: Path,
        platform: Platform,
        rows: list[BoltSnapshot],
        last: int,
    ) -> None:
        self._source = source
        self._target = target
        self._platform = platform
        self._rows = rows
        self._last = last

    def run(self) -> AdoptedStore:
        """Make the root, its files, then its rows in one transaction."""
        with Snapshotter.open(self._target, platform=self._platform):
            pass  # makes directories and tables
        disks = self._find_disks()
        for row in self._rows:
            if row.info.kind is not Kind.VIEW or not row.info.parent:
                self._copy_directory(row.number)
        scratches = []
        for number, (owner, holders) in enumerate(sorted(disks.files.items()), start=1):
            size = self._move_disk(owner, number)
            for holder in holders:
                self._link(holder, number)
            scratches.append(
                AdoptedScratch(
                    ScratchId(number),
                    size,
                    SnapshotId(owner),
                    tuple(SnapshotId(each) for each in holders if each != owner),
                )
            )
        self._flush()
        numbers = {row.info.name: SnapshotId(row.number) for row in self._rows}
        with Adoption.begin(self._platform.long(self._target / METADATA_NAME)) as adoption:
            adoption.check_empty()
            for row in self._rows:
                parent = numbers[row.info.parent] if row.info.parent else None
                adoption.add(SnapshotId(row.number), row.info, parent, row.usage)
            for scratch in scratches:
                adoption.add_scratch(scratch)
            adoption.reserve(snapshots=self._last)
        for problem in disks.problems:
            _log.warning("%s", problem)
        sharers = sum(len(scratch.sharers) for scratch in scratches)
        return AdoptedStore(len(self._rows), len(scratches), sharers, tuple(disks.problems))

    def _find_disks(self) -> _Disks:
        disks = _Disks()
        known = {row.number for row in self._rows}
        for row in self._rows:
            path = self._old(row.number) / SCRATCH_NAME
            if not self._platform.exists(path):
                continue
            owner = self._follow(row.number)
            if owner is None:
                disks.problems.append(
                    f"{row.info.name!r}: its link {path} leads to no disk; it has none now"
                )
            elif owner not in known:
                disks.problems.append(
                    f"{row.info.name!r}: its disk is in {self._old(owner)}, which belongs to no"
                    " snapshot; it has none now"
                )
            else:
                disks.files.setdefault(owner, []).append(row.number)
        return disks

    def _follow(self, number: int) -> int | None:
        """The number of the snapshot whose directory has the file itself."""
        for _ in range(_MAX_LINKS):
            path = self._platform.long(self._old(number) / SCRATCH_NAME)
            if not path.is_symlink():
                return number if path.is_file() else None
            *_, folder, directory, name = ("", "", "", *PureWindowsPath(path.readlink()).parts)
            if (folder, name) != (_DIRECTORIES, SCRATCH_NAME) or not _NUMBER.fullmatch(directory):
                return None
            number = int(directory)
        return None

    def _copy_directory(self, number: int) -> None:
        old, new = self._old(number), self._new(number)
        with self._refusals(f"adopt {old}"):
            self._platform.make_directory(new)
            if not self._platform.exists(old):
                return
            for name in sorted(self._platform.names(old)):
                path = self._platform.long(old / name)
                if name == SCRATCH_NAME or path.is_symlink():
                    continue
                if path.is_dir():
                    shutil.copytree(path, self._platform.long(new / name), symlinks=True)
                else:
                    self._copy(old / name, new / name, shared=name == LAYER_NAME)

    def _move_disk(self, owner: int, number: int) -> int:
        """Put the disk of snapshot `owner` in its new place; its size in bytes."""
        from snapshotter.vhdx import VhdxDisk  # it brings numpy

        old = self._old(owner) / SCRATCH_NAME
        with self._refusals(f"adopt {old}"):
            directory = self._target / "scratch" / str(number)
            self._platform.make_directory(directory)
            self._copy(old, directory / SCRATCH_NAME, shared=False)
            try:
                with VhdxDisk.open(self._platform.long(old)) as disk:
                    return disk.size
            except StorageError as error:
                raise FailedPreconditionError(
                    f"{old} is no disk: {error}; repair or remove the snapshot in containerd"
                ) from error

    def _link(self, holder: int, number: int) -> None:
        link = self._new(holder) / SCRATCH_NAME
        with self._refusals(f"link {link}"):
            self._platform.symlink(link, self._target / "scratch" / str(number) / SCRATCH_NAME)

    def _copy(self, old: Path, new: Path, *, shared: bool) -> None:
        with contextlib.suppress(OSError):
            self._platform.reflink(old, new)
            return
        if shared:
            with contextlib.suppress(OSError):
                self._platform.hard_link(old, new)
                return
        target = self._platform.long(new)
        shutil.copyfile(self._platform.long(old), target)
        with target.open("rb+") as copied:
            os.fsync(copied.fileno())

    def _flush(self) -> None:
        with self._refusals(f"flush {self._target}"):
            for path in sorted(self._target.glob("*/*")):
                if self._platform.long(path).is_dir():
                    self._platform.flush_names(path)
            for name in (_DIRECTORIES, "scratch"):
                self._platform.flush_names(self._target / name)

    def _old(self, number: int) -> Path:
        return self._source / _DIRECTORIES / str(number)

    def _new(self, number: int) -> Path:
        return self._target / _DIRECTORIES / str(number)

    @contextlib.contextmanager
    def _refusals(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UnavailableError(f"cannot {what}: {error.strerror}") from error

"""Looking for, and mending, what should not be in a store.

Most of it can only come from outside: a killed process leaves nothing that the next open does not
put right. Mending what a container may be using waits until no other process has the store open;
moving garbage away and making links whole is safe at any time.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Final

from snapshotter.errors import (
    FailedPreconditionError,
    NotFoundError,
    SnapshotterError,
    StorageError,
)
from snapshotter.labels import DIFF_ID
from snapshotter.metastore.adoption import Adoption
from snapshotter.metastore.inspection import Inspection, Row
from snapshotter.metastore.model import Kind, Scratch
from snapshotter.metastore.store import DEFAULT_BUSY_TIMEOUT_S, MetaStore
from snapshotter.mounts import LAYER_NAME, SCRATCH_NAME
from snapshotter.platform import Platform, local_platform
from snapshotter.recovery import replace_link
from snapshotter.shelf import living
from snapshotter.snapshotter import METADATA_NAME, Snapshotter
from snapshotter.usage import EMPTY_INODES

_NUMBER: Final = re.compile("[1-9][0-9]*")
_NEW: Final = re.compile("new-([0-9a-f]+)-[0-9]+")


class Problem(StrEnum):
    """What can be wrong."""

    METADATA_DAMAGED = "metadata-damaged"
    ORPHAN_DIRECTORY = "orphan-directory"
    STALE_STAGING = "stale-staging"
    STALE_REMOVAL = "stale-removal"
    INTERRUPTED_REMOVAL = "interrupted-removal"
    MISSING_DIRECTORY = "missing-directory"
    DANGLING_LINK = "dangling-link"
    UNRECORDED_SHARE = "unrecorded-share"
    MISSING_DISK = "missing-disk"
    UNHELD_SCRATCH = "unheld-scratch"
    DAMAGED_DISK = "damaged-disk"
    DAMAGED_TEMPLATE = "damaged-template"
    LOST_LAYER = "lost-layer"


class Outcome(StrEnum):
    """What was done about it."""

    FOUND = "found"
    MENDED = "mended"
    BLOCKED = "blocked"
    UNMENDABLE = "unmendable"


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem: what it is about, what to do, and what was done.

    `outcome` is FOUND where it was not to be mended (yet), BLOCKED while another process has the
    store open.
    """

    problem: Problem
    subject: str
    explanation: str
    remedy: str
    outcome: Outcome = Outcome.FOUND


@dataclass(frozen=True, slots=True)
class Report:
    """Everything found. `in_use` where another process has the store open."""

    root: Path
    in_use: bool
    findings: tuple[Finding, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing is left to be done."""
        return all(finding.outcome is Outcome.MENDED for finding in self.findings)


@dataclass(slots=True)
class _Repair:
    """A finding and how to mend it: None where nobody can, `safe` where it may be done anytime."""

    finding: Finding
    mend: Callable[[], None] | None = None
    safe: bool = False


def check(root: Path, *, repair: bool, platform: Platform | None = None) -> Report:
    """Look at a store, and mend what can be mended where `repair`.

    Nothing is changed otherwise. Raises NotFoundError (no store there), UnavailableError (locked,
    or too damaged to be read).
    """
    platform = platform or local_platform()
    base = root.resolve()
    metadata = platform.long(base / METADATA_NAME)
    if not metadata.is_file():
        raise NotFoundError(f"there is no snapshotter store at {base}; check the root")
    with Inspection.begin(
        metadata, timeout_s=DEFAULT_BUSY_TIMEOUT_S, diff_id_label=DIFF_ID
    ) as inspection:
        owners = _owners(base, platform)
        look = _Look(base, platform, inspection, owners)
        repairs = list(look.names())
    repairs += look.contents()
    in_use = bool(owners)
    if not repair:
        return Report(base, in_use, tuple(each.finding for each in repairs))
    return Report(base, in_use, tuple(_mend(repairs, in_use=in_use)))


def _owners(root: Path, platform: Platform) -> frozenset[str]:
    directory = root / "owners"
    return frozenset(living(platform, directory)) if platform.exists(directory) else frozenset()


def _mend(repairs: list[_Repair], *, in_use: bool) -> Iterator[Finding]:
    for each in repairs:
        if each.mend is None:
            yield replace(each.finding, outcome=Outcome.UNMENDABLE)
        elif in_use and not each.safe:
            yield replace(each.finding, outcome=Outcome.BLOCKED)
        else:
            try:
                each.mend()
            except SnapshotterError as error:
                text = f"{each.finding.explanation}; mending failed: {error}"
                yield replace(each.finding, explanation=text, outcome=Outcome.UNMENDABLE)
            else:
                yield replace(each.finding, outcome=Outcome.MENDED)


@dataclass(slots=True)
class _Look:
    """One look at a store. `names` needs its write lock, `contents` reads files and does not."""

    root: Path
    platform: Platform
    inspection: Inspection
    owners: frozenset[str]
    _present: set[int] = field(default_factory=set)
    _scratches: dict[int, Scratch] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._scratches = {scratch.id: scratch for scratch in self.inspection.scratches}

    def names(self) -> Iterator[_Repair]:
        """What names of directories and links tell."""
        for text in self.inspection.damage:
            yield _Repair(
                Finding(Problem.METADATA_DAMAGED, METADATA_NAME, text, "restore a backup")
            )
        numbers = {int(row.id) for row in self.inspection.rows}
        yield from self._shelf(self.root / "snapshots", numbers)
        disks = {int(scratch.id) for scratch in self.inspection.scratches}
        for place in self._places():
            yield from self._shelf(place, disks)
        for row in self.inspection.rows:
            yield from self._row(row)
        for scratch in self.inspection.scratches:
            yield from self._scratch(scratch)

    def contents(self) -> list[_Repair]:
        """What is in disks and templates."""
        found: list[_Repair] = []
        for scratch in self.inspection.scratches:
            found += self._disk(scratch)
        for location in sorted({scratch.location for scratch in self.inspection.scratches}):
            if location:
                found += self._templates(Path(location))
        return found

    # -- directories

    def _places(self) -> list[Path]:
        locations = {scratch.location for scratch in self.inspection.scratches} - {""}
        inside = f"lcow-{self.inspection.store_id}"
        return [self.root / "scratch", *(Path(each) / inside for each in sorted(locations))]

    def _shelf(self, directory: Path, known: set[int]) -> Iterator[_Repair]:
        if not self.platform.exists(directory):
            return
        for name in sorted(self.platform.names(directory)):
            path = str(directory / name)
            staged = _NEW.fullmatch(name)
            number = name.removeprefix("rm-")
            if staged is not None:
                if staged.group(1) not in self.owners:
                    yield self._garbage(
                        Problem.STALE_STAGING, path, "it was being written when its process ended"
                    )
            elif _NUMBER.fullmatch(name):
                if int(name) not in known:
                    yield self._garbage(
                        Problem.ORPHAN_DIRECTORY, path, "no snapshot or scratch disk has the number"
                    )
            elif name.startswith("rm-"):
                entry = directory / number
                if (
                    _NUMBER.fullmatch(number)
                    and int(number) in known
                    and not self.platform.exists(entry)
                ):
                    finding = Finding(
                        Problem.INTERRUPTED_REMOVAL,
                        path,
                        "its removal was never finished, and it still has its row",
                        "move it back",
                    )
                    yield _Repair(finding, self._recover, safe=True)
                else:
                    yield self._garbage(Problem.STALE_REMOVAL, path, "its removal was not finished")

    def _garbage(self, problem: Problem, path: str, explanation: str) -> _Repair:
        return _Repair(Finding(problem, path, explanation, "delete it"), self._recover, safe=True)

    def _recover(self) -> None:
        # What every open does; a second time it has nothing to do.
        with Snapshotter.open(self.root, create=False, platform=self.platform):
            pass

    # -- rows

    def _row(self, row: Row) -> Iterator[_Repair]:
        directory = self.root / "snapshots" / str(row.id)
        disk = self._disk_path(row)
        there = disk is not None and self.platform.long(disk).is_file()
        needs_directory = row.kind is not Kind.VIEW or row.parent is None
        if needs_directory and not self.platform.exists(directory):
            if not self.platform.exists(directory.with_name(f"rm-{row.id}")):
                yield self._missing_directory(row, directory)
            return  # else it is moved back first; the rest is for another look
        if disk is not None and there:
            link = directory / SCRATCH_NAME
            if not self._leads_to(link, disk):
                finding = Finding(
                    Problem.DANGLING_LINK,
                    str(link),
                    f"snapshot {row.key!r} uses {disk}, where the link does not lead",
                    "make the link anew",
                )
                yield _Repair(finding, lambda: replace_link(self.platform, link, disk), safe=True)
        elif row.scratch is None:
            yield from self._unrecorded(row, directory / SCRATCH_NAME)
        layer = directory / LAYER_NAME
        if row.kind is Kind.COMMITTED and row.diff_id and not self.platform.exists(layer):
            finding = Finding(
                Problem.LOST_LAYER,
                row.key,
                f"its layer {row.diff_id} should be in {layer}",
                "remove the snapshot, so that its image is unpacked again",
            )
            yield _Repair(finding, None if row.children else lambda: self._remove(row))

    def _missing_directory(self, row: Row, directory: Path) -> _Repair:
        explanation = f"snapshot {row.key!r} has no directory {directory}"
        if row.kind is not Kind.COMMITTED or row.inodes == EMPTY_INODES:
            finding = Finding(
                *(Problem.MISSING_DIRECTORY, row.key, explanation),
                "make it again, as every open does",
            )
            return _Repair(finding, self._recover, safe=True)
        finding = Finding(
            *(Problem.MISSING_DIRECTORY, row.key, explanation),
            "remove the snapshot; what it held is gone"
            if not row.children
            else "remove the snapshots on top of it, and then it",
        )
        return _Repair(finding, None if row.children else lambda: self._remove(row))

    def _unrecorded(self, row: Row, link: Path) -> Iterator[_Repair]:
        path = self.platform.long(link)
        if not path.is_symlink():
            return
        target = path.readlink()
        for scratch in self.inspection.scratches:
            if self.platform.fold(str(target)) != self.platform.fold(str(self._place(scratch))):
                continue
            finding = Finding(
                Problem.UNRECORDED_SHARE,
                row.key,
                f"{link} leads to a scratch disk that the snapshot is not recorded to use",
                "record it, so that the disk stays as long as the snapshot",
            )
            yield _Repair(finding, partial(self._hold, row, scratch))
            return

    def _scratch(self, scratch: Scratch) -> Iterator[_Repair]:
        path = self._place(scratch)
        retired = path.parent.with_name(f"rm-{scratch.id}")
        if scratch.id not in self.inspection.held:
            finding = Finding(
                Problem.UNHELD_SCRATCH,
                str(path),
                "no snapshot uses the scratch disk",
                "delete it",
            )
            yield _Repair(finding, lambda: self._drop(scratch))
        elif not self.platform.long(path).is_file() and not self.platform.exists(retired):
            users = [row for row in self.inspection.rows if row.scratch == scratch.id]
            finding = Finding(
                Problem.MISSING_DISK,
                str(path),
                f"it is the scratch disk of {', '.join(repr(row.key) for row in users)}",
                "remove those of them that are active; the others keep their layers",
            )
            yield _Repair(finding, lambda: self._give_up(users))
        else:
            self._present.add(scratch.id)

    # -- contents

    def _disk(self, scratch: Scratch) -> Iterator[_Repair]:
        from snapshotter.vhdx import VhdxDisk  # it brings numpy

        if scratch.id not in self._present:
            return
        path = self._place(scratch)
        remedy = "copy what can be read with `lcow-snapshotter vhdx convert`, then remove its users"
        try:
            with VhdxDisk.open(self.platform.long(path)) as disk:
                if disk.size == scratch.size:
                    return
                problem = f"it has {disk.size} bytes, not {scratch.size}"
        except (FileNotFoundError, SnapshotterError) as error:
            if not isinstance(error, StorageError):
                return  # removed meanwhile, or a utility VM has it open
            problem = str(error)
        yield _Repair(Finding(Problem.DAMAGED_DISK, str(path), problem, remedy))

    def _templates(self, location: Path) -> Iterator[_Repair]:
        from snapshotter.scratch.templatefile import TemplateFile, template_size

        if not self.platform.exists(location):
            return
        for name in sorted(self.platform.names(location)):
            if (size := template_size(name)) is None:
                continue
            try:
                TemplateFile.at(location, size, self.platform).load()
            except FailedPreconditionError as error:
                path = location / name
                finding = Finding(
                    Problem.DAMAGED_TEMPLATE, str(path), str(error), "set it aside; it is made anew"
                )
                yield _Repair(finding, partial(self._set_aside, path))

    # -- mending

    def _set_aside(self, path: Path) -> None:
        try:
            self.platform.rename(path, path.with_name(f"{path.name}.bad-{secrets.token_hex(4)}"))
        except OSError as error:
            raise FailedPreconditionError(f"{path}: {error.strerror}") from error

    def _remove(self, row: Row) -> None:
        with Snapshotter.open(self.root, create=False, platform=self.platform) as store:
            store.remove(row.key)

    def _give_up(self, users: list[Row]) -> None:
        with contextlib.closing(self._metadata()) as store, store.transaction(write=True) as tx:
            for row in users:
                tx.scratches.release(row.id)
        for row in users:
            link = self.root / "snapshots" / str(row.id) / SCRATCH_NAME
            self.platform.long(link).unlink(missing_ok=True)
            if row.kind is Kind.ACTIVE and not row.children:
                self._remove(row)

    def _drop(self, scratch: Scratch) -> None:
        with Adoption.begin(self.platform.long(self.root / METADATA_NAME)) as adoption:
            adoption.drop_unheld(scratch.id)
        self._recover()

    def _hold(self, row: Row, scratch: Scratch) -> None:
        with contextlib.closing(self._metadata()) as store, store.transaction(write=True) as tx:
            tx.scratches.hold(row.id, scratch.id, owner=False)

    def _metadata(self) -> MetaStore:
        return MetaStore.open(self.platform.long(self.root / METADATA_NAME))

    # -- places

    def _place(self, scratch: Scratch) -> Path:
        if not scratch.location:
            return self.root / "scratch" / str(scratch.id) / SCRATCH_NAME
        inside = Path(scratch.location) / f"lcow-{self.inspection.store_id}"
        return inside / str(scratch.id) / SCRATCH_NAME

    def _disk_path(self, row: Row) -> Path | None:
        scratch = self._scratches.get(row.scratch or 0)
        return None if scratch is None else self._place(scratch)

    def _leads_to(self, link: Path, disk: Path) -> bool:
        path = self.platform.long(link)
        if not path.is_symlink():
            return False
        return self.platform.fold(str(path.readlink())) == self.platform.fold(str(disk))

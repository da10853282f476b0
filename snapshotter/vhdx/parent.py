"""Chains of differencing disks: finding parents, opening them together, making a child.

A chain goes from the child to the disk that has no parent. It is followed step by step, each file
being looked at once, so that no file can make it endless or deep; opened disks read through each
other, as many levels as `MAX_DEPTH` allows.
"""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from snapshotter.blockio import DiskContent, LocalBlockFile
from snapshotter.errors import (
    UnavailableError,
    VhdxError,
    VhdxParentError,
)
from snapshotter.vhdx.create import VhdxIdentity, emit_vhdx
from snapshotter.vhdx.disk import VhdxDisk
from snapshotter.vhdx.locator import ParentLinks, ParentLocator
from snapshotter.vhdx.metadata import PARENT_LOCATOR
from snapshotter.vhdx.parentpath import ON_WINDOWS, paths_to_store, places_to_try
from snapshotter.vhdx.publish import write_content
from snapshotter.vhdx.structures import Structures, read_structures

MAX_DEPTH: Final = 64
"""Files of a chain; Hyper-V stops at 50 checkpoints."""


@dataclass(frozen=True, slots=True)
class ChainFile:
    """One file of a chain; `links` is None for the last, which has no parent."""

    path: Path
    structures: Structures
    links: ParentLinks | None


def resolve_chain(path: str | os.PathLike[str]) -> list[ChainFile]:
    """Return the files from the one at `path` to the one without a parent; none stays open.

    Of each parent the paths of the locator are tried in the order of `PATH_KEYS`; the first file
    there whose DataWriteGuid is one the child names is it.

    Raises VhdxParentError where a parent is missing, was changed, has another size or sector size
    than its child, or comes twice, and for chains deeper than `MAX_DEPTH`; VhdxCorruptError,
    VhdxUnsupportedError, UnavailableError, FileNotFoundError.
    """
    current = Path(path)
    with LocalBlockFile.open(current) as file:
        found = read_structures(file)
    chain: list[ChainFile] = []
    seen = {_identity(current): current}
    while True:
        links = parent_links(found)
        chain.append(ChainFile(current, found, links))
        if links is None:
            return chain
        if len(chain) == MAX_DEPTH:
            raise VhdxParentError(
                str(path), f"more than {MAX_DEPTH} disks in a chain; merge some of them first"
            )
        parent, below = _find_parent(current, links)
        _check_fit(current, found, parent, below)
        identity = _identity(parent)
        if identity in seen:
            raise VhdxParentError(
                str(current),
                f"its parent {parent} is in the chain already: a cycle",
                tried=((str(parent), f"the same file as {seen[identity]}"),),
            )
        seen[identity] = parent
        current, found = parent, below


def parent_links(found: Structures) -> ParentLinks | None:
    """Return what a file says about its parent, None where it has none.

    Raises VhdxCorruptError, VhdxUnsupportedError.
    """
    if found.parent_locator is None:
        return None
    at = found.item_places[PARENT_LOCATOR]
    return ParentLinks.of(ParentLocator.unpack(found.parent_locator, at=at), at=at)


class DiskChain:
    """A disk together with its parents: a `BlockReader` of it and a context manager.

    `top` is the disk itself; `paths` are the files, from the child down.
    """

    def __init__(self, disks: Sequence[VhdxDisk], paths: Sequence[Path]) -> None:
        self._disks = tuple(disks)
        self.paths = tuple(paths)
        self.top = self._disks[0]
        self.read_at = self.top.read_at
        self.file = self.top.file
        self.file_ranges = self.top.file_ranges

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, writable: bool = False) -> Self:
        """Open the disk at `path` with all its parents, which are read alone.

        `writable` is for the disk itself. Raises as `resolve_chain` and `VhdxDisk.open`; then no
        file stays open.
        """
        files = resolve_chain(path)
        disks: list[VhdxDisk] = []
        try:
            for position in range(len(files) - 1, -1, -1):
                file = files[position]
                disk = VhdxDisk.open(
                    file.path,
                    writable=writable and position == 0,
                    parent=disks[-1] if disks else None,
                )
                disks.append(disk)
                _check_unchanged(files, position, disk)
        except BaseException:
            _close_all(reversed(disks))
            raise
        return cls(disks[::-1], [file.path for file in files])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.top.__exit__(kind)
        finally:
            self.close()

    def close(self) -> None:
        """Close every file of the chain; a second call does nothing."""
        _close_all(self._disks)

    @property
    def size(self) -> int:
        """Length of the disk in bytes."""
        return self.top.size

    def allocated_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of what may hold data in any file of the chain, ascending.

        Everything between reads as zeros. Neighbours are joined.
        """
        own = [_data_ranges(disk) for disk in self._disks]
        start = end = 0
        for offset, length in heapq.merge(*own):
            if offset > end:
                if end > start:
                    yield start, end - start
                start = offset
            end = max(end, min(offset + length, self.size))
        if end > start:
            yield start, end - start


def open_chain(path: str | os.PathLike[str], *, writable: bool = False) -> DiskChain:
    """Return the disk at `path`, open together with its parents; see `DiskChain.open`."""
    return DiskChain.open(path, writable=writable)


def create_child(
    path: str | os.PathLike[str],
    parent: str | os.PathLike[str],
    *,
    block_size: int | None = None,
) -> None:
    """Create a differencing disk at `path`, durably, that reads as the disk `parent` does.

    It has the parent's size, sectors and disk id, and its block size unless one is given. From
    then on the parent must not be written to.

    Raises InvalidArgumentError for a block size that the format does not know, or where no path
    to the parent can be stored; AlreadyExistsError, and as `resolve_chain`; on failure nothing is
    left.
    """
    below = resolve_chain(parent)[0]
    parameters = below.structures.parameters
    links = ParentLinks(
        below.structures.header.data_write_guid,
        paths_to_store(Path(path), Path(parent), windows=ON_WINDOWS),
    )
    fresh = VhdxIdentity.fresh()
    content = emit_vhdx(
        DiskContent(parameters.disk_size, ()),
        block_size=block_size or parameters.block_size,
        logical_sector_size=parameters.logical_sector_size,
        physical_sector_size=parameters.physical_sector_size,
        parent_locator=links.locator().pack(),
        identity=VhdxIdentity(fresh.file_write_guid, fresh.data_write_guid, parameters.disk_id),
    )
    write_content(path, content)


def _data_ranges(disk: VhdxDisk) -> Iterator[tuple[int, int]]:
    if not disk.info().has_parent:
        return disk.allocated_ranges()
    return ((own.offset, own.length) for own in disk.own_ranges() if not own.is_zero)


def _find_parent(child: Path, links: ParentLinks) -> tuple[Path, Structures]:
    tried: list[tuple[str, str]] = []
    for place in places_to_try(links, child, windows=ON_WINDOWS):
        try:
            with LocalBlockFile.open(_regular(place)) as file:
                found = read_structures(file)
        except FileNotFoundError:
            tried.append((str(place), "not there"))
            continue
        except (VhdxError, UnavailableError) as error:
            tried.append((str(place), str(error)))
            continue
        guid = found.header.data_write_guid
        if links.accepts(guid):
            return place, found
        tried.append(
            (str(place), f"its DataWriteGuid is {guid}, the child was made of {links.linkage}")
        )
    if not tried:
        tried = [(path, f"{key} has no meaning on this system") for key, path in links.tried()]
    raise VhdxParentError(
        str(child),
        "its parent is not where it says, or was changed since: put it there as it was",
        tried=tuple(tried),
    )


def _regular(path: Path) -> Path:
    """Return `path`; what it names must not be a device or a pipe, whose open may not return."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path that no system call takes
        raise UnavailableError(f"cannot look at it: {error}") from error
    if not stat.S_ISREG(mode):
        raise UnavailableError("no regular file")
    return path


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise UnavailableError(f"cannot look at {path}: {error.strerror}") from error
    return found.st_dev, found.st_ino


def _check_fit(child: Path, found: Structures, parent: Path, below: Structures) -> None:
    """A child has the size and the sectors of its parent, [MS-VHDX] 2.6.2.2 and 2.6.2.4."""
    for what, ours, theirs in (
        ("size", found.parameters.disk_size, below.parameters.disk_size),
        (
            "logical sector size",
            found.parameters.logical_sector_size,
            below.parameters.logical_sector_size,
        ),
    ):
        if ours != theirs:
            raise VhdxParentError(
                str(child), f"its {what} is {ours}, that of its parent {parent} is {theirs}"
            )


def _check_unchanged(files: Sequence[ChainFile], position: int, disk: VhdxDisk) -> None:
    """Between resolving and opening somebody may have written to a parent."""
    if position:
        links = files[position - 1].links
        assert links is not None
        if not links.accepts(disk.info().data_write_guid):
            raise VhdxParentError(
                str(files[position - 1].path),
                f"its parent {files[position].path} was changed a moment ago: try again when"
                " nobody writes to it",
            )


def _close_all(disks: Iterator[VhdxDisk] | Sequence[VhdxDisk]) -> None:
    failure: BaseException | None = None
    for disk in disks:
        try:
            disk.close()
        except (VhdxError, UnavailableError) as error:
            failure = failure or error
    if failure is not None:
        raise failure

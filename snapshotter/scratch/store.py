"""Where scratch disks are: one directory a disk, written from a template kept in memory.

::

    <root>/scratch/<number>/sandbox.vhdx
    <location>/lcow-<store id>/<number>/sandbox.vhdx     where a label named an allowed location

Each snapshot that uses a disk links to that one path. hcsshim resolves the link and attaches
disks by path, so a disk is attached once however many containers share it.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from snapshotter.errors import UnavailableError
from snapshotter.mounts import SCRATCH_NAME
from snapshotter.shelf import Owner, Shelf, discard

if TYPE_CHECKING:
    from snapshotter.scratch.template import ScratchTemplate

_MAX_TEMPLATES: Final = 8
"""Sizes come from clients, and a template takes a few MiB."""


class Templates:
    """Formatted scratch disks in memory, one a size; the least recently used go first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._building: dict[int, threading.Lock] = {}
        self._built: OrderedDict[int, ScratchTemplate] = OrderedDict()

    def get(self, size: int) -> ScratchTemplate:
        """The template for disks of `size` bytes, built once however many threads ask."""
        with self._lock:
            if (template := self._recall(size)) is not None:
                return template
            building = self._building.setdefault(size, threading.Lock())
        with building:
            with self._lock:
                if (template := self._recall(size)) is not None:
                    return template
            # Imported when the first disk is made: it brings numpy, and most uses of a store
            # make no disk.
            from snapshotter.scratch.template import ScratchTemplate

            template = ScratchTemplate.build(size)
            with self._lock:
                self._built[size] = template
                self._building.pop(size, None)
                while len(self._built) > _MAX_TEMPLATES:
                    self._built.popitem(last=False)
            return template

    def _recall(self, size: int) -> ScratchTemplate | None:
        if size in self._built:
            self._built.move_to_end(size)
        return self._built.get(size)


class ScratchStore:
    """The places for scratch disks. `locations` are the allowed ones besides the root's own."""

    def __init__(
        self,
        root: Path,
        store_id: str,
        owner: Owner,
        *,
        durable: bool,
        locations: Iterable[Path] = (),
    ) -> None:
        self._store_id = store_id
        self._owner = owner
        self._durable = durable
        self._templates = Templates()
        self._own = Shelf(root / "scratch", owner, durable=durable)
        self.locations = tuple(str(path) for path in locations)

    def create(self) -> None:
        """Make the root's own place."""
        self._own.create()

    def shelf(self, location: str) -> Shelf:
        """The shelf at a location; "" is the root's own."""
        if not location:
            return self._own
        return Shelf(Path(location) / f"lcow-{self._store_id}", self._owner, durable=self._durable)

    def shelves(self, recorded: Iterable[str]) -> list[tuple[str, Shelf]]:
        """Every place that exists: the root's own, the allowed ones and the `recorded` ones."""
        places = [(place, self.shelf(place)) for place in {"", *self.locations, *recorded}]
        return [(place, shelf) for place, shelf in places if shelf.path.is_dir()]

    def disk(self, location: str, number: int) -> Path:
        """The canonical path of a scratch disk."""
        return self.shelf(location).entry(number) / SCRATCH_NAME

    def stage(self, location: str, size: int) -> Path:
        """Write a fresh disk of `size` bytes, and return its staged directory.

        On failure nothing is left. Raises UnavailableError (disk full), InvalidArgumentError (a
        size that cannot be formatted).
        """
        shelf = self.shelf(location)
        if location and not Path(location).is_dir():
            raise UnavailableError(f"the scratch location {location} does not exist; create it")
        shelf.create()
        template = self._templates.get(size)
        staged = shelf.stage()
        try:
            template.write(staged / SCRATCH_NAME, durable=False)
            if self._durable:
                _flush(staged / SCRATCH_NAME)
        except BaseException:
            discard([staged])
            raise
        return staged


def _flush(path: Path) -> None:
    """Make a new file durable, its name included.

    fsync(2) promises no more than the content, and yet ext4, XFS and btrfs keep the name of a new
    file with it: one flush does for both.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UnavailableError(f"cannot flush {path}: {error.strerror}") from error

"""Where scratch disks are: one directory a disk, made from a template in memory.

At a location the template is a file as well, as it is in containerd's own plugin: whoever has put
one there decides what is in new disks.

::

    <root>/scratch/<number>/sandbox.vhdx
    <location>/lcow-<store id>/<number>/sandbox.vhdx     where a label named an allowed location
    <location>/scratch.vhdx                              the template of the disks there

Each snapshot that uses a disk links to that one path. hcsshim resolves the link and attaches
disks by path, so a disk is attached once however many containers share it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from snapshotter.errors import UnavailableError
from snapshotter.mounts import SCRATCH_NAME
from snapshotter.platform import Platform
from snapshotter.scratch.location import create_location
from snapshotter.shelf import Owner, Shelf, discard

if TYPE_CHECKING:
    from snapshotter.scratch.maker import DiskMaker
    from snapshotter.scratch.templatefile import FileState

_MAX_TEMPLATES: Final = 8
"""Sizes come from clients, and a template takes a few MiB."""


class DiskMakers:
    """Templates of scratch disks, by size and location; the least recently used go first."""

    def __init__(self, platform: Platform, *, durable: bool) -> None:
        self._platform = platform
        self._durable = durable
        self._lock = threading.Lock()
        self._building: dict[tuple[str, int], threading.Lock] = {}
        self._built: OrderedDict[tuple[str, int], tuple[FileState, DiskMaker]] = OrderedDict()

    def get(self, location: str, size: int, shelf: Shelf) -> DiskMaker:
        """What makes disks of `size` bytes, built once however many threads ask.

        `shelf` has the location's disks; its directory is there. The template of a location is
        the file there, verified again whenever it changed. Raises FailedPreconditionError (the
        file is no such template), UnavailableError.
        """
        # Imported when the first disk is made: it brings numpy, and most uses of a store make no
        # disk.
        from snapshotter.scratch.maker import DiskMaker
        from snapshotter.scratch.template import ScratchTemplate
        from snapshotter.scratch.templatefile import TemplateFile

        file = TemplateFile.at(Path(location), size, self._platform) if location else None
        key = (location, size)
        with self._lock:
            building = self._building.setdefault(key, threading.Lock())
        with building:
            state = file.state() if file else None
            with self._lock:
                if key in self._built and self._built[key][0] == state:
                    self._built.move_to_end(key)
                    return self._built[key][1]
            if file is None:
                template = ScratchTemplate.build(size)
            else:
                template = file.load_or_create(durable=self._durable)
                state = file.state()
            maker = DiskMaker.open(template, shelf, self._platform)
            with self._lock:
                self._built[key] = (state, maker)
                self._building.pop(key, None)
                while len(self._built) > _MAX_TEMPLATES:
                    self._built.popitem(last=False)
            return maker

    def forget(self) -> None:
        """Let go of every template, and of the files that clones are made of."""
        with self._lock:
            self._built.clear()


_FLUSHED_AS_WRITTEN: bool = sys.platform == "win32"


class ScratchStore:
    """The places for scratch disks. `locations` are the allowed ones besides the root's own."""

    def __init__(
        self,
        root: Path,
        store_id: str,
        owner: Owner,
        platform: Platform,
        *,
        durable: bool,
        locations: Iterable[Path] = (),
    ) -> None:
        self._store_id = store_id
        self._owner = owner
        self._platform = platform
        self._durable = durable
        self._makers = DiskMakers(platform, durable=durable)
        self._own = Shelf(root / "scratch", owner, platform, durable=durable)
        self.locations = tuple(str(path) for path in locations)
        self._keeps_path: dict[str, bool] = {}

    def create(self) -> None:
        """Make the root's own place."""
        self._own.create()

    def shelf(self, location: str) -> Shelf:
        """The shelf at a location; "" is the root's own."""
        if not location:
            return self._own
        path = Path(location) / f"lcow-{self._store_id}"
        return Shelf(path, self._owner, self._platform, durable=self._durable)

    def shelves(self, recorded: Iterable[str]) -> list[Shelf]:
        """Every place that exists: the root's own, the allowed ones and the `recorded` ones."""
        places = [self.shelf(place) for place in sorted({"", *self.locations, *recorded})]
        return [shelf for shelf in places if self._platform.long(shelf.path).is_dir()]

    def disk(self, location: str, number: int) -> Path:
        """The canonical path of a scratch disk."""
        return self.shelf(location).entry(number) / SCRATCH_NAME

    def stage(self, location: str, size: int) -> Path:
        """Write a fresh disk of `size` bytes, and return its staged directory; see `flush`.

        On failure nothing is left. Raises UnavailableError (disk full), InvalidArgumentError (a
        size that cannot be formatted, a location that leads elsewhere), FailedPreconditionError
        (the template at the location is none).
        """
        if location:
            create_location(location, self.locations, self._platform)
        shelf = self.shelf(location)
        shelf.create()
        maker = self._makers.get(location, size, shelf)
        staged = shelf.stage()
        try:
            self._write(maker, staged)
        except BaseException:
            discard(self._platform, [staged])
            raise
        return staged

    def write(self, directory: Path, size: int) -> None:
        """Write a fresh disk of `size` bytes into a snapshot's own staged directory, durably."""
        self._write(self._makers.get("", size, self._own), directory)
        self._flush(directory)

    def flush(self, location: str, number: int) -> None:
        """Make a published disk durable; before the commit of its row. Raises UnavailableError."""
        self._flush(self.shelf(location).entry(number))

    def flush_keeps_path(self, location: str) -> bool:
        """Whether `flush` keeps the names that lead to a disk, so that nobody has to flush those.

        It does where the disk was published before.
        """
        if location not in self._keeps_path:
            shelf = self.shelf(location)
            self._keeps_path[location] = self._platform.file_flush_keeps_path(shelf.path)
        return self._keeps_path[location]

    def warm(self, size: int) -> None:
        """Make the template of the root's own disks of `size` bytes now, not for the first one."""
        self._makers.get("", size, self._own)

    def close(self) -> None:
        """Let go of the files that clones are made of; a second call does nothing."""
        self._makers.forget()

    def _write(self, maker: DiskMaker, directory: Path) -> None:
        # On Windows now, on the handle that wrote it, before a scanner can refuse it: NTFS journals
        # names in order, so the rename that publishes the directory brings this one with it.
        durable = self._durable and _FLUSHED_AS_WRITTEN
        maker.make(self._platform.long(directory) / SCRATCH_NAME, durable=durable)

    def _flush(self, directory: Path) -> None:
        """Make a new disk durable, its name included.

        fsync(2) promises no more than the content, and yet ext4, XFS and btrfs keep the name of a
        new file with it: one flush does for both. See also `flush_keeps_path`.
        """
        if not self._durable or _FLUSHED_AS_WRITTEN:
            return
        path = self._platform.long(directory) / SCRATCH_NAME
        try:
            descriptor = os.open(path, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            pass  # removed again in the same transaction
        except OSError as error:
            raise UnavailableError(f"cannot flush {path}: {error.strerror}") from error

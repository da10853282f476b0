"""The snapshotter in linux-host mode: the same store, with mounts that Linux really mounts.

::

    prepare   overlay of <disk>/<N>/fs over the layers of the parents (a bind mount without any)
    view      read-only overlay of the layers of the parents
    commit    what is in <disk>/<N>/fs becomes layer.vhd, by the tar to ext4 conversion that
              imports of images use

A root may be served in either mode, by turns: names, labels, parents and layer.vhd are the same
ones. The writable disk is the content of the snapshot's scratch disk in a raw file beside its VHDX
(`snapshotter.linuxhost.rawdisk`), and the VHDX does not change. Snapshots that share a scratch
disk share the raw one, each with a directory of its own.

Commit takes as long as its layer is large, and containerd waits: it makes its own commit meanwhile.
"""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from snapshotter.errors import NotFoundError, SnapshotterError, UnavailableError
from snapshotter.ext4.layertar import convert_layer
from snapshotter.labels import DEFAULT_SCRATCH_SIZE
from snapshotter.layercache import LayerCache
from snapshotter.linuxhost.mounttable import MountTable, copy_attributes
from snapshotter.linuxhost.rawdisk import RAW_NAME, raw_formatted, raw_from_vhdx
from snapshotter.linuxhost.uppertar import upper_tar
from snapshotter.metastore.model import Info, Kind, Usage
from snapshotter.mounts import LAYER_NAME, Mount
from snapshotter.snapshotter import Snapshotter
from snapshotter.usage import disk_usage

_log = logging.getLogger(__name__)

_DIRECTORY: Final = "m"
"""Short on purpose: a mount of 128 layers names as many paths in one page."""

_UNPACK_FILE: Final = re.compile(r"d([0-9]+)\.ext4")
_PARAMETERS: Final = Path("/sys/module/overlay/parameters")
_OPTIONS: Final = ("index", "redirect_dir", "metacopy")
"""Features of overlayfs whose marks in an upper directory a layer cannot carry."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A snapshot's number, its kind, and the directories of its parents, nearest first."""

    number: int
    writable: bool
    parents: tuple[Path, ...]


class LinuxHostSnapshotter:
    """One open store in linux-host mode; a context manager. Open it with `open`."""

    def __init__(self, store: Snapshotter, table: MountTable) -> None:
        self.store = store
        self._table = table
        self._options = tuple(f"{name}=off" for name in _OPTIONS if (_PARAMETERS / name).exists())

    @classmethod
    def open(
        cls,
        root: str | os.PathLike[str],
        *,
        create: bool = True,
        default_scratch_size: int = DEFAULT_SCRATCH_SIZE,
        scratch_locations: Sequence[str | os.PathLike[str]] = (),
        durable: bool = True,
        reuse_layers: bool = True,
        delete_later: bool = False,
    ) -> Self:
        """Open the store at `root` as `Snapshotter.open` does, for mounts on this machine.

        Raises UnavailableError also where this process may not mount, or another one serves the
        root in this mode.
        """
        if os.geteuid() != 0:
            raise UnavailableError(
                "linux-host mode mounts disks: run it as root, or use the mounts of lcow mode"
            )
        store = Snapshotter.open(
            root,
            create=create,
            default_scratch_size=default_scratch_size,
            scratch_locations=scratch_locations,
            durable=durable,
            reuse_layers=reuse_layers,
            delete_later=delete_later,
        )
        return cls.adopt(store)

    @classmethod
    def adopt(cls, store: Snapshotter) -> Self:
        """Take over an open store, which closes with this one or right now on failure."""
        try:
            table = MountTable.open(store.root / _DIRECTORY)
        except BaseException:
            store.close()
            raise
        opened = cls(store, table)
        opened._delete_stale_files()
        return opened

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmount everything and close the store; a second call does nothing."""
        self._table.close()
        self.store.close()

    @property
    def layers(self) -> LayerCache | None:
        """`Snapshotter.layers`."""
        return self.store.layers

    # -- containerd's core/snapshots.Snapshotter

    def prepare(
        self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        """`Snapshotter.prepare`; the mounts are a bind mount or an overlay.

        On failure nothing is left.
        """
        return self._mounted(key, self.store.prepare(key, parent, labels=labels))

    def view(
        self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        """`Snapshotter.view`; the mounts are read-only. On failure nothing is left."""
        return self._mounted(key, self.store.view(key, parent, labels=labels))

    def mounts(self, key: str) -> list[Mount]:
        """`Snapshotter.mounts`: what `prepare` and `view` gave, mounted again where needed."""
        place = self._place(key, self.store.mounts(key))
        with self._needed(key, place):
            return self._mounts(key, place)

    def commit(
        self,
        name: str,
        key: str,
        *,
        labels: Mapping[str, str] | None = None,
        parent: str = "",
    ) -> None:
        """`Snapshotter.commit`, after the files of the active `key` have become its layer.vhd.

        Raises FailedPreconditionError also for a file that no layer can hold, LayerError.
        """
        if self._exists(name) or self.store.stat(key).kind is not Kind.ACTIVE:
            self.store.commit(name, key, labels=labels, parent=parent)  # says what is wrong
            return
        place = self._place(key, self.store.mounts(key))
        try:
            self._build_layer(key, place)
            self.store.commit(name, key, labels=labels, parent=parent)
        except NotFoundError:
            self._table.release(place.number, discard=False)  # it was removed meanwhile
            raise
        # What the writable disk held is in the layer.
        shared = self.store.shared_disk(name)
        alone = shared is None or len(shared.holders) == 1
        self._forget(place.number, discard=alone)

    def remove(self, key: str) -> None:
        """`Snapshotter.remove`. Clients that have it mounted keep their mount."""
        number = self._number(key)
        shared = self.store.shared_disk(key)
        self.store.remove(key)
        self._forget(number, discard=shared is None or len(shared.holders) == 1)

    def stat(self, key: str) -> Info:
        """`Snapshotter.stat`."""
        return self.store.stat(key)

    def stat_frame(self, key: str) -> bytes:
        """`Snapshotter.stat_frame`."""
        return self.store.stat_frame(key)

    def update(self, info: Info, *fieldpaths: str) -> Info:
        """`Snapshotter.update`."""
        return self.store.update(info, *fieldpaths)

    def usage(self, key: str) -> Usage:
        """`Snapshotter.usage`, and of an active snapshot the files written to it as well."""
        usage = self.store.usage(key)
        if self.store.stat(key).kind is Kind.ACTIVE:
            place = self._place(key, self.store.mounts(key))
            with self._needed(key, place):
                usage += disk_usage(self._upper(key, place))
        return usage

    def walk(self, *filters: str) -> Iterator[Info]:
        """`Snapshotter.walk`."""
        return self.store.walk(*filters)

    def walk_frames(self, *filters: str) -> Iterator[bytes]:
        """`Snapshotter.walk_frames`."""
        return self.store.walk_frames(*filters)

    def cleanup(self) -> int:
        """`Snapshotter.cleanup`."""
        return self.store.cleanup()

    # -- inside

    def _number(self, key: str) -> int:
        return int(self.store.directory(key).name)

    def _exists(self, name: str) -> bool:
        try:
            self.store.stat(name)
        except NotFoundError:
            return False
        return True

    def _place(self, key: str, mounts: Sequence[Mount]) -> _Place:
        # The lcow-layer mount says it all: the nearest directory, then the other parents'.
        (mount,) = mounts
        own = self.store.directory(key)
        source = Path(mount.source)
        parents = mount.parent_layer_paths
        if source != own:
            parents = (source, *parents)
        return _Place(int(own.name), "rw" in mount.options, parents)

    def _mounted(self, key: str, mounts: Sequence[Mount]) -> list[Mount]:
        """The mounts of a snapshot that was just made, or nothing is left of it."""
        try:
            return self._mounts(key, self._place(key, mounts))
        except BaseException:
            try:
                self.remove(key)
            except SnapshotterError as error:
                _log.warning("cannot remove %r after a failure: %s", key, error)
            raise

    def _mounts(self, key: str, place: _Place) -> list[Mount]:
        layers = self._layers(place)
        if not place.writable:
            if not layers:
                return [Mount("bind", str(self._table.empty()), ("ro", "rbind"))]
            return [Mount("overlay", "overlay", ("ro", *self._options, _lower(layers)))]
        upper = self._upper(key, place, layers)
        if not layers:
            return [Mount("bind", str(upper), ("rw", "rbind"))]
        work = upper.with_name("work")
        options = (*self._options, f"workdir={work}", f"upperdir={upper}", _lower(layers))
        return [Mount("overlay", "overlay", options)]

    def _layers(self, place: _Place) -> list[Path]:
        """The directories of an overlay's lower side, uppermost first: a veil, then the layers."""
        layers = [
            self._table.layer(int(parent.name), parent / LAYER_NAME, user=place.number)
            for parent in place.parents
        ]
        if layers:
            layers.insert(0, self._table.veil(int(place.parents[0].name), layers[0]))
        return layers

    def _upper(self, key: str, place: _Place, layers: Sequence[Path] = ()) -> Path:
        """The directory for what is written to an active snapshot, on a mounted disk."""
        number = place.number
        shared = self.store.shared_disk(key)
        if shared is None:
            file = self._table.path / f"d{number}.ext4"

            def make() -> Path:
                raw_formatted(DEFAULT_SCRATCH_SIZE, file)
                return file

            disk = self._table.disk(f"d{number}", make, user=number)
        else:
            vhdx = shared.path

            def make() -> Path:
                raw = vhdx.with_name(RAW_NAME)
                raw_from_vhdx(vhdx, raw)
                return raw

            disk = self._table.disk(f"s{vhdx.parent.name}", make, user=number)
        upper = disk / str(number) / "fs"
        try:
            if not upper.exists():
                upper.with_name("work").mkdir(mode=0o700, parents=True, exist_ok=True)
                # Complete at once: a half made one would keep the wrong owner for good.
                fresh = upper.with_name("fs.new")
                fresh.mkdir(mode=0o755, exist_ok=True)
                fresh.chmod(0o755)
                if layers:
                    copy_attributes(layers[0], fresh)
                fresh.rename(upper)
        except OSError as error:
            raise UnavailableError(f"cannot make {upper}: {error.strerror}") from error
        return upper

    def _build_layer(self, key: str, place: _Place) -> None:
        upper = self._upper(key, place, self._layers(place))
        target = self.store.directory(key) / LAYER_NAME
        try:
            convert_layer(upper_tar(upper), target)
        except OSError as error:
            raise UnavailableError(f"cannot read {upper}: {error.strerror}") from error

    @contextlib.contextmanager
    def _needed(self, key: str, place: _Place) -> Iterator[None]:
        """Mounts that are made inside go again where the snapshot was removed meanwhile."""
        try:
            yield
        finally:
            if not self._exists(key):
                self._table.release(place.number, discard=False)

    def _forget(self, number: int, *, discard: bool) -> None:
        """After a commit or removal: unmount, and delete its files on a disk that others use.

        With `discard`, nobody else uses the disk, and its file goes.
        """
        if not discard:
            for directory in self._table.path.glob(f"s*/{number}"):
                shutil.rmtree(directory, ignore_errors=True)
        self._table.release(number, discard=discard)
        self._table.forget_layer(number)
        (self._table.path / f"d{number}.ext4").unlink(missing_ok=True)

    def _delete_stale_files(self) -> None:
        files = {
            int(match.group(1)): path
            for path in self._table.path.iterdir()
            if (match := _UNPACK_FILE.fullmatch(path.name))
        }
        if files:
            live = {self._number(info.name) for info in self.store.walk("kind==active")}
            for number in files.keys() - live:
                files[number].unlink(missing_ok=True)


def _lower(layers: Sequence[Path]) -> str:
    return "lowerdir=" + ":".join(map(str, layers))

"""Importing an image: every layer becomes a committed snapshot named by its chain ID.

What containerd's unpacker does (core/unpack): Prepare(`extract-<unique> <chain ID>`), apply,
compare the diff ID, Commit(chain ID). A layer that is there already is used as it is.
"""

from __future__ import annotations

import io
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from snapshotter.digests import chain_ids
from snapshotter.errors import (
    AlreadyExistsError,
    DigestMismatchError,
    FailedPreconditionError,
    ImageError,
    LayerError,
    NotFoundError,
    SnapshotterError,
    UnavailableError,
)
from snapshotter.imagearchive import ArchivedImage, ArchivedLayer, ImageArchive, ImageConfig
from snapshotter.keys import UNPACK_PREFIX
from snapshotter.labels import DIFF_ID, SESSION, SNAPSHOT_REF
from snapshotter.layers import apply_layer, check_media_type, layer_path
from snapshotter.metastore.model import Kind
from snapshotter.mounts import LAYER_NAME
from snapshotter.snapshotter import Snapshotter
from snapshotter.units import KIB

_log = logging.getLogger(__name__)

_READ_SIZE: Final = 256 * KIB


@dataclass(frozen=True, slots=True)
class ImportedLayer:
    """A layer as a committed snapshot.

    `size` is what the archive holds, `disk_size` the length of layer.vhd, both in bytes;
    `reused` where the snapshot was there before, `linked` where another one had the same layer.
    """

    snapshot: str
    chain_id: str
    diff_id: str
    media_type: str
    size: int
    disk_size: int
    reused: bool
    linked: bool = False


@dataclass(frozen=True, slots=True)
class ImportedImage:
    """An image whose layers are snapshots, base first."""

    names: tuple[str, ...]
    config: ImageConfig
    layers: tuple[ImportedLayer, ...]

    @property
    def top(self) -> str:
        """Chain ID of the whole image."""
        return self.layers[-1].chain_id

    @property
    def snapshot(self) -> str:
        """Name of the topmost snapshot: the parent of a container's."""
        return self.layers[-1].snapshot


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """How far the import is: `layer` of `layers` (from 1), and `done` of `size` bytes of it."""

    layer: int
    layers: int
    diff_id: str
    done: int
    size: int


def import_image(
    snapshotter: Snapshotter,
    archive: Path,
    *,
    name: str | None = None,
    platform: str = "linux/amd64",
    prefix: str = "",
    progress: Callable[[ImportProgress], None] | None = None,
) -> ImportedImage:
    """Import an image archive: `docker save` or an OCI layout in a tar, compressed or not.

    `name` chooses among several images. `prefix` goes before every key and name, as containerd's
    `<namespace>/<sequence>/` does. `progress` is called now and then from this thread. Whatever
    ends the import early, Ctrl-C included, leaves whole layers or nothing.

    Raises ImageError (no archive, or not this image), DigestMismatchError, LayerError,
    InvalidArgumentError (media type), UnavailableError (disk full, file not readable).
    """
    try:
        opened = ImageArchive.open(
            archive, spool_directory=snapshotter.platform.long(snapshotter.root)
        )
    except FileNotFoundError as error:
        raise ImageError(f"there is no image archive {archive}") from error
    with opened:
        image = opened.image(name=name, platform=platform)
        for layer in image.layers:
            check_media_type(layer.media_type)
        return _Import(snapshotter, opened, image, prefix, progress).run()


class _How(Enum):
    """Where a layer's snapshot came from."""

    NEW = "converted"
    LINKED = "another snapshot's layer"
    REUSED = "there already"


class _Import:
    """One import under way."""

    def __init__(
        self,
        snapshotter: Snapshotter,
        archive: ImageArchive,
        image: ArchivedImage,
        prefix: str,
        progress: Callable[[ImportProgress], None] | None,
    ) -> None:
        self._snapshotter = snapshotter
        self._archive = archive
        self._image = image
        self._prefix = prefix
        self._progress = progress

    def run(self) -> ImportedImage:
        """Import the layers that are missing, base first."""
        layers: list[ImportedLayer] = []
        parent = ""
        chain = chain_ids([layer.diff_id for layer in self._image.layers])
        for position, (layer, chain_id) in enumerate(
            zip(self._image.layers, chain, strict=True), start=1
        ):
            snapshot = self._prefix + chain_id
            how = _How.REUSED
            if not self._exists(snapshot):
                how = self._unpack(position, layer, chain_id, parent)
            self._report(position, layer, layer.size)
            layers.append(
                ImportedLayer(
                    snapshot,
                    chain_id,
                    layer.diff_id,
                    layer.media_type,
                    layer.size,
                    self._disk_size(snapshot),
                    how is _How.REUSED,
                    how is _How.LINKED,
                )
            )
            parent = snapshot
        return ImportedImage(self._image.names, self._image.config, tuple(layers))

    def _exists(self, snapshot: str) -> bool:
        try:
            kind = self._snapshotter.stat(snapshot).kind
        except NotFoundError:
            return False
        if kind is not Kind.COMMITTED:
            raise FailedPreconditionError(
                f"snapshot {snapshot!r} is {kind.word}, where the image's layer belongs; remove it"
            )
        return True

    def _unpack(self, position: int, layer: ArchivedLayer, chain_id: str, parent: str) -> _How:
        """Unpack one layer, and how; REUSED where someone else committed it meanwhile."""
        snapshot = self._prefix + chain_id
        key = f"{self._prefix}{UNPACK_PREFIX}{secrets.token_hex(6)} {chain_id}"
        labels = {SNAPSHOT_REF: chain_id, DIFF_ID: layer.diff_id}
        session = {SESSION: self._snapshotter.session}
        # Without the reference: a store that has the layer under another name would refuse it.
        mounts = self._snapshotter.prepare(key, parent, labels={DIFF_ID: layer.diff_id} | session)
        layers = self._snapshotter.layers
        try:
            if layers is not None and layers.reuse(layer.diff_id, layer_path(mounts)) is not None:
                self._snapshotter.commit(snapshot, key, labels=labels)
                return _How.LINKED
            with self._archive.open_layer(
                layer, watch=lambda done: self._report(position, layer, done)
            ) as stored:
                stream = io.BufferedReader(stored, _READ_SIZE)
                try:
                    apply_layer(
                        *(mounts, stream),
                        media_type=layer.media_type,
                        diff_id=layer.diff_id,
                        reuse=layers,
                        read_ahead=True,  # of a file: no read waits for anybody
                        platform=self._snapshotter.platform,
                    )
                except (LayerError, DigestMismatchError):
                    # Where the stored bytes are damaged, that is the cause to name.
                    stored.finish()
                    raise
                stored.finish()
            self._snapshotter.commit(snapshot, key, labels=labels)
        except AlreadyExistsError:
            self._abandon(key)
            return _How.REUSED
        except BaseException:
            self._abandon(key)
            raise
        return _How.NEW

    def _abandon(self, key: str) -> None:
        try:
            self._snapshotter.remove(key)
        except SnapshotterError as error:
            # The cause of it all matters more; the session label makes recovery do it.
            _log.warning("cannot remove %r now: %s", key, error)

    def _disk_size(self, snapshot: str) -> int:
        path = self._snapshotter.directory(snapshot) / LAYER_NAME
        try:
            return self._snapshotter.platform.long(path).stat().st_size
        except OSError as error:
            raise UnavailableError(
                f"snapshot {snapshot!r} has no {LAYER_NAME}: {error.strerror}; remove the snapshot"
                " and import the image again"
            ) from error

    def _report(self, position: int, layer: ArchivedLayer, done: int) -> None:
        if self._progress is not None:
            self._progress(
                ImportProgress(position, len(self._image.layers), layer.diff_id, done, layer.size)
            )

"""An image layer into a prepared snapshot: a tar becomes `layer.vhd` (plugins/diff/lcow)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from snapshotter.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
)
from snapshotter.mounts import LAYER_NAME, LCOW_LAYER, Mount
from snapshotter.platform import Platform, local_platform

if TYPE_CHECKING:
    from snapshotter.ext4.layertar import ConvertedLayer
    from snapshotter.layercache import LayerCache

_OCI: Final = "application/vnd.oci.image.layer."
_DOCKER: Final = "application/vnd.docker.image.rootfs."

LAYER_MEDIA_TYPES: Final = frozenset(
    [
        *(
            f"{_OCI}{kind}v1.tar{suffix}"
            for kind in ("", "nondistributable.")
            for suffix in ("", "+gzip", "+zstd")
        ),
        *(f"{_DOCKER}diff.tar{suffix}" for suffix in ("", ".gzip", ".zstd")),
        *(f"{_DOCKER}foreign.diff.tar{suffix}" for suffix in ("", ".gzip")),
    ]
)
"""What containerd's differ for LCOW takes. The bytes, not the type, tell the compression."""


def check_media_type(media_type: str) -> None:
    """Refuse what is no layer tar (an encrypted layer, say). Raises InvalidArgumentError."""
    if media_type not in LAYER_MEDIA_TYPES:
        raise InvalidArgumentError(
            f"no processor for media type {media_type!r}; a layer is a tar, plain, gzip or zstd"
        )


def layer_path(mounts: Sequence[Mount]) -> Path:
    """Where the layer disk of an active snapshot belongs.

    Raises InvalidArgumentError for mounts of anything else.
    """
    if len(mounts) != 1 or mounts[0].type != LCOW_LAYER:
        found = ", ".join(mount.type for mount in mounts) or "none"
        raise InvalidArgumentError(f"expected exactly one {LCOW_LAYER} mount, got: {found}")
    if "rw" not in mounts[0].options:
        raise InvalidArgumentError(f"the mount of {mounts[0].source} is read-only; prepare one")
    return Path(mounts[0].source) / LAYER_NAME


def apply_layer(
    mounts: Sequence[Mount],
    stream: BinaryIO,
    *,
    media_type: str | None = None,
    diff_id: str | None = None,
    blob: str | None = None,
    reuse: LayerCache | None = None,
    read_ahead: bool | None = None,
    platform: Platform | None = None,
    cancel: Callable[[], object] | None = None,
) -> ConvertedLayer:
    """Write a layer into the snapshot that `mounts` (of its Prepare) describe; what it holds.

    `stream` is the tar, compressed or not, read to its end, with `read_ahead` and `cancel` as
    `convert_layer` does it. Where `diff_id` is given, the uncompressed tar must have it. With
    `reuse` (`Snapshotter.layers`), a layer that the store has already, by its `diff_id` or by the
    digest `blob` of the stream, is cloned or linked to, and `stream` is not read. `platform` is
    this machine's where none is given. On failure no layer.vhd is left.

    Raises DigestMismatchError, LayerError, InvalidArgumentError (mounts, media type),
    FailedPreconditionError (a layer is there already), UnavailableError (disk full).
    """
    if media_type is not None:
        check_media_type(media_type)
    target = layer_path(mounts)
    file = (platform or local_platform()).long(target)
    if file.exists():
        raise FailedPreconditionError(f"{target} is there already; prepare a new snapshot")
    if reuse is not None:
        for digest in (diff_id, blob):
            if digest is not None and (found := reuse.reuse(digest, target)) is not None:
                return found
    # Imported here: it brings numpy, which most commands do without.
    from snapshotter.ext4.layertar import convert_layer

    converted = convert_layer(stream, file, read_ahead=read_ahead, cancel=cancel, diff_id=diff_id)
    if reuse is not None:
        reuse.remember(converted, target, blob=blob)
    return converted

"""containerd.services.diff.v1.Diff: an image layer becomes the layer.vhd of a snapshot.

containerd asks each of its differs in turn; the first that does not answer UNIMPLEMENTED has
done it. So only mounts of this store are taken. (plugins/diff/lcow; containerd 1.7.4 is the first
that takes a differ as a proxy plugin.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc

from snapshotter.digests import check_digest
from snapshotter.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    UnimplementedError,
)
from snapshotter.layers import apply_layer, check_media_type
from snapshotter.mounts import LCOW_LAYER, Mount
from snapshotter.platform import local_platform
from snapshotter.rpc import messages
from snapshotter.rpc.calls import Call, Calls, Method
from snapshotter.rpc.content import NAMESPACE_HEADER, ContentStore
from snapshotter.rpc.descriptors import Message

if TYPE_CHECKING:
    from snapshotter.layercache import LayerCache

_APPLIED: Final = "application/vnd.oci.image.layer.v1.tar"
_NUMBER: Final = re.compile("[1-9][0-9]*")


class DiffService:
    """The methods. `directory` holds the snapshots of this store, one directory each.

    With `reuse`, a blob whose layer the store has already is not read.
    """

    name: Final = f"{messages.DIFF}.Diff"

    def __init__(self, directory: Path, content: ContentStore, reuse: LayerCache | None) -> None:
        self._directory = directory
        self._content = content
        self._reuse = reuse

    def handler(self, calls: Calls) -> Any:  # noqa: ANN401, untyped library
        """What a gRPC server takes."""
        handlers = {
            "Apply": calls.unary(Method("Apply", messages.ApplyRequest, _digest), self._apply),
            "Diff": calls.unary(Method("Diff", messages.DiffRequest), _diff),
        }
        return grpc.method_handlers_generic_handler(self.name, handlers)

    def _apply(self, request: Message, call: Call) -> bytes:
        mounts = [Mount(m.type, m.source, tuple(m.options)) for m in request.mounts]
        self._check_mounts(mounts)
        descriptor = request.diff
        check_media_type(descriptor.media_type)
        digest = check_digest(descriptor.digest)
        blob = self._content.open(digest, size=descriptor.size, namespace=_namespace(call))
        # Whoever asked may go away, and the blob may never end.
        if not call.add_callback(blob.cancel):
            blob.cancel()
        try:
            layer = apply_layer(
                *(mounts, blob.stream),
                blob=digest,
                reuse=self._reuse,
                read_ahead=True,
                cancel=blob.cancel,
            )
        finally:
            blob.cancel()  # where it was not read to its end: the layer was there already, or bad
        applied = messages.Descriptor(
            media_type=_APPLIED, digest=layer.diff_id, size=layer.uncompressed_size
        )
        return messages.ApplyResponse(applied=applied).SerializeToString()

    def _check_mounts(self, mounts: Sequence[Mount]) -> None:
        """Refuse what is no snapshot of this store: nothing else may be written to."""
        if len(mounts) != 1:
            raise InvalidArgumentError(f"a layer is applied to one mount, got {len(mounts)}")
        (mount,) = mounts
        source = Path(mount.source)
        if (
            mount.type != LCOW_LAYER
            or source.parent != self._directory
            or not _NUMBER.fullmatch(source.name)
        ):
            raise UnimplementedError(
                f"the {mount.type} mount of {mount.source} is none of this store"
                f" ({self._directory}); another differ has to apply the layer"
            )
        if not local_platform().long(source).is_dir():
            raise FailedPreconditionError(f"{source} is gone; prepare a snapshot again")


def _diff(_: Message, __: Call) -> bytes:
    raise UnimplementedError(
        "no layer is made of an LCOW snapshot: its changes are inside a disk of a utility VM"
    )


def _digest(request: Message) -> str:
    return str(request.diff.digest)


def _namespace(call: Call) -> str:
    for name, value in call.invocation_metadata():
        if name == NAMESPACE_HEADER and value:
            return value
    raise FailedPreconditionError(f"the call has no namespace; send the header {NAMESPACE_HEADER}")

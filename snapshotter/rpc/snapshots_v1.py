"""containerd.services.snapshots.v1.Snapshots: what containerd asks of a proxy snapshotter.

The name in each request's `snapshotter` field is the one of containerd's configuration; nothing
depends on it here, as in containerd's own contrib/snapshotservice.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Sequence
from typing import Any, Final

import grpc

from snapshotter.metastore import wire
from snapshotter.metastore.model import Info
from snapshotter.mounts import Mount
from snapshotter.rpc import messages
from snapshotter.rpc.backend import Backend
from snapshotter.rpc.calls import Call, Calls, Method
from snapshotter.rpc.descriptors import Message
from snapshotter.units import KIB

_BATCH_SIZE: Final = 128 * KIB
"""Bytes in one message of List: far below the 4 MiB that gRPC's clients take by default.

Twice as fast as containerd's own 100 snapshots a message; with larger ones the client has to wait
for the first of them.
"""

_EMPTY: Final = b""
"""google.protobuf.Empty, encoded."""


class SnapshotsService:
    """The methods, over a backend."""

    name: Final = f"{messages.SNAPSHOTS}.Snapshots"

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def handler(self, calls: Calls) -> Any:  # noqa: ANN401, untyped library
        """What a gRPC server takes."""
        handlers = {
            "Prepare": calls.unary(
                Method("Prepare", messages.PrepareSnapshotRequest, _key, quick=True), self._prepare
            ),
            "View": calls.unary(
                Method("View", messages.ViewSnapshotRequest, _key, quick=True), self._view
            ),
            "Mounts": calls.unary(
                Method("Mounts", messages.MountsRequest, _key, logging.DEBUG, quick=True),
                self._mounts,
            ),
            "Commit": calls.unary(
                Method("Commit", messages.CommitSnapshotRequest, _key, quick=True), self._commit
            ),
            "Remove": calls.unary(
                Method("Remove", messages.RemoveSnapshotRequest, _key, quick=True), self._remove
            ),
            "Stat": calls.unary(
                Method("Stat", messages.StatSnapshotRequest, _key, logging.DEBUG, quick=True),
                self._stat,
            ),
            "Update": calls.unary(
                Method("Update", messages.UpdateSnapshotRequest, _info_name, quick=True),
                self._update,
            ),
            "List": calls.stream(
                Method("List", messages.ListSnapshotsRequest, _filters, logging.DEBUG), self._list
            ),
            "Usage": calls.unary(
                Method("Usage", messages.UsageRequest, _key, logging.DEBUG), self._usage
            ),
            "Cleanup": calls.unary(Method("Cleanup", messages.CleanupRequest), self._cleanup),
        }
        return grpc.method_handlers_generic_handler(self.name, handlers)

    def _prepare(self, request: Message, _: Call) -> bytes:
        labels = dict(request.labels)
        return encoded_mounts(self._backend.prepare(request.key, request.parent, labels=labels))

    def _view(self, request: Message, _: Call) -> bytes:
        labels = dict(request.labels)
        return encoded_mounts(self._backend.view(request.key, request.parent, labels=labels))

    def _mounts(self, request: Message, _: Call) -> bytes:
        return encoded_mounts(self._backend.mounts(request.key))

    def _commit(self, request: Message, _: Call) -> bytes:
        self._backend.commit(
            request.name, request.key, labels=dict(request.labels), parent=request.parent
        )
        return _EMPTY

    def _remove(self, request: Message, _: Call) -> bytes:
        self._backend.remove(request.key)
        return _EMPTY

    def _stat(self, request: Message, _: Call) -> bytes:
        return self._backend.stat_frame(request.key)

    def _update(self, request: Message, _: Call) -> bytes:
        # Name and labels are all that an update may change; the other fields are ignored.
        info = Info(request.info.name, labels=dict(request.info.labels))
        return wire.info_frame(self._backend.update(info, *request.update_mask.paths))

    def _list(self, request: Message, _: Call) -> Generator[bytes, None, None]:
        return batches(self._backend.walk_frames(*request.filters), size=_BATCH_SIZE)

    def _usage(self, request: Message, _: Call) -> bytes:
        usage = self._backend.usage(request.key)
        return messages.UsageResponse(size=usage.size, inodes=usage.inodes).SerializeToString()

    def _cleanup(self, _: Message, __: Call) -> bytes:
        self._backend.cleanup()
        return _EMPTY


def batches(frames: Iterable[bytes], *, size: int) -> Generator[bytes, None, None]:
    """The frames in order, joined to messages of at most `size` bytes; a larger one goes alone."""
    batch: list[bytes] = []
    room = size
    for frame in frames:
        room -= len(frame)
        if room < 0 and batch:
            yield b"".join(batch)
            batch.clear()
            room = size - len(frame)
        batch.append(frame)
    if batch:
        yield b"".join(batch)


def _key(request: Message) -> str:
    return str(request.key)


def _info_name(request: Message) -> str:
    return str(request.info.name)


def _filters(request: Message) -> str:
    return " | ".join(request.filters)


def encoded_mounts(mounts: Sequence[Mount]) -> bytes:
    """MountsResponse, and the responses of Prepare and View, which are the same."""
    # By hand, since a message object would cost more than all the rest of the answer.
    return b"".join(
        wire.delimited(
            1,
            wire.text(1, mount.type)
            + wire.text(2, mount.source)
            + b"".join(wire.delimited(4, option.encode()) for option in mount.options),
        )
        for mount in mounts
    )

"""A snapshots.v1 client with the methods of `Snapshotter`: the same test then runs on both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

import grpc

from snapshotter import Info, Kind, Mount, Usage
from snapshotter.rpc import messages
from snapshotter.rpc.descriptors import Message
from snapshotter.rpc.status import error_from_peer


class Contract(Protocol):
    """containerd's core/snapshots.Snapshotter, as `Snapshotter` has it."""

    def prepare(
        self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None
    ) -> Sequence[Mount]: ...

    def view(
        self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None
    ) -> Sequence[Mount]: ...

    def mounts(self, key: str) -> Sequence[Mount]: ...

    def commit(
        self,
        name: str,
        key: str,
        *,
        labels: Mapping[str, str] | None = None,
        parent: str = "",
    ) -> None: ...

    def remove(self, key: str) -> None: ...

    def stat(self, key: str) -> Info: ...

    def update(self, info: Info, *fieldpaths: str) -> Info: ...

    def usage(self, key: str) -> Usage: ...

    def walk(self, *filters: str) -> Iterator[Info]: ...

    def close(self) -> None: ...


class RemoteSnapshotter:
    """A snapshotter behind a socket: its own, or containerd's with the name of one.

    Raises the errors that the status codes stand for.
    """

    def __init__(self, channel: Any, *, snapshotter: str, namespace: str) -> None:  # noqa: ANN401
        self._channel = channel
        self._snapshotter = snapshotter
        self._metadata = (("containerd-namespace", namespace),)

    @classmethod
    def dial(cls, socket: str, *, snapshotter: str = "", namespace: str = "test") -> Self:
        """A client of the socket at that path."""
        channel = grpc.insecure_channel(f"unix://{socket}")
        return cls(channel, snapshotter=snapshotter, namespace=namespace)

    def prepare(
        self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        request = messages.PrepareSnapshotRequest(key=key, parent=parent, labels=labels or {})
        return _mounts(self._call("Prepare", request, messages.MountsResponse))

    def view(
        self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        request = messages.ViewSnapshotRequest(key=key, parent=parent, labels=labels or {})
        return _mounts(self._call("View", request, messages.MountsResponse))

    def mounts(self, key: str) -> list[Mount]:
        return _mounts(
            self._call("Mounts", messages.MountsRequest(key=key), messages.MountsResponse)
        )

    def commit(
        self,
        name: str,
        key: str,
        *,
        labels: Mapping[str, str] | None = None,
        parent: str = "",
    ) -> None:
        request = messages.CommitSnapshotRequest(
            name=name, key=key, labels=labels or {}, parent=parent
        )
        self._call("Commit", request, messages.Empty)

    def remove(self, key: str) -> None:
        self._call("Remove", messages.RemoveSnapshotRequest(key=key), messages.Empty)

    def stat(self, key: str) -> Info:
        request = messages.StatSnapshotRequest(key=key)
        return _info(self._call("Stat", request, messages.StatSnapshotResponse).info)

    def update(self, info: Info, *fieldpaths: str) -> Info:
        request = messages.UpdateSnapshotRequest()
        request.info.name = info.name
        request.info.labels.update(info.labels)
        request.update_mask.paths.extend(fieldpaths)
        return _info(self._call("Update", request, messages.UpdateSnapshotResponse).info)

    def usage(self, key: str) -> Usage:
        answer = self._call("Usage", messages.UsageRequest(key=key), messages.UsageResponse)
        return Usage(answer.size, answer.inodes)

    def walk(self, *filters: str) -> Iterator[Info]:
        request = messages.ListSnapshotsRequest(snapshotter=self._snapshotter, filters=filters)
        call = self._channel.unary_stream(
            f"/{messages.SNAPSHOTS}.Snapshots/List",
            request_serializer=_encode,
            response_deserializer=messages.ListSnapshotsResponse.FromString,
        )
        try:
            for answer in call(request, metadata=self._metadata):
                yield from map(_info, answer.info)
        except grpc.RpcError as error:
            raise error_from_peer(error, doing="List") from error

    def close(self) -> None:
        self._channel.close()

    def _call(self, method: str, request: Any, answer: Any) -> Message:  # noqa: ANN401
        request.snapshotter = self._snapshotter
        call = self._channel.unary_unary(
            f"/{messages.SNAPSHOTS}.Snapshots/{method}",
            request_serializer=_encode,
            response_deserializer=answer.FromString,
        )
        try:
            done: Message = call(request, metadata=self._metadata, timeout=60, wait_for_ready=False)
        except grpc.RpcError as error:
            raise error_from_peer(error, doing=method) from error
        return done


def _encode(request: Message) -> bytes:
    return bytes(request.SerializeToString())


def _mounts(answer: Message) -> list[Mount]:
    return [Mount(item.type, item.source, tuple(item.options)) for item in answer.mounts]


def _info(info: Message) -> Info:
    return Info(
        info.name,
        Kind(info.kind),
        info.parent,
        dict(info.labels),
        info.created_at.seconds * 1_000_000_000 + info.created_at.nanos,
        info.updated_at.seconds * 1_000_000_000 + info.updated_at.nanos,
    )

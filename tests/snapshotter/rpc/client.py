"""A gRPC client as containerd's proxy is one: over a Unix socket, with decoded answers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from snapshotter.rpc import messages
from snapshotter.rpc.descriptors import Message, MessageClass

SNAPSHOTS = "containerd.services.snapshots.v1.Snapshots"


class Client:
    """One connection; a context manager. It asks for `snapshotter`, in `namespace`."""

    def __init__(
        self,
        path: Path,
        *,
        wait: bool = True,
        snapshotter: str = "lcow",
        namespace: str = "k8s.io",
    ) -> None:
        self._wait = wait  # for a server that is still to come
        self._snapshotter = snapshotter
        self._metadata = (("containerd-namespace", namespace),)
        self.channel = grpc.insecure_channel(
            f"unix://{path}",
            # Each client of a test has a connection of its own.
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.initial_reconnect_backoff_ms", 20),
                ("grpc.max_reconnect_backoff_ms", 50),
            ],
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def call(
        self, method: str, request: Message, response: MessageClass, *, timeout: float = 60
    ) -> Message:
        """A method `Service/Method` that answers once."""
        stub = self.channel.unary_unary(
            f"/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        answer: Message = stub(
            request, timeout=timeout, metadata=self._metadata, wait_for_ready=self._wait
        )
        return answer

    def prepare(self, key: str, parent: str = "", **labels: str) -> list[Any]:
        return self.create("Prepare", key, parent, labels)

    def view(self, key: str, parent: str = "", **labels: str) -> list[Any]:
        return self.create("View", key, parent, labels)

    def create(self, kind: str, key: str, parent: str, labels: Mapping[str, str]) -> list[Any]:
        request_class = {
            "Prepare": messages.PrepareSnapshotRequest,
            "View": messages.ViewSnapshotRequest,
        }[kind]
        request = request_class(
            snapshotter=self._snapshotter, key=key, parent=parent, labels=labels
        )
        response = self.call(f"{SNAPSHOTS}/{kind}", request, messages.MountsResponse)
        return list(response.mounts)

    def mounts(self, key: str) -> list[Any]:
        request = messages.MountsRequest(snapshotter=self._snapshotter, key=key)
        return list(self.call(f"{SNAPSHOTS}/Mounts", request, messages.MountsResponse).mounts)

    def commit(self, name: str, key: str, /, parent: str = "", **labels: str) -> None:
        request = messages.CommitSnapshotRequest(
            snapshotter=self._snapshotter, name=name, key=key, labels=labels, parent=parent
        )
        self.call(f"{SNAPSHOTS}/Commit", request, messages.Empty)

    def remove(self, key: str) -> None:
        request = messages.RemoveSnapshotRequest(snapshotter=self._snapshotter, key=key)
        self.call(f"{SNAPSHOTS}/Remove", request, messages.Empty)

    def stat(self, key: str) -> Message:
        request = messages.StatSnapshotRequest(snapshotter=self._snapshotter, key=key)
        info: Message = self.call(f"{SNAPSHOTS}/Stat", request, messages.StatSnapshotResponse).info
        return info

    def update(self, info: Mapping[str, object], *paths: str) -> Message:
        request = messages.UpdateSnapshotRequest(
            snapshotter=self._snapshotter, info=info, update_mask={"paths": paths}
        )
        response = self.call(f"{SNAPSHOTS}/Update", request, messages.UpdateSnapshotResponse)
        changed: Message = response.info
        return changed

    def batches(self, *filters: str) -> Generator[Sequence[Any], None, None]:
        stub = self.channel.unary_stream(
            f"/{SNAPSHOTS}/List",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=messages.ListSnapshotsResponse.FromString,
        )
        request = messages.ListSnapshotsRequest(snapshotter=self._snapshotter, filters=filters)
        for response in stub(
            request, timeout=60, metadata=self._metadata, wait_for_ready=self._wait
        ):
            yield response.info

    def infos(self, *filters: str) -> list[Any]:
        return [info for batch in self.batches(*filters) for info in batch]

    def names(self, *filters: str) -> list[str]:
        return [info.name for info in self.infos(*filters)]

    def usage(self, key: str) -> tuple[int, int]:
        request = messages.UsageRequest(snapshotter=self._snapshotter, key=key)
        response = self.call(f"{SNAPSHOTS}/Usage", request, messages.UsageResponse)
        return int(response.size), int(response.inodes)

    def cleanup(self) -> None:
        self.call(
            f"{SNAPSHOTS}/Cleanup",
            messages.CleanupRequest(snapshotter=self._snapshotter),
            messages.Empty,
        )

    def health(self, service: str = "") -> int:
        request = messages.HealthCheckRequest(service=service)
        response = self.call("grpc.health.v1.Health/Check", request, messages.HealthCheckResponse)
        return int(response.status)


def failure(call: Callable[[], object]) -> tuple[str, str]:
    """The code and the text that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    return error.code().name, error.details()


def layer(client: Client, name: str, parent: str = "") -> None:
    client.prepare(f"extract-{name}", parent)
    client.commit(name, f"extract-{name}")

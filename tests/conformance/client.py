"""A snapshots.v1 client with the methods of `Snapshotter`: the same test then runs on both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import grpc

from snapshotter import Info, Kind, Mount, Usage
from snapshotter.rpc.descriptors import Message
from snapshotter.rpc.status import error_from_peer
from tests.snapshotter.rpc.client import Client


class RemoteSnapshotter:
    """A snapshotter behind a socket: its own, or containerd's with the name of one.

    Raises the errors that the status codes stand for.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    @classmethod
    def dial(cls, socket: Path, *, snapshotter: str = "", namespace: str = "test") -> Self:
        """A client of the socket at that path."""
        return cls(Client(socket, wait=False, snapshotter=snapshotter, namespace=namespace))

    def prepare(
        self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        with _errors("Prepare"):
            return _mounts(self._client.create("Prepare", key, parent, labels or {}))

    def view(
        self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None
    ) -> list[Mount]:
        with _errors("View"):
            return _mounts(self._client.create("View", key, parent, labels or {}))

    def mounts(self, key: str) -> list[Mount]:
        with _errors("Mounts"):
            return _mounts(self._client.mounts(key))

    def commit(
        self,
        name: str,
        key: str,
        *,
        labels: Mapping[str, str] | None = None,
        parent: str = "",
    ) -> None:
        with _errors("Commit"):
            self._client.commit(name, key, parent, **(labels or {}))

    def remove(self, key: str) -> None:
        with _errors("Remove"):
            self._client.remove(key)

    def stat(self, key: str) -> Info:
        with _errors("Stat"):
            return _info(self._client.stat(key))

    def update(self, info: Info, *fieldpaths: str) -> Info:
        with _errors("Update"):
            changed = {"name": info.name, "labels": dict(info.labels)}
            return _info(self._client.update(changed, *fieldpaths))

    def usage(self, key: str) -> Usage:
        with _errors("Usage"):
            return Usage(*self._client.usage(key))

    def walk(self, *filters: str) -> Iterator[Info]:
        with _errors("List"):
            for batch in self._client.batches(*filters):
                yield from map(_info, batch)

    def close(self) -> None:
        self._client.channel.close()


@contextmanager
def _errors(method: str) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise error_from_peer(error, doing=method) from error


def _mounts(answer: Sequence[Any]) -> list[Mount]:
    return [Mount(item.type, item.source, tuple(item.options)) for item in answer]


def _info(info: Message) -> Info:
    return Info(
        info.name,
        Kind(info.kind),
        info.parent,
        dict(info.labels),
        info.created_at.seconds * 1_000_000_000 + info.created_at.nanos,
        info.updated_at.seconds * 1_000_000_000 + info.updated_at.nanos,
    )

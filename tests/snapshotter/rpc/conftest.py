from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter import Snapshotter
from snapshotter.rpc.server import Server
from snapshotter.rpc.snapshots_v1 import SnapshotsService
from tests.snapshotter.rpc.client import Client


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A directory with a short path: a socket's has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="lcow-") as name:
        yield Path(name)


@pytest.fixture
def server(store: Snapshotter, sockets: Path) -> Iterator[Path]:
    """A server of `store` in this process; its socket."""
    path = sockets / "s"
    running = Server.start(path, [SnapshotsService(store)])
    yield path
    assert running.stop(grace_s=5)


@pytest.fixture
def client(server: Path) -> Iterator[Client]:
    with Client(server) as connected:
        yield connected

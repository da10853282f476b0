from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter import Snapshotter
from snapshotter.platform import Platform
from snapshotter.rpc.endpoint import endpoint_at
from snapshotter.rpc.server import Server
from snapshotter.rpc.snapshots_v1 import SnapshotsService
from tests.fakes.ntfs import NtfsPlatform
from tests.fakes.pipeclients import dialled_by_socket
from tests.fakes.pipes import FakePipes
from tests.snapshotter.rpc.client import Client


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A directory with a short path: a socket's has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="lcow-") as name:
        yield Path(name)


@pytest.fixture
def computer() -> Iterator[FakePipes]:
    """The named pipes of a Windows computer, used as they may be, and nothing left of ours."""
    pipes = FakePipes()
    yield pipes
    assert pipes.misuse == []
    assert pipes.left == []


@pytest.fixture
def server(
    store: Snapshotter, sockets: Path, platform: Platform, computer: FakePipes
) -> Iterator[Path]:
    """A server of `store` in this process, behind a named pipe where its volume is NTFS.

    Yields the socket to dial.
    """
    path = sockets / "s"
    with contextlib.ExitStack() as stack:
        if isinstance(platform, NtfsPlatform):
            stack.enter_context(dialled_by_socket(computer, "\\\\.\\pipe\\lcow", path))
            endpoint = endpoint_at("npipe:////./pipe/lcow", pipes=computer.calls)
            running = Server.start(endpoint, [SnapshotsService(store)])
        else:
            running = Server.start(path, [SnapshotsService(store)])
        yield path
        assert running.stop(grace_s=5)


@pytest.fixture
def client(server: Path) -> Iterator[Client]:
    with Client(server) as connected:
        yield connected

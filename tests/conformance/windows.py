"""A service as containerd for Windows finds it: behind a named pipe, here a played one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snapshotter.rpc.endpoint import Endpoint, endpoint_at
from tests.fakes.pipeclients import dialled_by_socket
from tests.fakes.pipes import FakePipes


@contextmanager
def behind_a_pipe(socket: Path) -> Iterator[Endpoint]:
    """Where to serve so that `socket` leads to the service through a Windows computer's pipe."""
    computer = FakePipes()
    with dialled_by_socket(computer, "\\\\.\\pipe\\lcow", socket):
        yield endpoint_at("npipe:////./pipe/lcow", pipes=computer.calls)
    assert computer.misuse == computer.left == []

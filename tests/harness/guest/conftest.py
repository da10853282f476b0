"""A guest agent in this process, on an operating system that is played, and a client of it."""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import itertools
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.gcs.guest import GuestClient
from harness.gcs.prot import StdioPorts
from harness.guest.agent import Agent
from harness.guest.log import Log
from tests.fakes.guest_os import FakeGuestOs, SocketByteStream


@dataclass
class Streams:
    """The host's ends of a process's streams."""

    ports: StdioPorts
    stdin: socket.socket
    stdout: socket.socket
    stderr: socket.socket

    def output(self) -> bytes:
        return read_all(self.stdout)

    def errors(self) -> bytes:
        return read_all(self.stderr)

    def close(self) -> None:
        for end in (self.stdin, self.stdout, self.stderr):
            end.close()


def read_all(end: socket.socket) -> bytes:
    """Read a stream to its end and close our half, as a host does."""
    end.settimeout(10)
    data = b""
    while chunk := end.recv(65536):
        data += chunk
    end.close()
    return data


@dataclass
class Guest:
    """An agent that serves, its operating system, and what the host has of it."""

    os: FakeGuestOs
    agent: Agent
    console: list[str]
    client: GuestClient
    _sockets: list[socket.socket] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(0x40000001))
    _streams: list[Streams] = field(default_factory=list)

    def streams(self) -> Streams:
        """Listen on three new ports."""
        ports = [next(self._numbers) for _ in range(3)]
        ends = [self.os.listen(port) for port in ports]
        streams = Streams(StdioPorts(*ports), *ends)
        self._streams.append(streams)
        return streams

    def run(
        self,
        container: str | None,
        args: Sequence[str] = (),
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
    ) -> tuple[int, bytes, bytes]:
        """Run a process to its end: exit code, stdout, stderr."""
        streams = self.streams()
        process = self.client.execute_process(
            container, args=args, env=env, cwd=cwd, stdio=streams.ports
        )
        output, errors = streams.output(), streams.errors()
        code = self.client.wait_process(container, process, timeout_s=10)
        streams.close()
        return code, output, errors

    def reconnect(self) -> GuestClient:
        """Give up the bridge and return a client of a new one, not negotiated."""
        self.client.close()
        for thread in self._threads:
            thread.join(5)
        self.client = connect(self.agent, self._sockets, self._threads)
        return self.client

    def close(self) -> None:
        self.client.close()
        for streams in self._streams:
            streams.close()
        for thread in self._threads:
            thread.join(5)
        for end in self._sockets:
            end.close()
        self.os.close()


def connect(
    agent: Agent, sockets: list[socket.socket], threads: list[threading.Thread]
) -> GuestClient:
    host, guest = socket.socketpair()
    sockets.append(guest)
    thread = threading.Thread(target=agent.serve, args=(SocketByteStream(guest),), daemon=True)
    thread.start()
    threads.append(thread)
    return GuestClient.connect(host)


@pytest.fixture
def unnegotiated(tmp_path: Path) -> Iterator[Guest]:
    """A guest whose bridge is connected, and no more."""
    console: list[str] = []
    system = FakeGuestOs(tmp_path)
    agent = Agent(system, Log(console.append))
    sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []
    guest = Guest(system, agent, console, connect(agent, sockets, threads), sockets, threads)
    yield guest
    guest.close()


@pytest.fixture
def guest(unnegotiated: Guest) -> Guest:
    """A guest that serves requests."""
    unnegotiated.client.negotiate(timeout_s=5)
    return unnegotiated

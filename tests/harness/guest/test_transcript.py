"""Our agent answers hcsshim's host, which speaks as Go writes JSON, as Microsoft's guest does."""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import json
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from harness.gcs.codec import Frame, FrameDecoder
from harness.gcs.prot import CONTAINER_NOTIFICATION
from tests.fakes.guest_os import SocketByteStream
from tests.harness.gcs import transcript as said
from tests.harness.gcs.transcript import CONTAINER, POD, Exchange
from tests.harness.guest.conftest import Guest


class Host:
    """Hcsshim's host: asks word for word, and keeps notifications apart."""

    def __init__(self, connected: socket.socket) -> None:
        self.pid = 0
        self.notifications: list[Frame] = []
        self._socket = connected
        self._decoder = FrameDecoder(max_frame=0x10000)
        self._frames: list[Frame] = []
        self._number = 0

    def ask(self, exchange: Exchange) -> None:
        """Send a request and compare the answer. Notes the id of a process that it starts."""
        body = exchange.asked.replace("$PID", str(self.pid)).encode() + b"\n"
        number, self._number = self._number, self._number + 1
        self._socket.sendall(struct.pack("<IIQ", exchange.request, 16 + len(body), number) + body)
        answer = self._next()
        assert (answer.type, answer.id) == (exchange.request + 0x10000000, number)
        found = json.loads(answer.body)
        if "ProcessId" in found:
            self.pid = found["ProcessId"]
        if "GuestStacks" in found:
            assert "Thread" in found["GuestStacks"] or "thread" in found["GuestStacks"]
            found["GuestStacks"] = "$TEXT"
        assert found == json.loads(exchange.answered.replace("$PID", str(self.pid)))

    def wait_notification(self) -> Frame:
        while not self.notifications:
            self._receive()
            self._sort()
        return self.notifications.pop(0)

    def _next(self) -> Frame:
        while not self._frames:
            self._receive()
            self._sort()
        return self._frames.pop(0)

    def _receive(self) -> None:
        data = self._socket.recv(65536)
        assert data, "the agent closed the bridge"
        self._received = self._decoder.feed(data)

    def _sort(self) -> None:
        for frame in self._received:
            told = frame.type == CONTAINER_NOTIFICATION
            (self.notifications if told else self._frames).append(frame)
        self._received = []


@pytest.fixture
def host(unnegotiated: Guest) -> Iterator[Host]:
    """A host on a bridge of its own."""
    unnegotiated.client.close()
    ours, agents = socket.socketpair()
    ours.settimeout(10)
    serving = threading.Thread(
        target=unnegotiated.agent.serve, args=(SocketByteStream(agents),), daemon=True
    )
    with ours, agents:
        serving.start()
        yield Host(ours)
        ours.shutdown(socket.SHUT_RDWR)
        serving.join(10)


def test_a_containers_life_is_answered_as_microsofts_guest_answers(
    unnegotiated: Guest, host: Host
) -> None:
    system = unnegotiated.os
    host.ask(ours(said.NEGOTIATE))
    system.attach(0, 1)
    system.attach(1, 3)
    for each in (said.MOUNT_LAYER, said.MOUNT_SCRATCH, said.COMBINE, said.CREATE, said.START):
        host.ask(each)
    streams = [system.listen(port) for port in (0x40000001, 0x40000002)]
    host.ask(said.EXECUTE_INIT)
    group = system.at("/sys/fs/cgroup/c1")
    group.mkdir(parents=True)
    (group / "cgroup.procs").write_text("77\n")
    process = system.at(f"/proc/{host.pid}")
    process.mkdir(parents=True)
    (process / "cgroup").write_text("0::/c1\n")
    for each in (said.PROPERTIES, said.RESIZE_REFUSED, said.SIGNAL):
        host.ask(each)
    for stream in streams:
        with stream:
            assert stream.recv(1) == b"", "half-closed by the guest"
    host.ask(said.WAIT)
    told = host.wait_notification()
    assert (told.id, json.loads(told.body)) == (0, json.loads(said.EXITED))
    for each in (said.UNCOMBINE, said.DELETE, said.DELETE_AGAIN):
        host.ask(each)
    assert not system.exists(f"{POD}/scratch/{CONTAINER}")
    for each in (said.UNMOUNT_SCRATCH, said.UNMOUNT_LAYER, said.EJECT):
        host.ask(each)
    assert system.mounts == []


def test_processes_of_the_utility_vm_and_what_it_does_not_know(host: Host) -> None:
    host.ask(ours(said.NEGOTIATE))
    for each in (said.EXECUTE_IN_UVM, said.KILL_IN_UVM, said.WAIT_IN_UVM, said.STACKS):
        host.ask(each)
    host.ask(said.UNKNOWN)


def ours(negotiation: Exchange) -> Exchange:
    """Return it with the one capability that is ours, and that hcsshim's host does not look at."""
    named = '"DeleteContainerStateSupported":true'
    answered = negotiation.answered.replace(named, f'{named},"EjectManySupported":true')
    return Exchange(negotiation.request, negotiation.asked, answered)

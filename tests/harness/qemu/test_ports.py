"""Streams between a guest's ports and their consumers; the guest's end is the same multiplex."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import ComputeServiceError, SystemExitedError
from harness.gcs.mux import (
    Accepted,
    DataReceived,
    MuxEndpoint,
    MuxEvent,
    MuxRole,
    PeerFinished,
    PeerReset,
    Refused,
)
from harness.hcs.service import BRIDGE_PORT, StreamEndpoint
from harness.hcs.streams import open_listener
from harness.qemu.loop import IoLoop
from harness.qemu.ports import PortTable

PORT = 0x40000001
MIB = 1 << 20


class Guest:
    """The guest's ends of both ports, used synchronously."""

    def __init__(self, gcs: socket.socket, stdio: socket.socket) -> None:
        self.gcs, self.stdio = gcs, stdio
        self.mux = MuxEndpoint(MuxRole.GUEST)
        self.data = bytearray()
        for port in (gcs, stdio):
            port.settimeout(5.0)

    def flush(self) -> None:
        self.stdio.sendall(self.mux.data_to_send())

    def until(self, kind: type[MuxEvent]) -> MuxEvent:
        """Receive until an event of a kind; data is collected and consumed."""
        while True:
            self.flush()
            for event in self.mux.receive(self.stdio.recv(65536)):
                if isinstance(event, DataReceived):
                    self.data += event.data
                    self.mux.consumed(event.channel, len(event.data))
                if isinstance(event, kind):
                    return event

    def dial(self, port: int) -> int:
        channel = self.mux.dial(port)
        self.until(Accepted)
        return channel

    def send(self, channel: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            sent = self.mux.send(channel, view)
            view = view[sent:]
            self.flush()
            if view and not sent:
                self.mux.receive(self.stdio.recv(65536))


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[tuple[PortTable, Guest, IoLoop]]:
    loop = IoLoop("test")
    loop.start()
    gcs, guest_gcs = socket.socketpair()
    stdio, guest_stdio = socket.socketpair()
    table = PortTable(loop, tmp_path, gcs=gcs, stdio=stdio)
    table.start()
    yield table, Guest(guest_gcs, guest_stdio), loop
    table.close()
    loop.stop()
    guest_gcs.close()
    guest_stdio.close()
    assert list(tmp_path.iterdir()) == []


def take(endpoint: StreamEndpoint) -> socket.socket:
    stream = open_listener(endpoint).accept(5.0)
    stream.settimeout(5.0)
    return stream


def read_all(stream: socket.socket) -> bytes:
    data = bytearray()
    while part := stream.recv(65536):
        data += part
    return bytes(data)


def test_a_dialed_port_carries_bytes_both_ways_and_half_closes(
    ports: tuple[PortTable, Guest, IoLoop],
) -> None:
    table, guest, _ = ports
    with take(table.listen(PORT)) as stream:
        channel = guest.dial(PORT)
        stream.sendall(b"input")
        stream.shutdown(socket.SHUT_WR)
        guest.until(PeerFinished)
        assert guest.data == b"input"
        guest.send(channel, b"output")
        guest.mux.finish(channel)
        guest.flush()
        assert read_all(stream) == b"output"
    assert guest.mux.channels == frozenset()


def test_a_port_nobody_listens_on_is_refused(ports: tuple[PortTable, Guest, IoLoop]) -> None:
    _, guest, _ = ports
    guest.mux.dial(109)
    guest.until(Refused)


def test_the_guest_may_dial_before_the_consumer_connects(
    ports: tuple[PortTable, Guest, IoLoop],
) -> None:
    table, guest, _ = ports
    endpoint = table.listen(PORT)
    channel = guest.dial(PORT)
    guest.send(channel, b"early")
    guest.mux.finish(channel)
    guest.flush()
    with take(endpoint) as stream:
        assert read_all(stream) == b"early"


def test_megabytes_pass_unharmed_in_both_directions(
    ports: tuple[PortTable, Guest, IoLoop],
) -> None:
    table, guest, _ = ports
    sent = bytes(range(256)) * (4 * MIB // 256)
    with take(table.listen(PORT)) as stream:
        channel = guest.dial(PORT)

        def feed() -> None:
            stream.sendall(sent)
            stream.shutdown(socket.SHUT_WR)

        feeder = threading.Thread(target=feed)
        feeder.start()
        guest.until(PeerFinished)
        feeder.join()
        assert guest.data == sent
        received: list[bytes] = []
        reader = threading.Thread(target=lambda: received.append(read_all(stream)))
        reader.start()
        guest.send(channel, sent)
        guest.mux.finish(channel)
        guest.flush()
        reader.join()
        assert received == [sent]


def test_a_consumer_that_does_not_read_stops_the_guest_and_nobody_else(
    ports: tuple[PortTable, Guest, IoLoop],
) -> None:
    table, guest, _ = ports
    with take(table.listen(PORT)) as slow, take(table.listen(PORT + 1)) as quick:
        flood, other = guest.dial(PORT), guest.dial(PORT + 1)
        sent = 0
        while count := guest.mux.send(flood, bytes(65536)):
            sent += count
            guest.flush()
        guest.send(other, b"alive")
        assert quick.recv(5) == b"alive"
        guest.mux.finish(flood)
        guest.flush()
        taker = threading.Thread(target=lambda: received.append(len(read_all(slow))))
        received: list[int] = []
        taker.start()
        taker.join()
        assert received == [sent]


def test_a_consumer_that_leaves_resets_the_channel(
    ports: tuple[PortTable, Guest, IoLoop],
) -> None:
    table, guest, _ = ports
    stream = take(table.listen(PORT))
    channel = guest.dial(PORT)
    stream.close()
    guest.until(PeerFinished)
    guest.send(channel, b"to nobody")
    guest.until(PeerReset)


def test_a_port_can_be_given_up_and_listened_on_again(
    ports: tuple[PortTable, Guest, IoLoop],
) -> None:
    table, guest, _ = ports
    with take(table.listen(PORT)) as stream:
        with pytest.raises(ComputeServiceError, match="already"):
            table.listen(PORT)
        table.unlisten(PORT)
        table.unlisten(PORT)
        assert stream.recv(1) == b""
    with take(table.listen(PORT)):
        guest.dial(PORT)
        table.unlisten(PORT)  # too late: it was dialed
        take(table.listen(PORT)).close()


def test_the_bridge_is_the_port_gcs_byte_for_byte(ports: tuple[PortTable, Guest, IoLoop]) -> None:
    table, guest, _ = ports
    guest.gcs.sendall(b"before the consumer came")
    with take(table.listen(BRIDGE_PORT)) as bridge:
        assert bridge.recv(64) == b"before the consumer came"
        bridge.sendall(b"request")
        assert guest.gcs.recv(64) == b"request"
        guest.gcs.sendall(b"last words")
        guest.gcs.close()
        assert read_all(bridge) == b"last words"


def test_a_bridge_that_the_host_leaves_ends_in_the_guest(
    ports: tuple[PortTable, Guest, IoLoop],
) -> None:
    table, guest, _ = ports
    bridge = take(table.listen(BRIDGE_PORT))
    bridge.sendall(b"bye")
    bridge.close()
    assert read_all(guest.gcs) == b"bye"


def test_every_stream_ends_with_the_machine_after_what_it_sent(
    ports: tuple[PortTable, Guest, IoLoop],
) -> None:
    table, guest, loop = ports
    with take(table.listen(PORT)) as stream, take(table.listen(PORT + 1)) as undialed:
        channel = guest.dial(PORT)
        guest.send(channel, b"last words")
        guest.gcs.close()
        guest.stdio.close()
        loop.run(table.guest_gone)
        assert read_all(stream) == b"last words"
        assert read_all(undialed) == b""
    with pytest.raises(SystemExitedError):
        table.listen(PORT)


def test_a_guest_that_breaks_the_multiplex_loses_its_streams(
    ports: tuple[PortTable, Guest, IoLoop], caplog: pytest.LogCaptureFixture
) -> None:
    table, guest, _ = ports
    with take(table.listen(PORT)) as stream:
        guest.dial(PORT)
        guest.stdio.sendall(b"\xff" * 64)
        assert read_all(stream) == b""
    assert "multiplex" in caplog.text

"""The guest's dialed connections over one port, against a host played with the same protocol."""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import fcntl
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from harness.gcs.mux import (
    HOST_WINDOW,
    DataReceived,
    Dialed,
    MuxEndpoint,
    MuxEvent,
    MuxRole,
    PeerFinished,
)
from harness.guest.muxlink import MuxConnection, MuxLink
from harness.guest.transport import PipeMover
from tests.fakes.guest_os import SocketByteStream


class PlayedHost:
    """The host's end of the port; accepts dials to even ports."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.mux = MuxEndpoint(MuxRole.HOST)
        self.received: dict[int, bytes] = {}
        self.finished: set[int] = set()
        self.consumes = True
        self.changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def flush(self) -> None:
        if data := self.mux.data_to_send():
            self.end.sendall(data)

    def wait(self, channel: int, size: int) -> bytes:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.received.get(channel, b"")) >= size, 5)
            return self.received[channel]

    def _serve(self) -> None:
        try:
            while data := self.end.recv(65536):
                with self.changed:
                    for event in self.mux.receive(data):
                        self._take(event)
                    self.flush()
                    self.changed.notify_all()
        except OSError:
            pass

    def _take(self, event: MuxEvent) -> None:
        if isinstance(event, Dialed):
            if event.port % 2:
                self.mux.refuse(event.channel)
            else:
                self.mux.accept(event.channel)
        elif isinstance(event, DataReceived):
            self.received[event.channel] = self.received.get(event.channel, b"") + event.data
            if self.consumes:
                self.mux.consumed(event.channel, len(event.data))
        elif isinstance(event, PeerFinished):
            self.finished.add(event.channel)


@pytest.fixture
def ends() -> Iterator[tuple[MuxLink, PlayedHost]]:
    guest_end, host_end = socket.socketpair()
    violations: list[str] = []
    link = MuxLink(
        SocketByteStream(guest_end),
        on_violation=violations.append,
        move=PipeMover(guest_end.fileno()),
    )
    link.start()
    host = PlayedHost(host_end)
    yield link, host
    host_end.shutdown(socket.SHUT_RDWR)
    host_end.close()
    guest_end.close()
    assert not violations


def test_bytes_go_both_ways_and_end(ends: tuple[MuxLink, PlayedHost]) -> None:
    link, host = ends
    connection = link.dial(2)
    connection.send(b"question" * 10_000)
    assert host.wait(connection.channel, 80_000) == b"question" * 10_000
    with host.changed:
        host.mux.send(connection.channel, b"answer")
        host.mux.finish(connection.channel)
        host.flush()
    assert connection.receive() == b"answer"
    assert connection.receive() == b""
    connection.finish()
    connection.close()


def test_a_port_nobody_listens_on_is_refused(ends: tuple[MuxLink, PlayedHost]) -> None:
    link, _ = ends
    with pytest.raises(ConnectionRefusedError, match="0x3"):
        link.dial(3)


def test_a_host_that_does_not_consume_holds_one_sender_and_no_other(
    ends: tuple[MuxLink, PlayedHost],
) -> None:
    link, host = ends
    host.consumes = False
    slow, quick = link.dial(2), link.dial(4)
    sender = threading.Thread(target=slow.send, args=(b"x" * (HOST_WINDOW + 1),))
    sender.start()
    host.wait(slow.channel, HOST_WINDOW)
    quick.send(b"through")
    assert host.wait(quick.channel, 7) == b"through"
    assert sender.is_alive()
    with host.changed:
        host.mux.consumed(slow.channel, HOST_WINDOW)
        host.flush()
    sender.join(5)
    assert not sender.is_alive()


def test_what_waits_in_pipes_goes_in_order_beside_what_others_send(
    ends: tuple[MuxLink, PlayedHost],
) -> None:
    link, host = ends
    texts = {link.dial(2): b"one " * 50_000, link.dial(4): b"two\n" * 60_000}
    written = link.dial(6)

    def pump(connection: MuxConnection, text: bytes) -> None:
        reader, writer = os.pipe()
        for at in range(0, len(text), 50_000):
            os.write(writer, text[at : at + 50_000])
            connection.send_pipe(reader, len(text[at : at + 50_000]))
        os.close(reader)
        os.close(writer)

    threads = [threading.Thread(target=pump, args=each) for each in texts.items()]
    for thread in threads:
        thread.start()
    for _ in range(200):
        written.send(b"between" * 10)
    for connection, text in texts.items():
        assert host.wait(connection.channel, len(text)) == text
    assert host.wait(written.channel, 14_000) == b"between" * 2000
    for thread in threads:
        thread.join(5)


def test_a_writer_that_takes_its_output_back_stops_nobody(
    ends: tuple[MuxLink, PlayedHost],
) -> None:
    link, host = ends
    connection = link.dial(2)
    reader, writer = os.pipe()
    os.write(writer, b"kept")
    connection.send_pipe(reader, 10_000)
    assert host.wait(connection.channel, 10_000) == b"kept".ljust(10_000, b"\0")
    os.close(reader)
    os.close(writer)


def test_a_pipe_of_many_small_pieces_arrives_whole(ends: tuple[MuxLink, PlayedHost]) -> None:
    link, host = ends
    connection = link.dial(2)
    reader, writer = os.pipe2(os.O_DIRECT)  # every write has a page of its own
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1024 * 1024)
    text = b"".join(b"%6d" % number for number in range(250))
    for at in range(0, len(text), 6):
        os.write(writer, text[at : at + 6])
    connection.send_pipe(reader, len(text))
    assert host.wait(connection.channel, len(text)) == text
    os.close(reader)
    os.close(writer)


def test_a_reset_wakes_receiver_and_sender(ends: tuple[MuxLink, PlayedHost]) -> None:
    link, host = ends
    connection = link.dial(2)
    failures: list[BaseException] = []

    def receive() -> None:
        try:
            connection.receive()
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=receive)
    thread.start()
    with host.changed:
        host.mux.reset(connection.channel)
        host.flush()
    thread.join(5)
    assert isinstance(failures[0], ConnectionResetError)
    with pytest.raises(OSError, match="dropped"):
        connection.send(b"late")


def test_nothing_for_a_while_is_a_timeout(ends: tuple[MuxLink, PlayedHost]) -> None:
    link, _ = ends
    connection = link.dial(2)
    with pytest.raises(TimeoutError):
        connection.receive(timeout_s=0.02)
    connection.close()
    with pytest.raises(BrokenPipeError):
        connection.receive()


def test_the_hosts_end_wakes_everybody_and_refuses_new_dials() -> None:
    guest_end, host_end = socket.socketpair()
    link = MuxLink(SocketByteStream(guest_end), on_violation=lambda _: None)
    link.start()
    host = PlayedHost(host_end)
    connection = link.dial(2)
    host_end.shutdown(socket.SHUT_RDWR)
    with pytest.raises(OSError, match="gone"):
        connection.receive(timeout_s=5)
    with pytest.raises(OSError, match="gone"):
        link.dial(2)
    assert host.finished == set()
    host_end.close()
    guest_end.close()


def test_a_host_that_breaks_the_protocol_is_reported() -> None:
    guest_end, host_end = socket.socketpair()
    violations: list[str] = []
    link = MuxLink(SocketByteStream(guest_end), on_violation=violations.append)
    link.start()
    host_end.sendall(b"\xff" * 8)
    with pytest.raises(OSError, match="unknown frame type"):
        link.dial(2)
    assert violations
    host_end.close()
    guest_end.close()

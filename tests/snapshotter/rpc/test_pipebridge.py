"""From a named pipe to a server on loopback: what is relayed, what ends, and who is let in."""

from __future__ import annotations

import contextlib
import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from snapshotter import Snapshotter
from snapshotter.errors import UnavailableError
from snapshotter.mounts import Mount
from snapshotter.platform.namedpipe import PipeListener
from snapshotter.rpc import messages
from snapshotter.rpc.backend import Backend
from snapshotter.rpc.endpoint import PipeEndpoint, endpoint_at
from snapshotter.rpc.innerhop import AnnouncedPeers, inner_connection
from snapshotter.rpc.pipebridge import PipeBridge
from snapshotter.rpc.server import Server
from snapshotter.rpc.snapshots_v1 import SnapshotsService
from tests.fakes.pipeclients import dialled_by_socket
from tests.fakes.pipes import FakePipes
from tests.snapshotter.rpc.client import SNAPSHOTS, Client

PIPE = "\\\\.\\pipe\\lcow"
MIB = 1 << 20


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# -- bytes


class Plain:
    """A TCP server in gRPC's place, and the bridge that leads to it."""

    def __init__(self, computer: FakePipes, *, max_clients: int = 8) -> None:
        self.computer = computer
        self.door = socket.create_server(("127.0.0.1", 0))
        self.listener = PipeListener.open(computer.calls(), PIPE, max_clients=max_clients)
        self.peers = AnnouncedPeers()
        self.bridge = PipeBridge(self.listener, self.door.getsockname()[1], self.peers)
        self.bridge.start()

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """A client's end, and the server's."""
        client = self.computer.dial(PIPE)
        client.settimeout(30)
        inner, _ = self.door.accept()
        inner.settimeout(30)
        return client, inner

    def close(self, *, grace_s: float = 30) -> bool:
        idle = self.bridge.close(grace_s=grace_s)
        self.listener.close()
        self.door.close()
        return idle


@pytest.fixture
def plain(computer: FakePipes) -> Iterator[Plain]:
    relay = Plain(computer)
    yield relay
    assert relay.close()


def received(connection: socket.socket) -> bytes:
    """Everything until the end."""
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def test_both_directions_are_relayed_at_the_same_time(plain: Plain) -> None:
    there, back = bytes(range(256)) * 8192, bytes(reversed(range(256))) * 8192
    client, inner = plain.connect()
    with client, inner, ThreadPoolExecutor(3) as pool:
        sending = [pool.submit(client.sendall, there), pool.submit(inner.sendall, back)]
        arrived = pool.submit(lambda: b"".join(_exactly(inner, len(there))))
        assert b"".join(_exactly(client, len(back))) == back
        assert arrived.result(timeout=30) == there
        for each in sending:
            each.result(timeout=30)


def _exactly(connection: socket.socket, length: int) -> Iterator[bytes]:
    while length:
        part = connection.recv(min(length, 1 << 16))
        assert part, "it ended"
        length -= len(part)
        yield part


def test_a_client_that_closes_is_an_end_of_input(plain: Plain) -> None:
    client, inner = plain.connect()
    with inner:
        client.sendall(b"all")
        client.close()
        assert received(inner) == b"all"
        inner.sendall(b"nobody reads this")


def test_what_the_server_sent_before_it_closed_arrives_though_the_client_reads_late(
    plain: Plain,
) -> None:
    data = bytes(range(256)) * (16 << 12)  # more than all buffers on the way
    client, inner = plain.connect()
    with client, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(inner.sendall, data)
        time.sleep(0.1)
        sending.add_done_callback(lambda _: inner.close())
        assert received(client) == data
        sending.result(timeout=30)


def test_who_does_not_read_is_not_read_from(plain: Plain) -> None:
    client, inner = plain.connect()
    with client, inner:
        for sender, receiver in ((client, inner), (inner, client)):
            sender.setblocking(False)
            sent = 0
            with contextlib.suppress(BlockingIOError):
                for _ in itertools.repeat(None, 1000):
                    # Buffers of two sockets fill, none of ours grows.
                    sent += sender.send(bytes(1 << 16))
                    time.sleep(0.0005)
            assert sent < 32 * MIB
            sender.settimeout(30)
            assert sum(map(len, _exactly(receiver, sent))) == sent


@pytest.mark.parametrize("gone", ["client", "server"])
def test_a_peer_that_dies_in_the_middle_ends_the_other_one(plain: Plain, gone: str) -> None:
    client, inner = plain.connect()
    dying, other = (client, inner) if gone == "client" else (inner, client)
    with other:
        other.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                other.send(bytes(1 << 16))  # which nobody reads
        dying.close()
        other.settimeout(30)
        with contextlib.suppress(ConnectionError):
            assert received(other) == b""
    until(lambda: plain.computer.instances(PIPE) == 1)


def test_a_client_that_reads_nothing_is_cut_off_when_the_grace_is_over(
    computer: FakePipes, caplog: pytest.LogCaptureFixture
) -> None:
    plain = Plain(computer)
    client, inner = plain.connect()
    with client:
        inner.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                inner.send(bytes(1 << 16))
        inner.close()
        with caplog.at_level(logging.WARNING):
            assert not plain.close(grace_s=0.05)
    assert "1 clients" in caplog.text


def test_a_client_that_waits_for_room_gets_its_turn_or_the_end(computer: FakePipes) -> None:
    plain = Plain(computer, max_clients=1)
    client, inner = plain.connect()
    waiting = computer.dial(PIPE)
    waiting.settimeout(30)
    waiting.sendall(b"patient")
    inner.close()
    client.close()
    inner, _ = plain.door.accept()
    assert inner.recv(100) == b"patient"
    late = computer.dial(PIPE)
    late.settimeout(30)
    with late, waiting:
        plain.bridge.stop_accepting()
        inner.sendall(b"answer")
        assert waiting.recv(100) == b"answer"  # the one that is served goes on
        inner.close()
        assert plain.close()
        assert received(late) == b""


def test_a_client_without_a_server_is_closed(
    computer: FakePipes, caplog: pytest.LogCaptureFixture
) -> None:
    plain = Plain(computer)
    plain.door.close()
    with computer.dial(PIPE) as client, caplog.at_level(logging.WARNING):
        client.settimeout(30)
        assert received(client) == b""
        assert plain.close()
    assert "a client" in caplog.text


def test_a_system_short_of_something_is_told_of_once_and_asked_again(
    computer: FakePipes, caplog: pytest.LogCaptureFixture
) -> None:
    computer.failing["ConnectNamedPipe"] = [1450, 1450]
    with caplog.at_level(logging.WARNING):
        plain = Plain(computer)
        until(lambda: not computer.failing["ConnectNamedPipe"])
        client, inner = plain.connect()
        client.close()
        inner.close()
        assert plain.close()
    assert caplog.text.count("cannot take clients") == 1


def test_a_system_without_threads_refuses_a_client_and_serves_the_next_one(
    computer: FakePipes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Plain(computer)
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(threading.Thread, "start", _no_more_threads)
        with computer.dial(PIPE) as refused:
            refused.settimeout(30)
            assert received(refused) == b""
        assert "is refused" in caplog.text
    plain.door.accept()[0].close()  # the hop of the refused one
    client, inner = plain.connect()
    with client, inner:
        client.sendall(b"next")
        assert inner.recv(100) == b"next"
    assert plain.close()


def _no_more_threads(thread: threading.Thread) -> None:
    raise RuntimeError(f"can't start new thread {thread.name}")


def test_a_port_is_trusted_while_the_connection_is_held_and_no_longer() -> None:
    class Caller:
        """A call from a source port."""

        def __init__(self, peer: str) -> None:
            self._peer = peer

        def peer(self) -> str:
            return self._peer

        def abort(self, code: grpc.StatusCode, details: str) -> None:
            raise PermissionError(code, details)

    def serve(request: object, call: object) -> bytes:
        del request, call
        return b"served"

    def attempt(peer: str) -> bool:
        handler = grpc.unary_unary_rpc_method_handler(serve)
        guarded = peers.intercept_service(lambda _: handler, None)
        try:
            return bool(guarded.unary_unary(None, Caller(peer)) == b"served")
        except PermissionError:
            return False

    peers = AnnouncedPeers()
    with (
        socket.create_server(("127.0.0.1", 0)) as door,
        inner_connection(door.getsockname()[1], peers) as inner,
    ):
        port = inner.getsockname()[1]
        assert attempt(f"ipv4:127.0.0.1:{port}")
        assert attempt(f"ipv6:%5B::ffff:127.0.0.1%5D:{port}")
        for other in (
            f"ipv4:127.0.0.1:{port + 1}",
            f"ipv4:127.0.0.2:{port}",
            f"ipv6:%5B::1%5D:{port}",
            "unix:",
            "",
        ):
            assert not attempt(other)
    assert not attempt(f"ipv4:127.0.0.1:{port}")
    assert peers.intercept_service(lambda _: None, None) is None


# -- gRPC


class Slow:
    """A backend whose Prepare takes until it is let go."""

    def __init__(self, store: Snapshotter) -> None:
        self._store = store
        self.entered = threading.Event()
        self.released = threading.Event()

    def prepare(self, key: str, parent: str = "", *, labels: Mapping[str, str]) -> list[Mount]:
        self.entered.set()
        self.released.wait(30)
        return self._store.prepare(key, parent, labels=labels)


@pytest.fixture
def windows(tmp_path: Path) -> Iterator[Snapshotter]:
    with Snapshotter.open(tmp_path / "root", durable=False) as store:
        yield store


def pipe_endpoint(computer: FakePipes) -> PipeEndpoint:
    endpoint = endpoint_at("npipe:////./pipe/lcow", pipes=computer.calls)
    assert isinstance(endpoint, PipeEndpoint)
    return endpoint


def test_another_user_of_the_machine_is_refused_at_the_loopback_port(
    windows: Snapshotter, computer: FakePipes, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = pipe_endpoint(computer)
    server = Server.start(endpoint, [SnapshotsService(windows)])
    windows.prepare("a")
    calls: list[tuple[str, Any]] = [
        (f"{SNAPSHOTS}/Remove", messages.RemoveSnapshotRequest(key="a")),
        (f"{SNAPSHOTS}/Prepare", messages.PrepareSnapshotRequest(key="b")),
        (f"{SNAPSHOTS}/Stat", messages.StatSnapshotRequest(key="a")),
        ("grpc.health.v1.Health/Check", messages.HealthCheckRequest()),
    ]
    with grpc.insecure_channel(f"127.0.0.1:{endpoint.port}") as channel:
        for method, request in calls:
            call = channel.unary_unary(
                f"/{method}", request_serializer=lambda message: message.SerializeToString()
            )
            with pytest.raises(grpc.RpcError) as caught:
                call(request, timeout=30)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "named pipe" in caught.value.details()
        stream = channel.unary_stream(
            f"/{SNAPSHOTS}/List", request_serializer=lambda message: message.SerializeToString()
        )
        with pytest.raises(grpc.RpcError) as caught:
            list(stream(messages.ListSnapshotsRequest(), timeout=30))
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert [info.name for info in windows.walk()] == ["a"]
    assert caplog.text.count("dials the port behind the named pipe") == 1
    assert server.stop(grace_s=5)


def test_a_call_under_way_at_the_stop_gets_its_answer_through_the_pipe(
    windows: Snapshotter, computer: FakePipes, sockets: Path
) -> None:
    slow = Slow(windows)
    server = Server.start(pipe_endpoint(computer), [SnapshotsService(cast("Backend", slow))])
    with (
        dialled_by_socket(computer, PIPE, sockets / "s"),
        Client(sockets / "s") as client,
        ThreadPoolExecutor(2) as pool,
    ):
        made = pool.submit(client.prepare, "a")
        assert slow.entered.wait(30)
        stopped = pool.submit(lambda: server.stop(grace_s=30))
        until(lambda: computer.instances(PIPE) == 1)  # no new clients
        slow.released.set()
        assert stopped.result(timeout=30) is True
        assert made.result(timeout=30)[0].type == "lcow-layer"
    assert [info.name for info in windows.walk()] == ["a"]


def test_a_client_that_is_killed_leaves_the_others_served(
    windows: Snapshotter, computer: FakePipes, sockets: Path
) -> None:
    slow = Slow(windows)
    server = Server.start(pipe_endpoint(computer), [SnapshotsService(cast("Backend", slow))])
    with dialled_by_socket(computer, PIPE, sockets / "s"), ThreadPoolExecutor(2) as pool:
        with Client(sockets / "s") as killed, Client(sockets / "s") as other:
            lost = pool.submit(killed.prepare, "a")
            assert slow.entered.wait(30)
            assert other.health() == 1
            killed.channel.close()
            with pytest.raises(grpc.RpcError):
                lost.result(timeout=30)
            until(lambda: computer.instances(PIPE) == 2)  # its connection is gone
            slow.released.set()
            assert other.prepare("b")[0].type == "lcow-layer"
        assert server.stop(grace_s=30)


def test_clients_that_came_before_the_service_was_ready_are_served(
    computer: FakePipes, sockets: Path
) -> None:
    endpoint = pipe_endpoint(computer)
    with (
        dialled_by_socket(computer, PIPE, sockets / "s"),
        ThreadPoolExecutor(1) as pool,
        endpoint.claimed(),
        Client(sockets / "s") as client,
    ):
        waiting = pool.submit(client.health)
        until(lambda: computer.clients(PIPE) == 1)
        server = grpc.server(ThreadPoolExecutor(2), interceptors=endpoint.interceptors)
        endpoint.bind(server)
        server.start()
        endpoint.open()
        with pytest.raises(grpc.RpcError) as caught:
            waiting.result(timeout=30)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED  # by a server without any
        endpoint.leave()
        server.stop(5).wait()


def test_a_pipe_that_another_server_has_is_left_alone(
    windows: Snapshotter, computer: FakePipes, sockets: Path
) -> None:
    server = Server.start(pipe_endpoint(computer), [SnapshotsService(windows)])
    with pytest.raises(UnavailableError, match="another server has this pipe"):
        Server.start(pipe_endpoint(computer), [SnapshotsService(windows)])
    with dialled_by_socket(computer, PIPE, sockets / "s"), Client(sockets / "s") as client:
        assert client.names() == []
    assert server.stop(grace_s=5)


def test_a_pipe_that_cannot_be_protected_is_not_served(
    windows: Snapshotter, computer: FakePipes
) -> None:
    computer.failing["ConvertStringSecurityDescriptorToSecurityDescriptorW"] = [1336]
    with pytest.raises(UnavailableError, match="cannot listen"):
        Server.start(pipe_endpoint(computer), [SnapshotsService(windows)])
    assert computer.created == []

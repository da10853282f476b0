"""The server side of a named pipe over a stand-in of kernel32."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from snapshotter.platform import winerror
from snapshotter.platform.namedpipe import (
    SYSTEM_AND_ADMINISTRATORS,
    PipeClosedError,
    PipeConnection,
    PipeListener,
    pipe_path,
)
from snapshotter.platform.winerror import winerror_of
from tests.fakes.pipes import FakePipes

PIPE = "\\\\.\\pipe\\lcow"


@pytest.fixture(params=[False, True], ids=["at-once", "pending"])
def computer(request: pytest.FixtureRequest) -> Iterator[FakePipes]:
    """A computer on which transfers end at once where they can, or never do."""
    pipes = FakePipes(always_pending=request.param)
    yield pipes
    assert pipes.misuse == []
    assert pipes.left == []


@pytest.fixture
def listener(computer: FakePipes) -> Iterator[PipeListener]:
    opened = PipeListener.open(computer.calls(), PIPE)
    yield opened
    opened.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def connect(computer: FakePipes, listener: PipeListener) -> tuple[socket.socket, PipeConnection]:
    client = computer.dial(PIPE)
    client.setblocking(True)
    return client, listener.accept()


def read(connection: PipeConnection, length: int = 65536) -> bytes:
    buffer = bytearray(length)
    return bytes(buffer[: connection.read_into(memoryview(buffer))])


def waiting(future: Future[Any]) -> bool:
    """Whether it is still at work after a while."""
    time.sleep(0.05)
    return not future.done()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_bytes_go_both_ways_and_ends_are_seen(computer: FakePipes, listener: PipeListener) -> None:
    client, connection = connect(computer, listener)
    client.sendall(b"request")
    assert read(connection) == b"request"
    connection.write(memoryview(bytearray(b"answer")))
    assert client.recv(100) == b"answer"
    client.close()
    assert read(connection) == b""
    with pytest.raises(BrokenPipeError):
        connection.write(memoryview(bytearray(b"x")))
    connection.close()
    connection.close()


def test_a_client_comes_before_or_while_it_is_waited_for(
    computer: FakePipes, listener: PipeListener, pool: ThreadPoolExecutor
) -> None:
    for early in (True, False):
        client = computer.dial(PIPE) if early else None
        accepting = pool.submit(listener.accept)
        if client is None:
            assert waiting(accepting)
            client = computer.dial(PIPE)
        accepting.result(timeout=30).close()
        client.close()


def test_a_client_that_has_left_before_it_was_served_is_passed_over(
    computer: FakePipes, listener: PipeListener, pool: ThreadPoolExecutor
) -> None:
    computer.dial(PIPE).close()
    accepting = pool.submit(listener.accept)
    until(lambda: len(computer.created) == 2)
    client = computer.dial(PIPE)
    client.sendall(b"x")
    connection = accepting.result(timeout=30)
    assert read(connection) == b"x"
    connection.close()
    client.close()


def test_only_system_and_administrators_are_let_in_and_the_name_is_ours(
    computer: FakePipes, listener: PipeListener
) -> None:
    assert SYSTEM_AND_ADMINISTRATORS == "D:P(A;;GA;;;SY)(A;;GA;;;BA)"
    with pytest.raises(PermissionError) as caught:
        PipeListener.open(computer.calls(), PIPE.upper().replace("PIPE", "pipe"))
    assert winerror_of(caught.value) == winerror.ACCESS_DENIED
    client, connection = connect(computer, listener)
    assert computer.created == [SYSTEM_AND_ADMINISTRATORS] * 2
    connection.close()
    client.close()


def test_an_account_outside_the_access_list_is_told_when_the_second_instance_is_refused(
    computer: FakePipes,
) -> None:
    computer.account = "BU"
    listener = PipeListener.open(computer.calls(), PIPE)
    client, connection = connect(computer, listener)
    with pytest.raises(PermissionError):
        listener.accept()
    listener.close()
    connection.close()
    client.close()


def test_there_is_an_instance_at_every_moment(computer: FakePipes, listener: PipeListener) -> None:
    for _ in range(5):
        client, connection = connect(computer, listener)
        assert computer.instances(PIPE) == 2
        client.close()
        connection.close()
        assert computer.instances(PIPE) == 1


def test_a_client_too_many_waits_and_the_next_ones_find_the_pipe_busy(
    computer: FakePipes, pool: ThreadPoolExecutor
) -> None:
    listener = PipeListener.open(computer.calls(), PIPE, max_clients=2)
    served = [connect(computer, listener) for _ in range(2)]
    early = computer.dial(PIPE)
    with pytest.raises(BlockingIOError) as caught:
        computer.dial(PIPE)
    assert winerror_of(caught.value) == winerror.PIPE_BUSY
    accepting = pool.submit(listener.accept)
    assert waiting(accepting)
    served[0][1].close()
    accepting.result(timeout=30).close()
    served[1][1].close()
    for client in (early, served[0][0], served[1][0]):
        client.close()
    listener.close()


def test_a_stop_ends_the_wait_for_clients_and_leaves_connections_alone(
    computer: FakePipes, listener: PipeListener, pool: ThreadPoolExecutor
) -> None:
    client, connection = connect(computer, listener)
    accepting = pool.submit(listener.accept)
    assert waiting(accepting)
    listener.stop()
    with pytest.raises(PipeClosedError):
        accepting.result(timeout=30)
    with pytest.raises(PipeClosedError):
        listener.accept()
    client.sendall(b"still here")
    assert read(connection) == b"still here"
    connection.close()
    client.close()


@pytest.mark.parametrize("under_way", [True, False])
def test_a_cancelled_transfer_ends_whether_it_is_under_way_or_to_come(
    computer: FakePipes, listener: PipeListener, pool: ThreadPoolExecutor, under_way: bool
) -> None:
    client, connection = connect(computer, listener)
    big = memoryview(bytearray(8 << 20))  # more than any buffer
    work = [lambda: read(connection), lambda: connection.write(big)]
    if under_way:
        started = [pool.submit(each) for each in work]
        assert all(map(waiting, started))
        connection.cancel()
    else:
        connection.cancel()
        started = [pool.submit(each) for each in work]
    for each in started:
        with pytest.raises(PipeClosedError):
            each.result(timeout=30)
    connection.close()
    client.close()


def test_what_was_written_can_be_read_after_the_end(
    computer: FakePipes, listener: PipeListener
) -> None:
    client, connection = connect(computer, listener)
    connection.write(memoryview(bytearray(b"last words")))
    connection.close()
    assert client.recv(100) == b"last words"
    assert client.recv(100) == b""
    client.close()


def test_a_writer_waits_for_a_reader(
    computer: FakePipes, listener: PipeListener, pool: ThreadPoolExecutor
) -> None:
    client, connection = connect(computer, listener)
    data = bytearray(range(256)) * (4 << 12)
    writing = pool.submit(connection.write, memoryview(data))
    assert waiting(writing)
    received = bytearray()
    while len(received) < len(data):
        received += client.recv(1 << 16)
    writing.result(timeout=30)
    assert received == data
    connection.close()
    client.close()


def test_one_thread_reads_while_another_writes(
    computer: FakePipes, listener: PipeListener, pool: ThreadPoolExecutor
) -> None:
    client, connection = connect(computer, listener)
    reading = pool.submit(read, connection)
    assert waiting(reading)
    connection.write(memoryview(bytearray(b"first")))
    assert client.recv(100) == b"first"
    client.sendall(b"second")
    assert reading.result(timeout=30) == b"second"
    connection.close()
    client.close()


def test_clients_are_taken_again_after_the_system_refused_to(
    computer: FakePipes, listener: PipeListener
) -> None:
    no_system_resources = 1450
    computer.failing["ConnectNamedPipe"] = [no_system_resources]
    with pytest.raises(OSError, match="1450"):
        listener.accept()
    client, connection = connect(computer, listener)
    connection.close()
    client.close()


@pytest.mark.parametrize("name", ["CreateNamedPipeW", "CreateEventW"])
def test_a_client_is_served_though_the_next_instance_cannot_be_made(
    computer: FakePipes, listener: PipeListener, name: str
) -> None:
    no_system_resources = 1450
    computer.failing[name] = [no_system_resources] * 2
    client, connection = connect(computer, listener)
    with pytest.raises(OSError, match="1450"):
        listener.accept()
    connection.close()
    client.close()
    assert computer.instances(PIPE) == 0
    with ThreadPoolExecutor(1) as pool:
        accepting = pool.submit(listener.accept)  # takes the name as its first owner again
        until(lambda: computer.instances(PIPE) == 1)
        with pytest.raises(PermissionError):
            PipeListener.open(computer.calls(), PIPE)
        client = computer.dial(PIPE)
        accepting.result(timeout=30).close()
        client.close()


def test_a_listener_that_cannot_be_opened_leaves_nothing(computer: FakePipes) -> None:
    for name in (
        "ConvertStringSecurityDescriptorToSecurityDescriptorW",
        "CreateNamedPipeW",
        "CreateEventW",
    ):
        computer.failing[name] = [5]
        with pytest.raises(PermissionError):
            PipeListener.open(computer.calls(), PIPE)
        assert computer.left == []


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("//./pipe/lcow", "\\\\.\\pipe\\lcow"),
        ("\\\\.\\pipe\\Lcow snapshotter.1", "\\\\.\\pipe\\Lcow snapshotter.1"),
        ("//./pipe/" + "x" * 247, "\\\\.\\pipe\\" + "x" * 247),
        ("//./pipe/" + "x" * 248, None),
        ("//./pipe/", None),
        ("//./pipe/a/b", None),
        ("//server/pipe/a", None),
        ("lcow", None),
        ("", None),
    ],
)
def test_a_pipe_of_this_machine_has_one_name(text: str, path: str | None) -> None:
    assert pipe_path(text) == path

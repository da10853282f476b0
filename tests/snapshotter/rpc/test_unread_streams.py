"""Clients that do not read what they asked for cost themselves, nobody else."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final, cast

import grpc
import pytest

from snapshotter import Snapshotter
from snapshotter.metastore.model import Info, Kind, Usage
from snapshotter.metastore.wire import info_frame
from snapshotter.rpc.backend import Backend
from snapshotter.rpc.endpoint import Endpoint, PipeEndpoint
from snapshotter.rpc.server import Server
from snapshotter.rpc.snapshots_v1 import SnapshotsService
from snapshotter.rpc.streams import STREAM_WORKERS, Patience, Stream, StreamWatch
from tests.fakes.pipeclients import dialled_by_socket
from tests.fakes.pipes import FakePipes
from tests.snapshotter.rpc.client import Client
from tests.snapshotter.rpc.unread import DEFAULT_WINDOW, LARGEST_WINDOW, UnreadLists

UNREAD: Final = 60
"""More streams than the server has threads for them, and than it has for all other calls."""
FRAME: Final = info_frame(Info("x" * 20_000, Kind.VIEW, "", {}, 1, 1))
LASTING: Final = Patience(alone_s=3600, crowded_s=3600)
SHORT: Final = Patience(alone_s=0.5, crowded_s=0.5)
WAIT_S: Final = 60


class Endless:
    """A backend whose lists end by the filter `short` alone; counts what was asked of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.open = 0
        self.most_open = 0
        self.frames = 0

    def walk_frames(self, *filters: str) -> Iterator[bytes]:
        with self._lock:
            self.open += 1
            self.most_open = max(self.most_open, self.open)
        try:
            while True:
                with self._lock:
                    self.frames += 1
                yield FRAME
                if filters == ("short",):
                    return
        finally:
            with self._lock:
                self.open -= 1

    def stat_frame(self, _: str) -> bytes:
        return b""

    def usage(self, _: str) -> Usage:
        return Usage(7, 1)

    def remove(self, key: str) -> None:
        pass

    def cleanup(self) -> int:
        return 0


@pytest.fixture(params=["socket", "pipe"])
def where(
    request: pytest.FixtureRequest, sockets: Path, computer: FakePipes
) -> Iterator[Path | Endpoint]:
    """Where a server listens for who dials `sockets / "s"`."""
    if request.param == "socket":
        yield sockets / "s"
        return
    with dialled_by_socket(computer, "\\\\.\\pipe\\lcow", sockets / "s"):
        yield PipeEndpoint("\\\\.\\pipe\\lcow", computer.calls(), drain_s=0.2)


@contextlib.contextmanager
def serving(
    where: Path | Endpoint,
    backend: object,
    patience: Patience,
    *,
    workers: int = STREAM_WORKERS,
) -> Iterator[None]:
    service = SnapshotsService(cast("Backend", backend))
    server = Server.start(where, [service], patience=patience, stream_workers=workers)
    try:
        yield
    finally:
        server.stop(grace_s=0.1)


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def until_still(count: Callable[[], int]) -> int:
    """Where a number has come to that no longer grows."""
    before = -1
    while before != (before := count()):
        time.sleep(0.2)
    return before


@pytest.mark.parametrize(("connections", "streams"), [(UNREAD, 1), (1, UNREAD)])
def test_lists_that_nobody_reads_take_no_thread_from_any_other_call(
    where: Path | Endpoint, sockets: Path, connections: int, streams: int
) -> None:
    backend = Endless()
    with contextlib.ExitStack() as stack:
        stack.enter_context(serving(where, backend, LASTING))
        for _ in range(connections):
            stack.enter_context(UnreadLists(sockets / "s", streams=streams))
        until(lambda: backend.open == UNREAD)
        client = stack.enter_context(Client(sockets / "s"))
        client.stat("x")
        client.remove("x")
        client.cleanup()
        assert client.usage("x") == (7, 1)
        assert client.health() == 1
        assert len(client.infos("short")) == 1


def test_what_nobody_reads_takes_bounded_threads_and_memory(sockets: Path) -> None:
    backend = Endless()
    before = threading.active_count()
    with contextlib.ExitStack() as stack:
        stack.enter_context(serving(sockets / "s", backend, LASTING, workers=8))
        for _ in range(UNREAD):
            stack.enter_context(UnreadLists(sockets / "s"))
        until(lambda: backend.open == 8)
        produced = until_still(lambda: backend.frames) * len(FRAME)
        assert backend.most_open == 8
        assert threading.active_count() - before < 16
        # A socket's buffer, gRPC's own, and one message: never what the list has in all.
        assert produced < 8 * (4 << 20)


@pytest.mark.parametrize("window", [LARGEST_WINDOW, DEFAULT_WINDOW])
def test_a_list_ends_with_the_connection_of_its_client(
    where: Path | Endpoint, sockets: Path, window: int
) -> None:
    backend = Endless()
    with serving(where, backend, LASTING):
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(UnreadLists(sockets / "s", window=window))
            until(lambda: backend.open == 4)
            until_still(lambda: backend.frames)
        until(lambda: backend.open == 0)


def test_others_that_read_get_their_lists_though_all_threads_wait(
    where: Path | Endpoint, sockets: Path
) -> None:
    backend = Endless()
    with contextlib.ExitStack() as stack:
        stack.enter_context(serving(where, backend, SHORT, workers=4))
        for _ in range(8):
            stack.enter_context(UnreadLists(sockets / "s", window=DEFAULT_WINDOW))
        until(lambda: backend.most_open == 4)
        client = stack.enter_context(Client(sockets / "s"))
        until(lambda: gets_its_list(client))
        until(lambda: backend.open == 0)  # the clients are still there


def gets_its_list(client: Client) -> bool:
    try:
        return len(client.infos("short")) == 1
    except grpc.RpcError:  # on a machine with much to do it may be late itself
        return False


def test_who_reads_too_late_is_told_that_the_list_is_not_whole(sockets: Path) -> None:
    backend = Endless()

    def read_late(client: Client) -> None:
        for _ in client.batches():
            until(lambda: backend.open == 0)

    with (
        serving(sockets / "s", backend, SHORT),
        Client(sockets / "s") as client,
        pytest.raises(grpc.RpcError) as caught,
    ):
        read_late(client)
    assert caught.value.code() is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize(
    ("window", "cut_s", "in_time"), [(LARGEST_WINDOW, 0.2, False), (DEFAULT_WINDOW, WAIT_S, True)]
)
def test_a_server_stops_though_its_clients_read_nothing(
    where: Path | Endpoint, sockets: Path, *, window: int, cut_s: float, in_time: bool
) -> None:
    backend = Endless()
    server = Server.start(where, [SnapshotsService(cast("Backend", backend))], patience=LASTING)
    with UnreadLists(sockets / "s", window=window):
        until(lambda: backend.open == 1)
        until_still(lambda: backend.frames)
        # Where the socket is full, nobody can tell the client, and gRPC waits for it.
        assert server.stop(grace_s=0.1, cut_s=cut_s) is in_time
        assert backend.open == 0


@pytest.mark.parametrize("window", [LARGEST_WINDOW, DEFAULT_WINDOW])
def test_an_unread_list_lets_go_of_the_store(
    store: Snapshotter, sockets: Path, window: int
) -> None:
    for number in range(300):
        store.view(f"v{number}", labels={"text": "x" * 10_000})
    backend = Counting(store)
    path = sockets / "s"
    with contextlib.closing(sqlite3.connect(store.root / "metadata.db", timeout=0)) as connection:
        with serving(path, backend, LASTING), UnreadLists(path, window=window):
            until(lambda: not log_can_be_used_again(store, connection))
        with serving(path, backend, SHORT), UnreadLists(path, window=window):
            until(lambda: backend.ended == 2)
            until(lambda: log_can_be_used_again(store, connection))


class Counting:
    """The lists of a store, and how many have ended."""

    def __init__(self, store: Snapshotter) -> None:
        self._store = store
        self.ended = 0

    def walk_frames(self, *filters: str) -> Iterator[bytes]:
        try:
            yield from self._store.walk_frames(*filters)
        finally:
            self.ended += 1


def log_can_be_used_again(store: Snapshotter, connection: sqlite3.Connection) -> bool:
    """Whether SQLite's log can be begun anew: no read of an older state is under way."""
    store.view("last")
    store.remove("last")
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return bool(busy == 0)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class PlayedCall:
    """A call that notes its end."""

    def __init__(self, ended: list[str], name: str) -> None:
        self._ended = ended
        self._name = name

    def cancel(self) -> None:
        self._ended.append(self._name)


def test_a_client_has_time_for_each_message_and_less_of_it_in_a_crowd() -> None:
    clock, ended = Clock(), list[str]()
    watch = StreamWatch(Patience(alone_s=60, crowded_s=5, crowd=3), clock=clock)

    def answers() -> Generator[bytes, None, None]:
        yield b""

    with contextlib.ExitStack() as stack:

        def begin(name: str) -> Stream:
            return stack.enter_context(watch.stream(PlayedCall(ended, name), answers()))

        slow, stuck = begin("slow"), begin("stuck")
        stack.enter_context(watch.waiting(stuck))
        for _ in range(10):  # longer than its patience in all, never for one message
            with watch.waiting(slow):
                clock.now += 5
                assert watch.give_up_late() == 0
        clock.now += 10
        assert watch.give_up_late() == 1
        assert watch.give_up_late() == 0
        assert (slow.given_up, stuck.given_up, ended) == (False, True, ["stuck"])
        third = begin("third")
        with watch.waiting(third), watch.waiting(slow):
            clock.now += 4
            assert watch.give_up_late() == 0
            clock.now += 1
            assert watch.give_up_late() == 2
    # The crowd has gone.
    with contextlib.ExitStack() as stack, watch.waiting(begin("fourth")):
        clock.now += 59
        assert watch.give_up_late() == 0

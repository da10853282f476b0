"""Writers that share a commit: each on its own in success and failure, one flush for all."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from snapshotter.errors import NotFoundError, UnavailableError
from snapshotter.filters import Filters
from snapshotter.metastore import Kind
from snapshotter.metastore.store import MetaStore, Transaction


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MetaStore]:
    with contextlib.closing(MetaStore.open(tmp_path / "metadata.db")) as store:
        yield store


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


class StopError(Exception):
    """Ends a transaction."""


def keys(store: MetaStore) -> list[str]:
    with store.transaction(write=False) as tx:
        return [info.name for info in tx.snapshots.walk(Filters())]


def create(key: str) -> Callable[[Transaction], None]:
    def body(tx: Transaction) -> None:
        tx.snapshots.create(Kind.ACTIVE, key, "", {"l": key})

    return body


def together(
    store: MetaStore, threads: ThreadPoolExecutor, bodies: list[Callable[[Transaction], None]]
) -> list[Future[None]]:
    """Run the bodies as members of one group, in any order, and wait for all of them."""

    # Whoever holds a write transaction makes the others queue. Then it is taken back, and they
    # are one group.
    with contextlib.suppress(StopError), store.transaction(write=True):
        futures = [threads.submit(store.write, body) for body in bodies]
        while len(store._turns) < len(bodies):
            threading.Event().wait(0.001)
        raise StopError
    for future in futures:
        future.exception(timeout=10)
    return futures


def commits(store: MetaStore) -> Iterator[list[str]]:
    """The statements of every connection from now on."""
    statements: list[str] = []
    connections = store._connections
    connect = connections.connect

    def traced() -> sqlite3.Connection:
        connection = connect()
        connection.set_trace_callback(statements.append)
        return connection

    assert connections._writer is not None
    connections._writer.connection.close()
    connections._writer = None
    connections.connect = traced  # type: ignore[method-assign]
    yield statements


def test_writers_that_wait_are_committed_together(
    store: MetaStore, threads: ThreadPoolExecutor
) -> None:
    statements = next(commits(store))
    done = together(store, threads, [create(f"k{number:02}") for number in range(20)])
    assert [future.exception() for future in done] == [None] * 20
    assert statements.count("COMMIT") == 1
    assert keys(store) == [f"k{number:02}" for number in range(20)]


def test_a_member_that_raises_undoes_its_own_part_alone(
    store: MetaStore, threads: ThreadPoolExecutor
) -> None:
    def half(tx: Transaction) -> None:
        create("half")(tx)
        tx.snapshots.remove("missing")

    done = together(store, threads, [create("a"), half, create("b")])
    assert [type(future.exception()) for future in done] == [type(None), NotFoundError, type(None)]
    assert keys(store) == ["a", "b"]


def test_members_see_what_the_ones_before_them_did(
    store: MetaStore, threads: ThreadPoolExecutor
) -> None:
    names = [f"k{number}" for number in range(8)]
    seen: list[int] = []

    def look(name: str) -> Callable[[Transaction], None]:
        def body(tx: Transaction) -> None:
            seen.append(len(tx.snapshots.directories()))
            create(name)(tx)

        return body

    together(store, threads, [look(name) for name in names])
    assert seen == list(range(8))


def test_where_the_commit_fails_every_member_fails_and_nothing_stays(
    store: MetaStore, threads: ThreadPoolExecutor
) -> None:
    def refuse() -> None:
        raise UnavailableError("the disk is gone")

    def flushing(tx: Transaction) -> None:
        create("f")(tx)
        tx.flush_before_commit(store.path.parent, refuse)

    done = together(store, threads, [create("a"), flushing, create("b")])
    errors = [future.exception() for future in done]
    assert [str(error) for error in errors] == ["the disk is gone"] * 3
    assert len({id(error) for error in errors}) == 3
    assert keys(store) == []
    with store.transaction(write=True) as tx:
        create("later")(tx)
    assert keys(store) == ["later"]


def test_a_full_disk_fails_the_group_and_leaves_a_working_store(
    store: MetaStore, threads: ThreadPoolExecutor
) -> None:
    # SQLite rolls back the whole transaction by itself when it cannot grow the file.
    def fill(tx: Transaction) -> None:
        connection = tx.snapshots._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 1}")
        try:
            for number in range(5000):
                create(f"fill-{number}")(tx)
        finally:
            connection.execute("PRAGMA max_page_count = 1073741823")

    done = together(store, threads, [create("a"), fill, create("b")])
    failed = [future.exception() for future in done]
    assert isinstance(failed[1], UnavailableError)
    assert "full" in str(failed[1])
    # Those before it were undone with it, and say so; those after it may have been in time.
    told = {name for name, error in zip(("a", "b"), failed[::2], strict=True) if error is None}
    assert set(keys(store)) == told
    with store.transaction(write=True) as tx:
        create("later")(tx)
    assert "later" in keys(store)


def test_an_interrupted_leader_fails_the_others_and_leaves_a_working_store(
    store: MetaStore, threads: ThreadPoolExecutor
) -> None:
    def interrupt(tx: Transaction) -> None:
        create("i")(tx)
        raise KeyboardInterrupt

    done = together(store, threads, [create("a"), interrupt, create("b")])
    errors = [future.exception() for future in done]
    # Whoever led was interrupted; those whose work it had taken are told, the rest came through.
    assert any(isinstance(error, KeyboardInterrupt) for error in errors)
    told = {name for name, error in zip("aib", errors, strict=True) if error is None}
    assert set(keys(store)) == told - {"i"}
    store.write(create("later"))
    assert "later" in keys(store)


def test_directories_are_flushed_once_before_the_commit(
    store: MetaStore, threads: ThreadPoolExecutor
) -> None:
    flushed: list[list[str]] = []

    def flushing(key: str) -> Callable[[Transaction], None]:
        def body(tx: Transaction) -> None:
            create(key)(tx)
            tx.flush_before_commit(store.path.parent, lambda: flushed.append(keys(store)))

        return body

    together(store, threads, [flushing(name) for name in "abc"])
    assert flushed == [[]]  # once, while nobody else could see the rows
    assert keys(store) == ["a", "b", "c"]


def test_a_writer_that_gives_up_waiting_leaves_the_others_their_turn(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    with contextlib.closing(MetaStore.open(path, busy_timeout_s=0.1)) as store:
        with store.transaction(write=True) as tx:
            create("a")(tx)
            with (
                ThreadPoolExecutor(1) as pool,
                pytest.raises(UnavailableError, match="locked"),
            ):
                pool.submit(store.write, create("late")).result()
        with store.transaction(write=True) as tx:
            create("b")(tx)
        assert keys(store) == ["a", "b"]


def test_many_threads_lose_nothing(store: MetaStore, threads: ThreadPoolExecutor) -> None:
    def removal(key: str, *more: str) -> Callable[[Transaction], None]:
        def body(tx: Transaction) -> None:
            for each in (key, *more):
                tx.snapshots.remove(each)

        return body

    def work(name: int) -> None:
        for number in range(20):
            key = f"{name}-{number}"
            store.write(create(key))
            if number % 4 == 0:
                with pytest.raises(NotFoundError):
                    store.write(removal(key, "missing"))  # takes the removal back
            if number % 4 == 1:
                store.write(removal(key))
            if number % 4 == 2:
                with store.transaction(write=True) as tx:  # alone, between the groups
                    removal(key)(tx)

    list(threads.map(work, range(16)))
    expected = sorted(f"{name}-{n}" for name in range(16) for n in range(20) if n % 4 in (0, 3))
    assert keys(store) == expected

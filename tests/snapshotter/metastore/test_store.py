"""The SQLite file: transactions, processes, versions."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.errors import NotFoundError, UnavailableError
from snapshotter.filters import Filters
from snapshotter.metastore import Kind, Usage
from snapshotter.metastore.schema import MIGRATIONS
from snapshotter.metastore.store import MetaStore

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MetaStore]:
    with contextlib.closing(MetaStore.open(tmp_path / "metadata.db")) as store:
        yield store


def keys(store: MetaStore) -> list[str]:
    with store.transaction(write=False) as tx:
        return [info.name for info in tx.snapshots.walk(Filters())]


class StopError(Exception):
    """Ends a transaction."""


def test_a_transaction_that_raises_changes_nothing(store: MetaStore) -> None:
    with contextlib.suppress(StopError), store.transaction(write=True) as tx:
        tx.snapshots.create(Kind.ACTIVE, "a", "", {"l": "1"})
        raise StopError
    assert keys(store) == []


def test_readers_see_the_last_committed_state_and_never_wait(store: MetaStore) -> None:
    with store.transaction(write=True) as tx:
        tx.snapshots.create(Kind.ACTIVE, "a", "", {})
        assert keys(store) == []
    assert keys(store) == ["a"]


def test_a_number_of_a_removed_snapshot_does_not_come_back(store: MetaStore) -> None:
    with store.transaction(write=True) as tx:
        first = tx.snapshots.create(Kind.ACTIVE, "a", "", {}).id
        tx.snapshots.remove("a")
    with store.transaction(write=True) as tx:
        assert tx.snapshots.create(Kind.ACTIVE, "a", "", {}).id > first


def test_parents_come_nearest_first(store: MetaStore) -> None:
    with store.transaction(write=True) as tx:
        parent = ""
        for number in range(128):
            tx.snapshots.create(Kind.ACTIVE, "key", parent, {})
            parent = f"layer{number}"
            tx.snapshots.commit(parent, "key", labels={}, usage=Usage(number))
        top = tx.snapshots.create(Kind.VIEW, "view", parent, {})
        assert top.parent_ids == tuple(range(128, 0, -1))
        assert tx.snapshots.snapshot("view") == top


def test_a_share_without_its_snapshot_cannot_be_committed(store: MetaStore) -> None:
    # The schema itself keeps shares and snapshots together, should code of ours forget.
    with store.transaction(write=True) as tx:
        snapshot = tx.snapshots.create(Kind.ACTIVE, "a", "", {})
        tx.scratches.hold(snapshot.id, tx.scratches.add(1 << 30, "").id, owner=True)
    with pytest.raises(sqlite3.IntegrityError), store.transaction(write=True) as tx:
        tx.snapshots.remove("a")
    assert keys(store) == ["a"]


def test_writers_of_many_threads_take_turns(store: MetaStore) -> None:
    def work(name: str) -> None:
        for number in range(20):
            with store.transaction(write=True) as tx:
                tx.snapshots.create(Kind.ACTIVE, f"{name}{number:02}", "", {"l": name})

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert keys(store) == [f"{name}{number:02}" for name in "abcd" for number in range(20)]


MAKER = """
import sys
from pathlib import Path
from snapshotter.metastore import Kind
from snapshotter.metastore.store import MetaStore
store = MetaStore.open(Path(sys.argv[1]))
for number in range(10):
    with store.transaction(write=True) as tx:
        tx.snapshots.create(Kind.ACTIVE, f"{sys.argv[2]}{number}", "", {})
store.close()
"""


def test_several_processes_may_make_the_same_store(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    processes = [
        subprocess.Popen([sys.executable, "-c", MAKER, str(path), name], cwd=REPOSITORY)
        for name in "abcd"
    ]
    assert [process.wait() for process in processes] == [0, 0, 0, 0]
    with contextlib.closing(MetaStore.open(path)) as store:
        assert len(keys(store)) == 40


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    MetaStore.open(path).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO migration VALUES (99, 'from the future', 0)")
        connection.commit()
    with pytest.raises(UnavailableError, match=r"newer version.*upgrade"):
        MetaStore.open(path)


def test_another_sqlite_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
        connection.commit()
    with pytest.raises(UnavailableError, match="something else"):
        MetaStore.open(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_schema").fetchall()
    assert tables == [("theirs",)]


def test_migrations_are_numbered_from_one_and_recorded(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    for _ in range(2):
        MetaStore.open(path).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT version, name FROM migration").fetchall()
    assert rows == [(migration.version, migration.name) for migration in MIGRATIONS]
    assert [version for version, _ in rows] == list(range(1, len(MIGRATIONS) + 1))


def test_a_damaged_file_is_named_with_a_next_step(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    MetaStore.open(path).close()
    data = bytearray(path.read_bytes())
    data[100:] = b"\x55" * (len(data) - 100)
    path.write_bytes(data)
    with pytest.raises(UnavailableError, match=r"metadata\.db failed"):
        MetaStore.open(path)


def test_a_closed_store_says_so(store: MetaStore) -> None:
    store.close()
    with pytest.raises(UnavailableError, match="closed"):
        keys(store)


def test_a_failed_check_leaves_the_connection_usable(store: MetaStore) -> None:
    for _ in range(20):
        with pytest.raises(NotFoundError), store.transaction(write=True) as tx:
            tx.snapshots.remove("nobody")
    assert keys(store) == []

"""A write-ahead log that is laid out: it grows no more, and a crash finds in it what was committed.

The crash is a copy of the files while the store is open: what a killed process leaves.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.filters import Filters
from snapshotter.metastore import Kind, SnapshotId
from snapshotter.metastore.store import MetaStore
from snapshotter.metastore.writeahead import lay_out, log_of
from snapshotter.units import MIB


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MetaStore]:
    with contextlib.closing(MetaStore.open(tmp_path / "metadata.db")) as store:
        yield store


def create(store: MetaStore, key: str) -> SnapshotId:
    return store.write(lambda tx: tx.snapshots.create(Kind.ACTIVE, key, "", {"l": key}).id)


def keys(store: MetaStore) -> list[str]:
    with store.transaction(write=False) as tx:
        return [info.name for info in tx.snapshots.walk(Filters())]


def after_a_crash(store: MetaStore, to: Path) -> list[str]:
    """The keys that another process finds in the files as they are now."""
    to.mkdir()
    for path in (store.path, log_of(store.path)):
        shutil.copyfile(path, to / path.name)
    with contextlib.closing(MetaStore.open(to / store.path.name)) as copy:
        with copy.transaction(write=False) as tx:
            assert tx.snapshots._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return keys(copy)


def test_commits_write_into_what_is_laid_out(store: MetaStore) -> None:
    store.warm()
    size = log_of(store.path).stat().st_size
    assert 4 * MIB < size < 5 * MIB
    names = [f"k{number:03}" for number in range(300)]  # more than up to the first checkpoint
    for name in names:
        create(store, name)
    assert log_of(store.path).stat().st_size == size
    assert keys(store) == names


def test_what_is_laid_out_is_not_laid_out_again(store: MetaStore) -> None:
    store.warm()
    create(store, "a")
    with store.transaction(write=True):
        assert not lay_out(log_of(store.path))
    assert keys(store) == ["a"]


def test_a_crash_finds_what_was_committed_before_and_after(
    store: MetaStore, tmp_path: Path
) -> None:
    create(store, "a")
    store.warm()
    assert after_a_crash(store, tmp_path / "1") == ["a"]
    create(store, "b")
    assert after_a_crash(store, tmp_path / "2") == ["a", "b"]
    for number in range(400):
        create(store, f"c{number}")
    assert len(after_a_crash(store, tmp_path / "3")) == 402


def test_a_crash_before_the_first_commit_finds_an_empty_log(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    with contextlib.closing(MetaStore.open(path)) as first:
        create(first, "a")
    # The last one who closes removes the log, so that the next one begins a new one.
    with contextlib.closing(MetaStore.open(path)) as store:
        store.warm()
        assert after_a_crash(store, tmp_path / "1") == ["a"]
        create(store, "b")
        assert after_a_crash(store, tmp_path / "2") == ["a", "b"]


def test_writers_of_two_stores_lose_nothing_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    with (
        contextlib.closing(MetaStore.open(path)) as one,
        contextlib.closing(MetaStore.open(path)) as other,
    ):
        begun = threading.Event()

        def work() -> None:
            for number in range(40):
                create(other, f"k{number:02}")
                begun.set()

        writer = threading.Thread(target=work)
        writer.start()
        assert begun.wait(20)
        one.warm()
        writer.join()
        assert keys(one) == [f"k{number:02}" for number in range(40)]


def test_a_log_that_cannot_be_written_is_left_alone(tmp_path: Path) -> None:
    assert lay_out(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()

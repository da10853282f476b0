"""Backups made under load, and what restoring one means."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from snapshotter import Snapshotter
from snapshotter.backup import back_up, restore
from snapshotter.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
    UnavailableError,
)
from snapshotter.platform import Platform


def names(store: Snapshotter) -> list[str]:
    return [info.name for info in store.walk()]


def test_a_backup_is_one_file_with_all_that_was_acknowledged(
    tmp_path: Path, platform: Platform
) -> None:
    root, out = tmp_path / "root", tmp_path / "b.db"
    with Snapshotter.open(root, durable=False, platform=platform) as store:
        store.prepare("a", labels={"l": "x"})
        back_up(root, out, platform=platform)
        before = store.stat("a")
        store.remove("a")
        store.prepare("b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.db", "root"]
    kept = restore(out, root, platform=platform)
    assert kept is not None
    assert kept.is_file()
    with Snapshotter.open(root, durable=False, platform=platform) as store:
        assert [store.stat("a")] == list(store.walk()) == [before]


def test_a_backup_taken_under_load_is_consistent(tmp_path: Path) -> None:
    root = tmp_path / "root"
    done = threading.Event()

    def work(store: Snapshotter) -> None:
        number = 0
        while not done.is_set():
            # A layer and what is on it: a backup has the first wherever it has the second.
            store.prepare(f"extract-{number} x")
            store.commit(f"layer{number}", f"extract-{number} x")
            store.view(f"v{number}", f"layer{number}")
            number += 1

    with Snapshotter.open(root, durable=False) as store:
        worker = threading.Thread(target=work, args=(store,))
        worker.start()
        try:
            for number in range(8):
                back_up(root, tmp_path / f"{number}.db")
        finally:
            done.set()
            worker.join()
    for number in range(8):
        with closing(sqlite3.connect(tmp_path / f"{number}.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            keys = {row[0] for row in connection.execute("SELECT key FROM snapshot")}
        views = {key[1:] for key in keys if key.startswith("v")}
        assert all(f"layer{each}" in keys for each in views)


def test_no_number_is_given_out_again_after_a_restore(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with Snapshotter.open(root, durable=False) as store:
        store.prepare("a")
        back_up(root, tmp_path / "b.db")
        for number in range(5):
            store.prepare(f"later{number}")
    (root / "metadata.db").write_bytes(b"lost" * 1000)  # even where the old file tells nothing
    for name in ("metadata.db-wal", "metadata.db-shm"):
        (root / name).unlink(missing_ok=True)
    restore(tmp_path / "b.db", root)
    with Snapshotter.open(root, durable=False) as store:
        assert names(store) == ["a"]
        store.prepare("next")
        assert store.directory("next").name == "7"
        shared = store.shared_disk("next")
        assert shared is not None
        assert shared.path.parent.name == "7"


def test_a_store_in_use_is_not_restored(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with Snapshotter.open(root, durable=False) as store:
        store.prepare("a")
        back_up(root, tmp_path / "b.db")
        with pytest.raises(FailedPreconditionError, match="open"):
            restore(tmp_path / "b.db", root)
        assert names(store) == ["a"]


def test_what_is_no_backup_changes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with Snapshotter.open(root, durable=False) as store:
        store.prepare("a")
    (tmp_path / "b.db").write_bytes(b"x" * 5000)
    with pytest.raises(UnavailableError):
        restore(tmp_path / "b.db", root)
    with closing(sqlite3.connect(tmp_path / "c.db")) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.commit()
    with pytest.raises(UnavailableError, match="nor a backup"):
        restore(tmp_path / "c.db", root)
    with pytest.raises(NotFoundError):
        restore(tmp_path / "none", root)
    with Snapshotter.open(root, durable=False) as store:
        assert names(store) == ["a"]
    assert not [path for path in root.iterdir() if ".tmp" in path.name or "before" in path.name]


def test_a_backup_never_overwrites_and_needs_a_store(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        back_up(tmp_path / "none", tmp_path / "b.db")
    with Snapshotter.open(tmp_path / "root", durable=False):
        pass
    (tmp_path / "b.db").write_text("precious")
    with pytest.raises(AlreadyExistsError):
        back_up(tmp_path / "root", tmp_path / "b.db")
    assert (tmp_path / "b.db").read_text() == "precious"
    with pytest.raises(UnavailableError):
        back_up(tmp_path / "root", tmp_path / "no/such/b.db")


def test_a_lost_file_is_restored(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with Snapshotter.open(root, durable=False) as store:
        store.prepare("a")
        back_up(root, tmp_path / "b.db")
    (root / "metadata.db").unlink()
    assert restore(tmp_path / "b.db", root) is None
    with Snapshotter.open(root, durable=False) as store:
        assert names(store) == ["a"]
        assert (store.directory("a") / "sandbox.vhdx").resolve(strict=True).is_file()

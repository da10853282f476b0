"""Defects of containerd's own plugin that no other file's tests are about; and the list of all.

The numbers are those of docs/upstream-defects.md.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from snapshotter import Kind, Snapshotter
from snapshotter.errors import NotFoundError, UnavailableError
from snapshotter.labels import OWNER_KEY, REUSE_SCRATCH
from snapshotter.metastore.scratches import Scratches
from snapshotter.platform.posix import PosixPlatform
from snapshotter.usage import disk_usage

TESTS = Path(__file__).parent
TABLE = TESTS.parents[1] / "docs/upstream-defects.md"
SHARE = {REUSE_SCRATCH: "true", OWNER_KEY: "pod"}


def test_an_owner_is_found_without_a_scan(tmp_path: Path) -> None:
    """2: every row was read for every share."""
    with Snapshotter.open(tmp_path, durable=False) as store:
        store.prepare("ns/1/pod")
    with closing(sqlite3.connect(tmp_path / "metadata.db")) as connection:
        statements: list[str] = []
        connection.set_trace_callback(statements.append)
        scratches = Scratches(connection)
        assert scratches.candidates_by_key("ns/1/pod")
        assert scratches.candidates_by_client_key("ns", "pod")
        connection.set_trace_callback(None)
        assert len(statements) == 2
        for statement in statements:
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]
            assert not [step for step in plan if step.startswith("SCAN")], plan


class FailingPlatform(PosixPlatform):
    """Refuses to publish what `refuses` says, as a full disk would."""

    def __init__(self, refuses: Callable[[Path], bool]) -> None:
        self.refuses = refuses

    def rename(self, source: Path, target: Path) -> None:
        if source.name.startswith("new-") and self.refuses(target):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        super().rename(source, target)


@pytest.mark.parametrize("shelf", ["snapshots", "scratch"])
def test_a_failed_publication_leaves_no_directory(tmp_path: Path, shelf: str) -> None:
    """9: the clean-up ran before the commit that failed."""
    platform = FailingPlatform(lambda target: target.parent.name == shelf)
    with Snapshotter.open(tmp_path, durable=False, platform=platform) as store:
        with pytest.raises(UnavailableError, match="No space"):
            store.prepare("a")
        with pytest.raises(NotFoundError):
            store.stat("a")
        for name in ("snapshots", "scratch"):
            assert list((tmp_path / name).iterdir()) == []
        platform.refuses = lambda _: False
        store.prepare("a")


def test_sixteen_threads_share_one_disk(store: Snapshotter) -> None:
    """12: the owner was looked up in a transaction nested in another."""
    store.prepare("pod")

    def share(number: int) -> None:
        store.prepare(f"c{number}", labels=SHARE)
        if number % 2:
            store.remove(f"c{number}")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(share, range(64)))
    store.remove("pod")
    shared = store.shared_disk("c0")
    assert shared is not None
    assert {holder.key for holder in shared.holders} == {f"c{n}" for n in range(0, 64, 2)}
    assert [path.name for path in (store.root / "scratch").iterdir()] == ["1"]


def test_others_work_while_a_disk_is_written(tmp_path: Path) -> None:
    """13: an unrelated Remove waited for a template to be built."""
    writing, go_on = threading.Event(), threading.Event()

    class SlowPlatform(PosixPlatform):
        def make_directory(self, path: Path) -> None:
            super().make_directory(path)
            if path.parent.name == "scratch" and path.name.startswith("new-"):
                writing.set()
                assert go_on.wait(30)

    with Snapshotter.open(tmp_path, durable=False, platform=SlowPlatform()) as store:
        store.view("v")
        slow = threading.Thread(target=store.prepare, args=("slow",))
        slow.start()
        assert writing.wait(30)
        store.remove("v")
        store.view("w")
        assert [info.name for info in store.walk()] == ["w"]
        go_on.set()
        slow.join()
        assert [info.name for info in store.walk()] == ["slow", "w"]


def test_removing_a_view_logs_nothing(store: Snapshotter, caplog: pytest.LogCaptureFixture) -> None:
    """16: its directory, which never existed, was renamed back."""
    store.prepare("extract-1 x")
    store.commit("x", "extract-1 x")
    store.view("v", "x")
    with caplog.at_level(logging.INFO):
        store.remove("v")
    assert caplog.records == []


def test_usage_survives_files_that_vanish(tmp_path: Path) -> None:
    """22: a walk failed when something went away under it."""
    (tmp_path / "d").mkdir()
    for number in range(300):
        (tmp_path / f"d/{number}").write_bytes(b"x")
    gone = threading.Event()

    def delete() -> None:
        for number in range(300):
            (tmp_path / f"d/{number}").unlink(missing_ok=True)
        (tmp_path / "d").rmdir()
        gone.set()

    deleting = threading.Thread(target=delete)
    deleting.start()
    counted = [disk_usage(tmp_path / "d").inodes]
    while not gone.is_set():
        counted.append(disk_usage(tmp_path / "d").inodes)
    deleting.join()
    assert max(counted) <= 301
    assert disk_usage(tmp_path / "d").inodes == 0


def test_names_are_durable_before_the_row_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """27: nothing was flushed."""
    happened: list[str] = []

    class RecordingPlatform(PosixPlatform):
        def rename(self, source: Path, target: Path) -> None:
            happened.append(f"rename {target.parent.name}/{target.name}")
            super().rename(source, target)

        def file_flush_keeps_path(self, directory: Path) -> bool:
            return False  # as of a file system that nobody knows

        def make_directory(self, path: Path) -> None:
            if path.name.isdecimal():
                happened.append(f"make {path.parent.name}/{path.name}")
            super().make_directory(path)

        def flush_names(self, directory: Path) -> None:
            happened.append(f"flush {directory.name}, {committed_rows(tmp_path)}")
            super().flush_names(directory)

    fsync = os.fsync

    def record(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_file():
            happened.append(f"flush {path.relative_to(tmp_path)}, {committed_rows(tmp_path)}")
        fsync(descriptor)

    with Snapshotter.open(tmp_path, platform=RecordingPlatform()) as store:
        monkeypatch.setattr(os, "fsync", record)
        store.prepare("a")
        # The disk and its name, both before the row. The directory of the snapshot, with its link,
        # recovery would make anew.
        assert happened == [
            "rename scratch/1",
            "rename snapshots/1",
            "flush scratch/1/sandbox.vhdx, {}",
            "flush scratch, {}",
        ]
        happened.clear()
        store.prepare("extract-b")
        assert happened == ["make snapshots/2"]
        (store.directory("extract-b") / "layer.vhd").write_bytes(b"layer")
        happened.clear()
        store.commit("b", "extract-b")
        active = {"a": int(Kind.ACTIVE), "extract-b": int(Kind.ACTIVE)}
        assert happened == [f"flush snapshots, {active}"]


def test_a_disk_in_the_snapshots_own_directory_is_durable_before_the_row_is(
    tmp_path: Path,
) -> None:
    happened: list[str] = []

    class LinklessPlatform(PosixPlatform):
        def symlink(self, link: Path, target: Path) -> None:
            raise PermissionError(errno.EPERM, "no links here", str(link))

        def rename(self, source: Path, target: Path) -> None:
            happened.append(f"rename {target.parent.name}/{target.name}")
            super().rename(source, target)

        def flush_names(self, directory: Path) -> None:
            happened.append(f"flush {directory.name}, {committed_rows(tmp_path)}")
            super().flush_names(directory)

    with Snapshotter.open(tmp_path, platform=LinklessPlatform()) as store:
        store.prepare("a")
        assert happened == ["rename snapshots/1", "flush snapshots, {}"]
        happened.clear()
        store.prepare("extract-b")
        assert happened == []  # what holds nothing can be made anew


def committed_rows(root: Path) -> dict[str, int]:
    """Key and kind of each snapshot, as another process would see them."""
    with closing(sqlite3.connect(root / "metadata.db")) as connection:
        return dict(connection.execute("SELECT key, kind FROM snapshot ORDER BY key"))


def test_the_list_of_defects_names_tests_that_exist() -> None:
    rows = [line for line in TABLE.read_text().split("\n") if re.match(r"\| \d", line)]
    assert [int(row.split("|")[1]) for row in rows] == list(range(1, 29))
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            assert f"def {test}(" in (TESTS / file).read_text(), f"{file}::{test}"

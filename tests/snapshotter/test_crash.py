"""Killed processes, several processes, full disks."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter import Kind, Snapshotter
from snapshotter.errors import FailedPreconditionError, UnavailableError
from snapshotter.labels import OWNER_KEY, REUSE_SCRATCH
from snapshotter.metastore.store import MetaStore
from snapshotter.platform import Platform
from snapshotter.snapshotter import METADATA_NAME
from tests.snapshotter.crash.proof import faults, prove

KILLS = 32
needs_root = pytest.mark.skipif(
    getattr(os, "geteuid", lambda: 1)() != 0, reason="only root can mount"
)
REPOSITORY = Path(__file__).parents[2]


def start_worker(root: Path, name: str, rounds: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.snapshotter.store_worker", str(root), name, str(rounds)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


def check_consistent(store: Snapshotter) -> set[str]:
    """Rows and directories agree and every link leads to a disk; the keys."""
    keys = set()
    directories = set()
    disks = set()
    for info in store.walk():
        keys.add(info.name)
        directory = store.directory(info.name)
        directories.add(directory.name)
        assert directory.is_dir(), info.name
        if info.kind is Kind.COMMITTED:
            assert (directory / "layer.vhd").read_text() == info.name
        if (shared := store.shared_disk(info.name)) is not None:
            assert (directory / "sandbox.vhdx").resolve(strict=True) == shared.path
            disks.add(shared.path.parent.name)
    assert {path.name for path in (store.root / "snapshots").iterdir()} == directories
    assert {path.name for path in (store.root / "scratch").iterdir()} == disks
    return keys


def test_kills_at_named_points_and_at_random_lose_nothing_that_was_acknowledged(
    tmp_path: Path,
) -> None:
    # ./dev soak does hundreds.
    done = prove(tmp_path / "root", KILLS, seed=20)
    assert done["kills"] == KILLS >= len(faults()) + 10


def test_two_processes_and_a_third_that_cleans_up_do_not_disturb_each_other(
    tmp_path: Path,
) -> None:
    workers = [start_worker(tmp_path, name, 25) for name in ("a", "b")]
    opened = 0
    while any(worker.poll() is None for worker in workers):
        with Snapshotter.open(tmp_path) as store:
            store.cleanup()
            opened += 1
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.read().endswith("done\n")
        worker.stdout.close()
        assert worker.returncode == 0
    assert opened > 3
    with Snapshotter.open(tmp_path) as store:
        assert len(check_consistent(store)) == 2 * 13 * 3


# -- what single moments of a crash leave


def test_an_orphan_directory_with_the_next_number_is_never_written_to(tmp_path: Path) -> None:
    # Upstream: a killed share leaves a link to the owner's disk under the number that the next
    # Prepare gets, which then copies a blank disk through it.
    with Snapshotter.open(tmp_path, durable=False) as store:
        store.prepare("pod")
        disk = store.root / "scratch/1/sandbox.vhdx"
        disk.write_bytes(b"PRECIOUS")
        orphan = store.root / "snapshots/2"
        orphan.mkdir()
        (orphan / "sandbox.vhdx").symlink_to(disk)
        (orphan / "layer.vhd").write_bytes(b"stale")
        (store.root / "scratch/2").mkdir()
        (store.root / "scratch/2/sandbox.vhdx").symlink_to(disk)
        (mount,) = store.prepare("next")
        assert mount.source == str(orphan)
        assert [path.name for path in orphan.iterdir()] == ["sandbox.vhdx"]
        assert (orphan / "sandbox.vhdx").resolve() == store.root / "scratch/2/sandbox.vhdx"
        assert disk.read_bytes() == b"PRECIOUS"


def test_opening_sweeps_what_has_no_row_and_puts_back_what_has_one(tmp_path: Path) -> None:
    with Snapshotter.open(tmp_path, durable=False) as store:
        store.prepare("a")
        mounts = store.mounts("a")
    snapshots, scratch = tmp_path / "snapshots", tmp_path / "scratch"
    (snapshots / "1").rename(snapshots / "rm-1")
    (scratch / "1").rename(scratch / "rm-1")
    for orphan in ("7", "rm-9", "rm-1-0a", "new-00ff-1"):
        (snapshots / orphan).mkdir()
        (scratch / orphan).mkdir()
    (snapshots / "README").write_text("not ours")
    with Snapshotter.open(tmp_path, durable=False) as store:
        assert sorted(path.name for path in snapshots.iterdir()) == ["1", "README"]
        assert [path.name for path in scratch.iterdir()] == ["1"]
        assert (Path(store.mounts("a")[0].source) / "sandbox.vhdx").is_file()
        assert store.mounts("a") == mounts


def test_cleanup_says_how_much_it_deleted(store: Snapshotter) -> None:
    for orphan in ("7", "rm-9"):
        (store.root / "snapshots" / orphan).mkdir()
    assert store.cleanup() == 2
    assert store.cleanup() == 0


def test_a_snapshot_whose_directory_vanished_can_be_removed(store: Snapshotter) -> None:
    store.prepare("a")
    directory = store.directory("a")
    (directory / "sandbox.vhdx").unlink()
    directory.rmdir()
    store.remove("a")
    assert list(store.walk()) == []


@pytest.mark.root
@needs_root
def test_a_directory_that_cannot_be_moved_refuses_removal_and_changes_nothing(
    store: Snapshotter,
) -> None:
    # A mount inside stands for what Windows does with an attached disk: the rename fails.
    store.prepare("pod")
    store.prepare("c1", labels={REUSE_SCRATCH: "true", OWNER_KEY: "pod"})
    store.remove("pod")
    mounted = store.root / "scratch/1"
    subprocess.run(["mount", "--bind", mounted, mounted], check=True)
    try:
        with pytest.raises(FailedPreconditionError, match="still uses it"):
            store.remove("c1")
        assert (store.directory("c1") / "sandbox.vhdx").is_file()
    finally:
        subprocess.run(["umount", mounted], check=True)
    store.remove("c1")
    assert list((store.root / "scratch").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mounted = tmp_path / "small"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "small", mounted], check=True)
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "-l", mounted], check=True)


def prepare_many(store: Snapshotter, count: int) -> None:
    for number in range(count):
        store.prepare(f"pod{number}")


@pytest.mark.root
@needs_root
def test_a_full_disk_is_named_and_leaves_a_working_store(small_disk: Path) -> None:
    with Snapshotter.open(small_disk) as store:
        with pytest.raises(UnavailableError, match=r"(?i)space|full"):
            prepare_many(store, 100)
        made = len(list(store.walk()))
        assert made > 0
        assert sorted(info.name for info in store.walk()) == sorted(f"pod{n}" for n in range(made))
        assert len(list((small_disk / "snapshots").iterdir())) == made
        assert len(list((small_disk / "scratch").iterdir())) == made
        for number in range(made):
            store.remove(f"pod{number}")
        store.prepare("again")


def test_a_store_locked_for_too_long_says_so(tmp_path: Path) -> None:
    with (
        Snapshotter.open(tmp_path, durable=False, busy_timeout_s=0.1) as waiting,
        contextlib.closing(MetaStore.open(tmp_path / METADATA_NAME)) as holder,
    ):
        with holder.transaction(write=True):
            with pytest.raises(UnavailableError, match=r"locked.*try again"):
                waiting.prepare("a")
            assert list(waiting.walk()) == []
        waiting.prepare("a")


def test_directories_that_a_power_cut_took_are_made_anew(
    tmp_path: Path, platform: Platform
) -> None:
    # Prepare flushes the disk and the row. The directory and its link can be made from them.
    with Snapshotter.open(tmp_path, durable=False, platform=platform) as store:
        store.prepare("pod")
        store.prepare("extract-layer")
        store.view("empty")
        before = {key: store.mounts(key) for key in ("pod", "extract-layer", "empty")}
        for key in before:
            directory = store.directory(key)
            (directory / "sandbox.vhdx").unlink(missing_ok=True)
            directory.rmdir()
    with Snapshotter.open(tmp_path, durable=False, platform=platform) as store:
        assert {key: store.mounts(key) for key in before} == before
        assert check_consistent(store) == set(before)
        store.remove("pod")

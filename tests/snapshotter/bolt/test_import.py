"""Adopting a root of containerd's own lcow plugin."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapshotter import Kind, Snapshotter
from snapshotter.boltimport import import_bolt
from snapshotter.errors import (
    BoltError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    SnapshotterError,
    UnavailableError,
)
from snapshotter.metastore.wire import info_frame
from snapshotter.platform import Platform
from snapshotter.rpc import messages
from snapshotter.scratch.template import ScratchTemplate
from snapshotter.units import GIB
from tests.snapshotter.bolt.golden import EXPECTED, LAST_NUMBER, golden_database
from tests.snapshotter.bolt.writer import Tree, containerd_file, snapshot

OLD_ROOT = "C:\\ProgramData\\containerd\\root\\io.containerd.snapshotter.v1.windows-lcow"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A root as containerd left it: layers, a pod with its disk, and two that share it.

    Links are made as Windows shows them, with the path that the root had there.
    """
    root = tmp_path / "old"
    (root / "snapshots").mkdir(parents=True)
    (root / "metadata.db").write_bytes(golden_database())
    for number in (1, 2, 3):
        (root / f"snapshots/{number}").mkdir()
        (root / f"snapshots/{number}/layer.vhd").write_bytes(b"layer %d" % number)
    for number in (4, 6, 7):
        (root / f"snapshots/{number}").mkdir()
    ScratchTemplate.build(GIB).write(root / "snapshots/4/sandbox.vhdx")
    (root / "snapshots/6/sandbox.vhdx").symlink_to(f"{OLD_ROOT}\\snapshots\\4\\sandbox.vhdx")
    # Upstream links a sharer of a sharer to a link.
    (root / "snapshots/7/sandbox.vhdx").symlink_to(f"{OLD_ROOT}\\snapshots\\6\\sandbox.vhdx")
    return root


def listing(directory: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(directory)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in directory.rglob("*")
    }


def test_everything_is_kept(tmp_path: Path, old: Path, platform: Platform) -> None:
    before = listing(old)
    adopted = import_bolt(old / "metadata.db", tmp_path / "new", platform=platform)
    assert (adopted.snapshots, adopted.scratches, adopted.sharers) == (7, 1, 2)
    assert adopted.problems == ()
    assert listing(old) == before
    with Snapshotter.open(tmp_path / "new", create=False, platform=platform) as store:
        for info in store.walk():
            number, kind, parent, created, size, inodes = EXPECTED[info.name]
            assert (int(info.kind), info.parent) == (kind, parent)
            assert info.created_ns == info.updated_ns == created
            assert store.directory(info.name).name == str(number)
            if info.kind is Kind.COMMITTED:
                usage = store.usage(info.name)
                assert (usage.size, usage.inodes) == (size, inodes)
                layer = store.directory(info.name) / "layer.vhd"
                assert layer.read_bytes() == b"layer %d" % number
        assert len(list(store.walk())) == len(EXPECTED)
        # As gRPC answers Stat and List.
        frames = [info_frame(info) for info in store.walk()]
        assert list(store.walk_frames()) == frames
        assert [store.stat_frame(name) for name in sorted(EXPECTED)] == frames
        stat = messages.StatSnapshotResponse.FromString(store.stat_frame("k8s.io/7/pod")).info
        assert (stat.name, stat.parent) == ("k8s.io/7/pod", EXPECTED["k8s.io/7/pod"][2])
        assert dict(stat.labels) == dict(store.stat("k8s.io/7/pod").labels)
        shared = store.shared_disk("k8s.io/10/c1")
        assert shared is not None
        assert (shared.size, [each.key for each in shared.holders]) == (
            GIB,
            ["k8s.io/7/pod", "k8s.io/9/c0", "k8s.io/10/c1"],
        )
        for key in ("k8s.io/7/pod", "k8s.io/9/c0", "k8s.io/10/c1"):
            link = store.directory(key) / "sandbox.vhdx"
            assert link.is_symlink()
            assert link.resolve(strict=True) == shared.path


def test_the_adopted_store_goes_on_with_fresh_numbers(tmp_path: Path, old: Path) -> None:
    import_bolt(old / "metadata.db", tmp_path / "new")
    with Snapshotter.open(tmp_path / "new", durable=False) as store:
        store.prepare("next", "k8s.io/6/sha256:02")
        assert store.directory("next").name == str(LAST_NUMBER + 1)
        assert store.cleanup() == 0
        for key in ("k8s.io/7/pod", "k8s.io/9/c0"):
            store.remove(key)
        shared = store.shared_disk("k8s.io/10/c1")
        assert shared is not None
        assert shared.path.is_file()
        store.remove("k8s.io/10/c1")
        assert not shared.path.exists()


def test_a_disk_is_copied_and_a_layer_is_not_written_to(tmp_path: Path, old: Path) -> None:
    import_bolt(old / "metadata.db", tmp_path / "new")
    disk = tmp_path / "new/scratch/1/sandbox.vhdx"
    assert not disk.samefile(old / "snapshots/4/sandbox.vhdx")
    assert disk.read_bytes() == (old / "snapshots/4/sandbox.vhdx").read_bytes()


def test_a_link_to_nothing_or_to_elsewhere_is_told_and_never_followed(
    tmp_path: Path, old: Path
) -> None:
    secret = tmp_path / "secret.vhdx"
    ScratchTemplate.build(GIB).write(secret)
    for number, target in ((6, str(secret)), (7, f"{OLD_ROOT}\\snapshots\\99\\sandbox.vhdx")):
        link = old / f"snapshots/{number}/sandbox.vhdx"
        link.unlink()
        link.symlink_to(target)
    adopted = import_bolt(old / "metadata.db", tmp_path / "new")
    assert len(adopted.problems) == 2
    with Snapshotter.open(tmp_path / "new", durable=False) as store:
        assert store.shared_disk("k8s.io/9/c0") is None
        assert store.shared_disk("k8s.io/10/c1") is None
        assert store.stat("k8s.io/9/c0").kind is Kind.ACTIVE


def test_links_in_a_circle_end(tmp_path: Path, old: Path) -> None:
    (old / "snapshots/6/sandbox.vhdx").unlink()
    (old / "snapshots/6/sandbox.vhdx").symlink_to(f"{OLD_ROOT}\\snapshots\\7\\sandbox.vhdx")
    adopted = import_bolt(old / "metadata.db", tmp_path / "new")
    assert len(adopted.problems) == 2


def write_rows(path: Path, rows: dict[str, Tree]) -> Path:
    path.write_bytes(containerd_file(rows))
    return path


@pytest.mark.parametrize(
    "rows",
    [
        {"a": snapshot(1, 3), "b": snapshot(1, 3)},
        {"a": snapshot(1, 3, "b"), "b": snapshot(2, 3, "a")},
        {"a": snapshot(1, 2, "gone")},
        {"a": snapshot(1, 2), "b": snapshot(2, 2, "a")},
        {"a\0b": snapshot(1, 2)},
        {"a": snapshot(1, 2, labels={"x": "\0"})},
    ],
)
def test_rows_that_contradict_each_other_are_refused_and_leave_nothing(
    tmp_path: Path, rows: dict[str, Tree]
) -> None:
    database = write_rows(tmp_path / "metadata.db", rows)
    with pytest.raises((BoltError, InvalidArgumentError)):
        import_bolt(database, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_long_chain_is_adopted_parents_first(tmp_path: Path) -> None:
    rows = {
        f"l{n:03}": snapshot(128 - n, 3, "" if n == 127 else f"l{n + 1:03}") for n in range(128)
    }
    import_bolt(write_rows(tmp_path / "metadata.db", rows), tmp_path / "new")
    with Snapshotter.open(tmp_path / "new", durable=False) as store:
        (mount,) = store.prepare("top", "l000")
        assert len(mount.parent_layer_paths) == 128


def test_a_damaged_disk_is_named_and_leaves_nothing(tmp_path: Path, old: Path) -> None:
    (old / "snapshots/4/sandbox.vhdx").write_bytes(b"no disk")
    with pytest.raises(FailedPreconditionError, match="no disk"):
        import_bolt(old / "metadata.db", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_root_in_use_and_a_missing_file_are_refused(tmp_path: Path, old: Path) -> None:
    with pytest.raises(NotFoundError):
        import_bolt(tmp_path / "none.db", tmp_path / "new")
    with pytest.raises(FailedPreconditionError, match="not empty"):
        import_bolt(old / "metadata.db", old)
    assert (old / "snapshots/4/sandbox.vhdx").is_file()


def test_a_root_without_its_metadata_is_never_taken_for_a_new_one(tmp_path: Path) -> None:
    # Every directory in it would be swept as an orphan.
    with Snapshotter.open(tmp_path, durable=False) as store:
        store.prepare("a")
    (tmp_path / "metadata.db").unlink()
    with pytest.raises(UnavailableError, match="restore a backup"):
        Snapshotter.open(tmp_path)
    assert (tmp_path / "scratch/1/sandbox.vhdx").is_file()


def test_bolt_metadata_in_place_is_refused_plainly(tmp_path: Path, old: Path) -> None:
    with pytest.raises(SnapshotterError):
        Snapshotter.open(old)
    assert (old / "snapshots/4/sandbox.vhdx").is_file()

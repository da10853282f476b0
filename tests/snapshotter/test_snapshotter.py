"""Prepare, View, Commit and Remove as in containerd's core/snapshots, by the public interface."""

from __future__ import annotations

import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapshotter import Kind, Snapshotter
from snapshotter.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from snapshotter.labels import MAX_SIZE, SIZE_BYTES, SIZE_GB
from snapshotter.units import GIB
from snapshotter.vhdx import VhdxDisk
from tests.snapshotter.layered import GC_ROOT, committed, names

# -- Prepare, View, Mounts


def test_a_prepared_snapshot_has_a_formatted_scratch_disk(store: Snapshotter) -> None:
    (mount,) = store.prepare("c1")
    with VhdxDisk.open(Path(mount.source) / "sandbox.vhdx") as disk:
        assert disk.size == 20 * GIB


@pytest.mark.parametrize(
    ("name", "value"), [(SIZE_GB, "3"), (SIZE_BYTES, str(3 * GIB)), (MAX_SIZE, str(3 * GIB))]
)
def test_a_size_label_decides_the_size(store: Snapshotter, name: str, value: str) -> None:
    (mount,) = store.prepare("c1", labels={name: value})
    with VhdxDisk.open(Path(mount.source) / "sandbox.vhdx") as disk:
        assert disk.size == 3 * GIB


def test_two_scratch_disks_have_different_identities(store: Snapshotter) -> None:
    identities = set()
    for key in ("a", "b"):
        (mount,) = store.prepare(key)
        with VhdxDisk.open(Path(mount.source) / "sandbox.vhdx") as disk:
            identities.add(disk.info().disk_id)
    assert len(identities) == 2


def test_a_bad_size_label_leaves_nothing(store: Snapshotter) -> None:
    with pytest.raises(InvalidArgumentError, match="size-gb='big'"):
        store.prepare("c1", labels={SIZE_GB: "big"})
    assert names(store) == []
    assert list((store.root / "snapshots").iterdir()) == []


def test_an_unpack_snapshot_has_no_scratch_disk(store: Snapshotter) -> None:
    (mount,) = store.prepare("k8s.io/1/extract-123 sha256:aa", labels={SIZE_GB: "big"})
    assert list(Path(mount.source).iterdir()) == []
    assert store.shared_disk("k8s.io/1/extract-123 sha256:aa") is None


def test_a_container_whose_name_contains_extract_has_a_scratch_disk(store: Snapshotter) -> None:
    (mount,) = store.prepare("extract/1/my-extractor")
    assert (Path(mount.source) / "sandbox.vhdx").is_file()


def test_mounts_are_those_that_prepare_gave(store: Snapshotter) -> None:
    committed(store, "base")
    committed(store, "top", "base")
    mounts = store.prepare("c1", "top")
    assert store.mounts("c1") == mounts
    base, top = store.directory("base"), store.directory("top")
    assert mounts[0].parent_layer_paths == (top, base)


def test_a_view_mounts_its_parent_read_only_and_has_no_directory(store: Snapshotter) -> None:
    committed(store, "base")
    committed(store, "top", "base")
    (mount,) = store.view("v", "top")
    assert mount.source == str(store.directory("top"))
    assert mount.options[0] == "ro"
    assert mount.parent_layer_paths == (store.directory("base"),)
    assert not store.directory("v").exists()


def test_the_source_of_a_view_of_nothing_exists(store: Snapshotter) -> None:
    (mount,) = store.view("v")
    assert list(Path(mount.source).iterdir()) == []
    store.remove("v")
    assert not Path(mount.source).exists()


def test_mounts_of_a_committed_snapshot_are_refused(store: Snapshotter) -> None:
    committed(store, "base")
    with pytest.raises(FailedPreconditionError, match="base"):
        store.mounts("base")


@pytest.mark.parametrize("kind", ["prepare", "view"])
def test_the_parent_is_checked_before_the_key(store: Snapshotter, kind: str) -> None:
    create = store.prepare if kind == "prepare" else store.view
    create("taken")
    with pytest.raises(NotFoundError, match="'nobody'"):
        create("taken", "nobody")
    with pytest.raises(InvalidArgumentError, match="not committed"):
        create("taken", "taken")
    with pytest.raises(AlreadyExistsError, match="'taken'"):
        create("taken")


def test_keys_and_names_share_one_key_space(store: Snapshotter) -> None:
    committed(store, "base")
    with pytest.raises(AlreadyExistsError):
        store.prepare("base")
    with pytest.raises(AlreadyExistsError):
        store.view("base")


@pytest.mark.parametrize("key", ["", "a\0b", "\udcff"])
def test_a_key_that_cannot_be_stored_is_refused(store: Snapshotter, key: str) -> None:
    with pytest.raises(InvalidArgumentError):
        store.prepare(key)
    with pytest.raises(InvalidArgumentError):
        store.view(key)
    store.prepare("ok")
    with pytest.raises(InvalidArgumentError):
        store.commit(key, "ok")


def test_a_label_that_cannot_be_stored_is_refused(store: Snapshotter) -> None:
    with pytest.raises(InvalidArgumentError, match="label"):
        store.prepare("a", labels={"x": "\udcff"})
    assert names(store) == []
    assert list((store.root / "scratch").iterdir()) == []


def test_labels_without_a_value_are_dropped(store: Snapshotter) -> None:
    store.prepare("a", labels={"x": "", **GC_ROOT})
    assert store.stat("a").labels == GC_ROOT


def test_directories_are_private(store: Snapshotter) -> None:
    store.prepare("a")
    for path in (store.root, store.root / "snapshots", store.directory("a")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


# -- Commit


def test_commit_replaces_labels_and_times_and_keeps_the_number(store: Snapshotter) -> None:
    store.prepare("a", labels={"old": "1"})
    before = store.stat("a")
    directory = store.directory("a")
    store.commit("A", "a", labels={"new": "2", "empty": ""})
    after = store.stat("A")
    assert after.labels == {"new": "2"}
    assert after.kind is Kind.COMMITTED
    assert after.created_ns == after.updated_ns > before.created_ns
    assert store.directory("A") == directory
    with pytest.raises(NotFoundError):
        store.stat("a")


def test_commit_errors_come_in_containerds_order(store: Snapshotter) -> None:
    committed(store, "base")
    store.view("v", "base")
    with pytest.raises(AlreadyExistsError, match="'base'"):
        store.commit("base", "nobody")
    with pytest.raises(NotFoundError, match="'nobody'"):
        store.commit("new", "nobody")
    for key in ("v", "base"):
        with pytest.raises(FailedPreconditionError, match="not active"):
            store.commit("new", key)


def test_a_parent_may_be_given_at_commit(store: Snapshotter) -> None:
    committed(store, "base")
    store.prepare("extract-1 x")
    store.commit("top", "extract-1 x", parent="base")
    assert store.stat("top").parent == "base"


def test_a_parent_given_at_commit_must_fit(store: Snapshotter) -> None:
    committed(store, "base")
    committed(store, "other")
    store.prepare("a", "base")
    store.prepare("b")
    with pytest.raises(InvalidArgumentError, match="cannot change parent"):
        store.commit("A", "a", parent="other")
    with pytest.raises(NotFoundError):
        store.commit("B", "b", parent="nobody")
    with pytest.raises(FailedPreconditionError, match="not committed"):
        store.commit("B", "b", parent="a")
    store.commit("A", "a", parent="base")


# -- Remove


def test_a_snapshot_with_children_cannot_be_removed(store: Snapshotter) -> None:
    committed(store, "base")
    store.view("v", "base")
    with pytest.raises(FailedPreconditionError, match=r"cannot remove.*'v'"):
        store.remove("base")
    store.remove("v")
    store.remove("base")
    assert names(store) == []


def test_removal_leaves_no_file(store: Snapshotter) -> None:
    store.prepare("a")
    store.remove("a")
    assert list((store.root / "snapshots").iterdir()) == []
    assert list((store.root / "scratch").iterdir()) == []
    with pytest.raises(NotFoundError):
        store.remove("a")


def test_numbers_are_never_given_out_twice(store: Snapshotter) -> None:
    seen = set()
    for _ in range(4):
        (mount,) = store.prepare("same key")
        seen.add(mount.source)
        store.remove("same key")
    assert len(seen) == 4


# -- unpackers


def test_the_remote_snapshot_lookup_of_containerd_finds_the_committed_one(
    store: Snapshotter,
) -> None:
    committed(store, "ns/1/base")
    ref = {"containerd.io/snapshot.ref": "sha256:aa"}
    store.prepare("ns/2/extract-1 sha256:aa", "ns/1/base", labels=ref)
    store.commit("ns/3/sha256:aa", "ns/2/extract-1 sha256:aa", labels=ref)
    found = names(store, 'labels."containerd.io/snapshot.ref"==sha256:aa,parent=="ns/1/base"')
    assert found == ["ns/3/sha256:aa"]


def test_an_unpacker_is_told_of_a_layer_that_is_committed_already(store: Snapshotter) -> None:
    # containerd then finds it by the filter above, and fetches nothing (core/unpack).
    ref = {"containerd.io/snapshot.ref": "sha256:aa"}
    store.prepare("ns/1/extract-1 sha256:aa", labels=ref)
    layer = store.directory("ns/1/extract-1 sha256:aa") / "layer.vhd"
    layer.write_bytes(b"x")
    store.prepare("ns/2/extract-2 sha256:aa", labels=ref)  # not committed yet: both may try
    store.commit("ns/3/sha256:aa", "ns/1/extract-1 sha256:aa", labels=ref)
    with pytest.raises(AlreadyExistsError, match="ns/3/sha256:aa"):
        store.prepare("ns/4/extract-3 sha256:aa", labels=ref)
    store.prepare("ns/4/extract-3 sha256:aa")  # image.Unpack sets no reference
    store.prepare("ns/5/extract-4 sha256:aa", "ns/3/sha256:aa", labels=ref)  # another parent
    layer.unlink()
    store.prepare("ns/6/extract-5 sha256:aa", labels=ref)  # one without its layer is no help


# -- many at once


def test_many_threads_work_on_one_store(store: Snapshotter) -> None:
    def chain(number: int) -> None:
        store.prepare(f"extract-{number} a")
        store.commit(f"layer-{number}", f"extract-{number} a")
        store.prepare(f"c-{number}", f"layer-{number}")
        assert store.stat(f"c-{number}").parent == f"layer-{number}"
        store.remove(f"c-{number}")
        store.remove(f"layer-{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(chain, range(40)))
    assert names(store) == []
    assert list((store.root / "snapshots").iterdir()) == []


def test_one_of_many_wins_the_same_key(store: Snapshotter) -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(6)

    def attempt() -> None:
        barrier.wait()
        try:
            store.prepare("same")
        except AlreadyExistsError:
            outcomes.append("taken")
        else:
            outcomes.append("mine")

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["mine"] + ["taken"] * 5
    assert len(list((store.root / "snapshots").iterdir())) == 1
    assert len(list((store.root / "scratch").iterdir())) == 1

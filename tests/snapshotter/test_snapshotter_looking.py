"""Stat, Update, Usage and Walk as in containerd's core/snapshots, by the public interface."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from snapshotter import Info, Kind, Snapshotter, Usage
from snapshotter.errors import (
    InvalidArgumentError,
    NotFoundError,
)
from tests.snapshotter.layered import GC_ROOT, committed, names


def test_a_new_snapshot_was_created_and_updated_at_once(store: Snapshotter) -> None:
    store.prepare("a", labels=GC_ROOT)
    info = store.stat("a")
    assert info.created_ns == info.updated_ns > 0
    assert info == Info("a", Kind.ACTIVE, "", GC_ROOT, info.created_ns, info.updated_ns)


def test_an_unknown_key_is_not_found_even_in_an_empty_store(store: Snapshotter) -> None:
    for call in (store.stat, store.usage, store.mounts, store.remove, store.shared_disk):
        with pytest.raises(NotFoundError, match="'x'"):
            call("x")
    with pytest.raises(NotFoundError):
        store.update(Info("x"))


def test_update_without_paths_replaces_labels_and_nothing_else(store: Snapshotter) -> None:
    committed(store, "base")
    store.prepare("a", "base", labels={"l1": "1", "l2": "2"})
    before = store.stat("a")
    after = store.update(replace(before, labels={"l3": "3"}, parent="", kind=Kind.VIEW))
    assert after == replace(before, labels={"l3": "3"}, updated_ns=after.updated_ns)
    assert after.updated_ns > before.updated_ns
    assert store.stat("a") == after


def test_update_of_single_labels_sets_and_deletes(store: Snapshotter) -> None:
    store.prepare("a", labels={"l1": "1", "l2": "2", "a.b": "x"})
    after = store.update(Info("a", labels={"l1": "9", "a.b": ""}), "labels.l1", "labels.l2")
    assert after.labels == {"l1": "9", "a.b": "x"}
    assert store.update(Info("a"), "labels.a.b").labels == {"l1": "9"}
    assert store.update(Info("a", labels={"z": "1"}), "labels").labels == {"z": "1"}


@pytest.mark.parametrize("path", ["parent", "kind", "name", "label", "labels.", ""])
def test_no_other_field_can_be_updated(store: Snapshotter, path: str) -> None:
    store.prepare("a")
    with pytest.raises(InvalidArgumentError, match="cannot update"):
        store.update(Info("a"), path)


def test_a_committed_snapshot_can_be_updated(store: Snapshotter) -> None:
    committed(store, "base")
    assert store.update(Info("base", labels={"a": "1"})).labels == {"a": "1"}


def test_usage_of_an_active_snapshot_is_live_and_fixed_by_commit(store: Snapshotter) -> None:
    (mount,) = store.prepare("extract-1 x")
    empty = store.usage("extract-1 x")
    layer = Path(mount.source) / "layer.vhd"
    with layer.open("wb") as file:
        file.write(os.urandom(64 * 1024))
        os.fsync(file.fileno())
    used = store.usage("extract-1 x")
    assert used.size - empty.size >= 64 * 1024
    assert used.inodes == empty.inodes + 1
    store.commit("x", "extract-1 x")
    layer.write_bytes(b"")
    assert store.usage("x") == used


def test_usage_of_a_view_is_nothing(store: Snapshotter) -> None:
    committed(store, "base")
    store.view("v", "base")
    assert store.usage("v") == Usage(0, 0)


def test_an_empty_store_walks_empty(store: Snapshotter) -> None:
    assert names(store) == []
    assert names(store, "kind==active") == []


def test_walk_goes_in_byte_order(store: Snapshotter) -> None:
    for key in ("ä", "b", "B", "a/1/x", "a"):
        store.view(key)
    assert names(store) == ["B", "a", "a/1/x", "b", "ä"]


def test_the_filters_of_containerds_suite(store: Snapshotter) -> None:
    committed(store, "base")
    store.prepare("a", "base", labels={"l": "v", "dotted.key/x": "y"})
    store.view("v", "base")
    assert names(store, "kind==active") == ["a"]
    assert names(store, "name==a", "name==v") == ["a", "v"]
    assert names(store, "name==a,labels.l") == ["a"]
    assert names(store, "parent==base") == ["a", "v"]
    assert names(store, 'parent!=""') == ["a", "v"]
    assert names(store, 'labels."dotted.key/x"==y') == ["a"]
    assert names(store, "labels.l==other") == []


def test_a_bad_filter_is_refused_before_the_first_step(store: Snapshotter) -> None:
    with pytest.raises(InvalidArgumentError):
        store.walk("name==")


def test_every_call_works_while_walking(store: Snapshotter) -> None:
    for key in ("a", "b", "c"):
        store.view(key)
    for info in store.walk():
        assert store.stat(info.name) == info
        store.remove(info.name)
    assert names(store) == []

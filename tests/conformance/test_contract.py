"""containerd's contract for snapshotters, in every configuration.

The assertions are those of core/snapshots/testsuite that need no mount; those that look into
mounts are in test_mounted.py.
"""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from snapshotter import Kind
from snapshotter.contract import Contract
from snapshotter.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)

KEEP = {"containerd.io/gc.root": "test"}


def commit(snapshotter: Contract, name: str, parent: str = "") -> str:
    snapshotter.prepare(f"{name}-key", parent, labels=KEEP)
    snapshotter.commit(name, f"{name}-key", labels=KEEP)
    return name


def names(snapshotter: Contract, *filters: str) -> set[str]:
    return {info.name for info in snapshotter.walk(*filters)}


def test_a_key_becomes_a_name_by_commit(snapshotter: Contract) -> None:
    snapshotter.prepare("key", labels=KEEP)
    assert snapshotter.stat("key").kind is Kind.ACTIVE
    snapshotter.commit("name", "key", labels=KEEP)
    assert snapshotter.stat("name").kind is Kind.COMMITTED
    with pytest.raises(NotFoundError):
        snapshotter.stat("key")
    with pytest.raises(NotFoundError):
        snapshotter.mounts("key")


def test_mounts_of_a_committed_snapshot_are_refused(snapshotter: Contract) -> None:
    commit(snapshotter, "base")
    with pytest.raises(FailedPreconditionError):
        snapshotter.mounts("base")


def test_mounts_are_those_that_prepare_and_view_gave(snapshotter: Contract) -> None:
    commit(snapshotter, "base")
    prepared = snapshotter.prepare("a", "base")
    viewed = snapshotter.view("v", "base")
    assert list(snapshotter.mounts("a")) == list(prepared)
    assert list(snapshotter.mounts("v")) == list(viewed)


def test_parents_are_a_chain(snapshotter: Contract) -> None:
    commit(snapshotter, "a")
    commit(snapshotter, "b", "a")
    assert snapshotter.stat("b").parent == "a"
    assert snapshotter.stat("a").parent == ""


@pytest.mark.parametrize("parent", ["missing", "active"])
def test_a_parent_must_be_committed(snapshotter: Contract, parent: str) -> None:
    snapshotter.prepare("active")
    with pytest.raises((NotFoundError, InvalidArgumentError)):
        snapshotter.prepare("key", parent)
    with pytest.raises((NotFoundError, InvalidArgumentError)):
        snapshotter.view("key", parent)
    assert names(snapshotter) == {"active"}


def test_a_key_is_given_once(snapshotter: Contract) -> None:
    commit(snapshotter, "base")
    snapshotter.prepare("a", "base")
    snapshotter.view("v", "base")
    for key in ("a", "v", "base"):
        with pytest.raises(AlreadyExistsError):
            snapshotter.prepare(key, "base")
        with pytest.raises(AlreadyExistsError):
            snapshotter.view(key, "base")
    with pytest.raises(AlreadyExistsError):
        snapshotter.commit("base", "a")
    assert snapshotter.stat("a").kind is Kind.ACTIVE


def test_a_view_is_never_committed(snapshotter: Contract) -> None:
    commit(snapshotter, "base")
    snapshotter.view("v", "base")
    with pytest.raises(FailedPreconditionError):
        snapshotter.commit("name", "v")


def test_an_intermediate_snapshot_stays_until_its_children_go(snapshotter: Contract) -> None:
    commit(snapshotter, "base")
    commit(snapshotter, "inter", "base")
    snapshotter.prepare("top", "inter")
    with pytest.raises(FailedPreconditionError, match="remove"):
        snapshotter.remove("inter")
    for key in ("top", "inter", "base"):
        snapshotter.remove(key)
    assert names(snapshotter) == set()
    with pytest.raises(NotFoundError):
        snapshotter.remove("base")


def test_times_and_labels_follow_the_rules(snapshotter: Contract) -> None:
    before = time.time_ns()
    commit(snapshotter, "c1")
    snapshotter.view("v1", "c1", labels={"l1": "v1", "empty": ""})
    created = snapshotter.stat("v1")
    assert before <= created.created_ns == created.updated_ns <= time.time_ns()
    assert created.labels == {"l1": "v1"}

    wanted = replace(created, parent="doesnotexist", labels={"l1": "new", "l2": "v2"})
    updated = snapshotter.update(wanted)
    assert updated == snapshotter.stat("v1")
    assert updated == replace(
        created, labels={"l1": "new", "l2": "v2"}, updated_ns=updated.updated_ns
    )
    assert updated.updated_ns > created.updated_ns

    snapshotter.update(replace(created, labels={"l2": "only this"}), "labels.l2")
    assert snapshotter.stat("v1").labels == {"l1": "new", "l2": "only this"}
    snapshotter.update(replace(created, labels={}), "labels.l1")
    assert snapshotter.stat("v1").labels == {"l2": "only this"}
    with pytest.raises(InvalidArgumentError):
        snapshotter.update(created, "parent")
    with pytest.raises(NotFoundError):
        snapshotter.update(replace(created, name="missing"))


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ((), {"a-np", "p", "a", "v", "p-wl", "a-wl", "v-wl", "a-np-wl"}),
        (("kind==active",), {"a-np", "a", "a-wl", "a-np-wl"}),
        (("kind==view,labels.l",), {"v-wl"}),
        (("kind==committed",), {"p", "p-wl"}),
        (("parent==p",), {"a", "v"}),
        (("parent!=p", "labels.l==3"), {"a-np", "p", "p-wl", "a-wl", "v-wl", "a-np-wl"}),
        (("name~=^a", "kind==view"), {"a-np", "a", "a-wl", "a-np-wl", "v", "v-wl"}),
        (("labels.l==2,parent==p-wl",), {"a-wl"}),
        (("labels.missing",), set()),
    ],
)
def test_walk_sees_what_the_filters_match(
    snapshotter: Contract, filters: tuple[str, ...], expected: set[str]
) -> None:
    snapshotter.prepare("a-np")
    commit(snapshotter, "p")
    snapshotter.prepare("a", "p")
    snapshotter.view("v", "p")
    snapshotter.prepare("p-wl-tmp")
    snapshotter.commit("p-wl", "p-wl-tmp", labels={"l": "1"})
    snapshotter.prepare("a-wl", "p-wl", labels={"l": "2"})
    snapshotter.view("v-wl", "p-wl", labels={"l": "3"})
    snapshotter.prepare("a-np-wl", labels={"l": "2"})
    assert names(snapshotter, *filters) == expected


def test_a_bad_filter_fails_the_whole_walk(snapshotter: Contract) -> None:
    snapshotter.prepare("a")
    with pytest.raises(InvalidArgumentError):
        names(snapshotter, "kind==active", "name=~")


def test_other_calls_work_within_a_walk(snapshotter: Contract) -> None:
    commit(snapshotter, "p")
    snapshotter.prepare("a", "p")
    seen = {info.name: snapshotter.stat(info.name) for info in snapshotter.walk()}
    assert seen.keys() == {"p", "a"}
    for info in snapshotter.walk("kind==active"):
        snapshotter.remove(info.name)
    assert names(snapshotter) == {"p"}


def test_usage_is_of_the_snapshot_alone(snapshotter: Contract) -> None:
    commit(snapshotter, "p")
    snapshotter.view("v", "p")
    assert snapshotter.usage("v").size == 0
    assert snapshotter.usage("p").inodes > 0
    with pytest.raises(NotFoundError):
        snapshotter.usage("missing")


def test_a_parent_may_be_given_at_commit(snapshotter: Contract) -> None:
    commit(snapshotter, "base")
    snapshotter.prepare("key")
    snapshotter.commit("name", "key", parent="base")
    assert snapshotter.stat("name").parent == "base"


def test_close_may_be_repeated(snapshotter: Contract) -> None:
    commit(snapshotter, "p")
    snapshotter.remove("p")
    snapshotter.close()
    snapshotter.close()

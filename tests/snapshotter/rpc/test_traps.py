"""What containerd makes of the answers of a proxy: the traps (a) to (h) of its client side."""

from __future__ import annotations

import itertools
import time

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter import Snapshotter
from snapshotter.mounts import Mount
from snapshotter.rpc import messages
from snapshotter.rpc.snapshots_v1 import batches, encoded_mounts
from tests.fakes.ntfs import FakeNtfs
from tests.snapshotter.rpc.client import Client, failure, layer

REF = "containerd.io/snapshot.ref"
VIEW, ACTIVE, COMMITTED = 1, 2, 3
TEXT = "x" * 1000
"""A label's value, so that a few snapshots take more than one message."""


def test_a_remote_snapshot_is_found_by_the_filter_that_containerd_sends(client: Client) -> None:
    # (a) After AlreadyExists from a Prepare with a snapshot.ref, containerd looks for it so.
    client.prepare("k8s.io/1/extract-1 sha256:aa", "", **{REF: "sha256:aa"})
    client.commit("k8s.io/2/sha256:aa", "k8s.io/1/extract-1 sha256:aa", **{REF: "sha256:aa"})
    client.prepare("k8s.io/3/extract-2 sha256:bb", "k8s.io/2/sha256:aa", **{REF: "sha256:bb"})
    client.commit("k8s.io/4/sha256:bb", "k8s.io/3/extract-2 sha256:bb", **{REF: "sha256:bb"})
    found = f'labels."{REF}"==sha256:bb,parent=="k8s.io/2/sha256:aa"'
    assert client.names(found) == ["k8s.io/4/sha256:bb"]
    assert client.names(f'labels."{REF}"==sha256:aa,parent==""') == ["k8s.io/2/sha256:aa"]
    assert client.names(f'labels."{REF}"==sha256:bb,parent==""') == []


def test_an_unpacker_is_told_of_a_layer_that_is_there(client: Client, store: Snapshotter) -> None:
    # (a) With the label, AlreadyExists means the layer; containerd then looks as above.
    client.prepare("k8s.io/1/extract-1 sha256:aa", "", **{REF: "sha256:aa"})
    (store.directory("k8s.io/1/extract-1 sha256:aa") / "layer.vhd").write_bytes(b"layer")
    client.commit("k8s.io/2/sha256:aa", "k8s.io/1/extract-1 sha256:aa", **{REF: "sha256:aa"})
    again = "demo/3/extract-2 sha256:aa"
    code, details = failure(lambda: client.prepare(again, "", **{REF: "sha256:aa"}))
    assert (code, "k8s.io/2/sha256:aa" in details) == ("ALREADY_EXISTS", True)
    assert client.names() == ["k8s.io/2/sha256:aa"]
    client.prepare(again)  # without it, whoever asks is not prepared for that answer


def test_a_refused_remove_says_remove(client: Client) -> None:
    # (b)
    layer(client, "base")
    client.view("v", "base")
    code, details = failure(lambda: client.remove("base"))
    assert (code, "remove" in details) == ("FAILED_PRECONDITION", True)


def test_empty_labels_are_dropped_and_absent_ones_deleted(client: Client) -> None:
    # (c)
    client.prepare("a", keep="1", empty="", gone="2")
    assert dict(client.stat("a").labels) == {"keep": "1", "gone": "2"}
    updated = client.update({"name": "a", "labels": {"new": "3"}}, "labels.gone", "labels.new")
    assert dict(updated.labels) == {"keep": "1", "new": "3"}
    assert client.stat("a") == updated
    assert updated.updated_at.ToNanoseconds() > updated.created_at.ToNanoseconds()
    replaced = client.update({"name": "a", "parent": "x", "kind": VIEW, "labels": {"l.a": "4"}})
    assert (dict(replaced.labels), replaced.parent, replaced.kind) == ({"l.a": "4"}, "", ACTIVE)
    assert dict(client.update({"name": "a"}, "labels").labels) == {}


def test_commit_replaces_labels_and_sets_both_times(client: Client) -> None:
    # (d)
    client.prepare("extract-a", old="1")
    before = client.stat("extract-a")
    client.commit("a", "extract-a", new="2")
    info = client.stat("a")
    assert dict(info.labels) == {"new": "2"}
    assert info.created_at == info.updated_at
    assert info.created_at.ToNanoseconds() > before.created_at.ToNanoseconds()
    assert info.kind == COMMITTED


def test_commit_takes_as_long_for_a_large_layer_as_for_none(
    client: Client, store: Snapshotter
) -> None:
    # (e) containerd holds its own write transaction meanwhile: nothing of the layer is read.
    client.prepare("extract-a")
    layer_file = store.directory("extract-a") / "layer.vhd"
    with layer_file.open("wb") as file:
        file.truncate(1 << 40)
    began = time.monotonic()
    client.commit("a", "extract-a")
    assert time.monotonic() - began < 5
    assert client.stat("a").kind == COMMITTED


def test_stat_inside_a_list_answers(client: Client) -> None:
    # (f) containerd's Walk asks for the Stat of each snapshot while it lists.
    for number in range(250):
        client.view(f"v{number:03}", text=TEXT)
    seen = [client.stat(info.name).name for batch in client.batches() for info in batch]
    assert seen == [f"v{number:03}" for number in range(250)]


def test_lists_come_in_few_messages_and_empty_ones_in_none(client: Client) -> None:
    assert list(client.batches()) == []
    for number in range(300):
        client.view(f"v{number:03}", text=TEXT)
    found = list(client.batches())
    # 128 KiB each; more than 4 MiB in one would be refused by most clients.
    assert [len(batch) > 100 for batch in found] == [True, True, False]
    assert [info.name for batch in found for info in batch] == [f"v{n:03}" for n in range(300)]
    assert list(client.batches("name==none")) == []


@given(
    frames=st.lists(st.binary(min_size=1, max_size=12)),
    size=st.integers(1, 20),
)
def test_frames_are_joined_as_far_as_a_message_has_room(frames: list[bytes], size: int) -> None:
    joined = list(batches(iter(frames), size=size))
    assert b"".join(joined) == b"".join(frames)
    assert all(len(batch) <= size or batch in frames for batch in joined)
    # Two neighbours would not have fitted into one.
    assert all(len(one) + len(two) > size for one, two in itertools.pairwise(joined))


@given(st.lists(st.builds(Mount, st.text(), st.text(), st.lists(st.text()).map(tuple))))
def test_mounts_are_encoded_as_protobuf_does(mounts: list[Mount]) -> None:
    answer = messages.MountsResponse.FromString(encoded_mounts(mounts))
    assert [Mount(each.type, each.source, tuple(each.options)) for each in answer.mounts] == mounts


def test_a_garbage_collection_lists_removes_and_cleans_up(
    client: Client, store: Snapshotter
) -> None:
    # (h) everything without a filter, children first, then Cleanup.
    layer(client, "base")
    layer(client, "top", "base")
    client.prepare("pod", "top")
    infos = {info.name: info for info in client.infos()}
    parents = {info.parent for info in infos.values()}
    while infos:
        leaf = next(name for name in infos if name not in parents)
        client.remove(leaf)
        del infos[leaf]
        parents = {info.parent for info in infos.values()}
    (store.root / "snapshots/rm-99").mkdir()
    client.cleanup()
    assert list((store.root / "snapshots").iterdir()) == []
    assert list((store.root / "scratch").iterdir()) == []


@pytest.mark.parametrize("platform", ["ntfs"], indirect=True)
def test_a_collection_skips_a_disk_in_use_and_takes_the_rest(
    client: Client, store: Snapshotter, ntfs: FakeNtfs
) -> None:
    # Any other code would end containerd's collection there (core/metadata, pruneBranch).
    for key in ("a", "busy", "c"):
        client.prepare(key)
    shared = store.shared_disk("busy")
    assert shared is not None
    with ntfs.hold(shared.path):
        refusals = {key: removal_code(client, key) for key in client.names()}
        assert refusals == {"a": "OK", "busy": "FAILED_PRECONDITION", "c": "OK"}
        client.cleanup()
        assert shared.path.is_file()
    client.remove("busy")
    client.cleanup()
    assert list((store.root / "scratch").iterdir()) == []


def removal_code(client: Client, key: str) -> str:
    try:
        client.remove(key)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def test_a_parent_may_come_with_the_commit(client: Client) -> None:
    # containerd 2.2, capability "rebase": layers are unpacked side by side.
    layer(client, "base")
    client.prepare("extract-top")
    client.commit("top", "extract-top", parent="base")
    assert client.stat("top").parent == "base"
    (mount,) = client.prepare("pod", "top")
    assert mount.options[1].count("/snapshots/") == 2

"""Sharing a scratch disk, and what containerd's own plugin gets wrong about it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snapshotter import Info, Snapshotter
from snapshotter.errors import InvalidArgumentError, NotFoundError, UnavailableError
from snapshotter.labels import LOCATION, OWNER_KEY, REUSE_SCRATCH, SIZE_BYTES, SIZE_GB
from snapshotter.units import GIB


def share(owner: str, **more: str) -> dict[str, str]:
    return {REUSE_SCRATCH: "true", OWNER_KEY: owner, **more}


def disk(store: Snapshotter, key: str) -> Path:
    """The canonical path of a snapshot's scratch disk, as hcsshim resolves it."""
    (mount,) = store.mounts(key)
    return (Path(mount.source) / "sandbox.vhdx").resolve(strict=True)


def holders(store: Snapshotter, key: str) -> list[tuple[str, bool]]:
    shared = store.shared_disk(key)
    assert shared is not None
    return [(holder.key, holder.owner) for holder in shared.holders]


def test_owner_and_sharers_link_to_one_canonical_path(store: Snapshotter) -> None:
    store.prepare("k8s.io/1/pod")
    store.prepare("k8s.io/2/c1", labels=share("pod"))
    store.prepare("k8s.io/3/c2", labels=share("pod"))
    keys = ("k8s.io/1/pod", "k8s.io/2/c1", "k8s.io/3/c2")
    expected = store.root / "scratch/1/sandbox.vhdx"
    assert {disk(store, key) for key in keys} == {expected}
    for key in keys:
        link = store.directory(key) / "sandbox.vhdx"
        assert os.readlink(link) == str(expected)


def test_the_full_key_names_the_owner(store: Snapshotter) -> None:
    store.prepare("k8s.io/1/pod")
    store.prepare("k8s.io/2/c1", labels=share("k8s.io/1/pod"))
    assert disk(store, "k8s.io/2/c1") == disk(store, "k8s.io/1/pod")


def test_keys_without_a_namespace_name_the_owner_as_they_are(store: Snapshotter) -> None:
    store.prepare("pod")
    store.prepare("c1", labels=share("pod"))
    assert holders(store, "c1") == [("pod", True), ("c1", False)]


def test_an_owner_key_is_no_substring(store: Snapshotter) -> None:
    # Upstream: owner "pod1" = k8s.io/10/pod1 loses to k8s.io/9/pod10, which sorts last.
    store.prepare("k8s.io/10/pod1")
    store.prepare("k8s.io/9/pod10")
    store.prepare("k8s.io/11/c", labels=share("pod1"))
    assert disk(store, "k8s.io/11/c") == disk(store, "k8s.io/10/pod1")


@pytest.mark.parametrize("owner", ["k8s.io", "1", "od1", "/", "k8s.io/1", "pod1/"])
def test_a_part_of_a_key_names_nobody(store: Snapshotter, owner: str) -> None:
    store.prepare("k8s.io/1/pod1")
    with pytest.raises(NotFoundError):
        store.prepare("k8s.io/2/c", labels=share(owner))


def test_the_same_client_key_in_another_namespace_is_somebody_else(store: Snapshotter) -> None:
    store.prepare("aaa/1/pod")
    store.prepare("zzz/2/pod")
    store.prepare("aaa/3/c", labels=share("pod"))
    assert disk(store, "aaa/3/c") == disk(store, "aaa/1/pod")


def test_a_full_key_does_not_reach_into_another_namespace(store: Snapshotter) -> None:
    store.prepare("tenant-b/1/pod")
    with pytest.raises(NotFoundError, match="outside the namespace 'tenant-a'"):
        store.prepare("tenant-a/2/c", labels=share("tenant-b/1/pod"))


def test_two_owners_are_refused_naming_both(store: Snapshotter) -> None:
    store.prepare("k8s.io/1/pod")
    store.prepare("k8s.io/2/pod")
    with pytest.raises(InvalidArgumentError, match=r"'k8s.io/1/pod' and 'k8s.io/2/pod'"):
        store.prepare("k8s.io/3/c", labels=share("pod"))


def test_a_missing_owner_says_what_was_searched(store: Snapshotter) -> None:
    with pytest.raises(NotFoundError) as caught:
        store.prepare("k8s.io/3/c", labels=share("pod"))
    for part in ("full key 'pod'", "client key 'pod'", "namespace 'k8s.io'", OWNER_KEY):
        assert part in str(caught.value)
    assert list(store.walk()) == []


def test_a_committed_container_or_its_view_is_no_owner(store: Snapshotter) -> None:
    store.prepare("pod")
    store.commit("image", "pod")
    store.view("v", "image")
    with pytest.raises(NotFoundError, match="'image' is committed"):
        store.prepare("c1", labels=share("image"))
    with pytest.raises(NotFoundError, match="'v' is view"):
        store.prepare("c1", labels=share("v"))


def test_a_committed_snapshot_of_a_similar_name_disturbs_nobody(store: Snapshotter) -> None:
    # Upstream: one committed name that contains the owner key makes every share fail.
    store.prepare("k8s.io/1/pod")
    store.prepare("k8s.io/2/extract-1 z")
    store.commit("k8s.io/9/zz-pod", "k8s.io/2/extract-1 z")
    store.prepare("k8s.io/3/c", labels=share("pod"))
    assert disk(store, "k8s.io/3/c") == disk(store, "k8s.io/1/pod")


def test_an_unpack_snapshot_is_no_owner(store: Snapshotter) -> None:
    store.prepare("extract-1 x")
    with pytest.raises(NotFoundError, match="unpack snapshot"):
        store.prepare("c1", labels=share("extract-1 x"))


def test_a_sharer_may_own_and_the_disk_is_still_the_same(store: Snapshotter) -> None:
    # Upstream: a link to a link, dead as soon as the middle one goes.
    store.prepare("pod")
    store.prepare("middle", labels=share("pod"))
    store.prepare("last", labels=share("middle"))
    store.remove("middle")
    assert disk(store, "last") == disk(store, "pod")


def test_the_disk_outlives_its_owner_until_the_last_sharer_goes(store: Snapshotter) -> None:
    store.prepare("pod")
    store.prepare("c1", labels=share("pod"))
    store.prepare("c2", labels=share("pod"))
    path = disk(store, "pod")
    path.write_bytes(b"PRECIOUS")
    store.remove("pod")
    assert disk(store, "c1").read_bytes() == b"PRECIOUS"
    store.remove("c1")
    assert disk(store, "c2").read_bytes() == b"PRECIOUS"
    assert holders(store, "c2") == [("c2", False)]
    store.remove("c2")
    assert not path.exists()
    assert list((store.root / "scratch").iterdir()) == []


def test_an_owner_that_is_gone_cannot_be_named_but_its_sharers_can(store: Snapshotter) -> None:
    store.prepare("pod")
    store.prepare("c1", labels=share("pod"))
    store.remove("pod")
    with pytest.raises(NotFoundError):
        store.prepare("c2", labels=share("pod"))
    store.prepare("c2", labels=share("c1"))
    assert disk(store, "c2") == disk(store, "c1")


def test_a_new_owner_of_an_old_name_gets_a_disk_of_its_own(store: Snapshotter) -> None:
    store.prepare("pod")
    store.prepare("c1", labels=share("pod"))
    old = disk(store, "c1")
    store.remove("pod")
    store.prepare("pod")
    assert disk(store, "pod") != old


def test_erasing_the_labels_does_not_erase_the_share(store: Snapshotter) -> None:
    store.prepare("pod")
    store.prepare("c1", labels=share("pod"))
    store.update(Info("c1"))
    store.remove("pod")
    assert disk(store, "c1").exists()


def test_a_committed_holder_keeps_the_disk(store: Snapshotter) -> None:
    store.prepare("pod")
    store.prepare("c1", labels=share("pod"))
    path = disk(store, "pod")
    store.commit("image", "pod")
    store.remove("c1")
    assert path.exists()
    store.remove("image")
    assert not path.exists()


@pytest.mark.parametrize(("name", "value"), [(SIZE_GB, "3"), (SIZE_BYTES, str(3 * GIB))])
def test_another_size_than_the_owners_is_refused(store: Snapshotter, name: str, value: str) -> None:
    store.prepare("pod", labels={SIZE_GB: "2"})
    with pytest.raises(InvalidArgumentError, match=str(3 * GIB)):
        store.prepare("c1", labels=share("pod", **{name: value}))
    store.prepare("c2", labels=share("pod", **{SIZE_GB: "2"}))


def test_another_location_than_the_owners_is_refused(tmp_path: Path) -> None:
    fast = tmp_path / "fast"
    fast.mkdir()
    with Snapshotter.open(tmp_path / "r", durable=False, scratch_locations=[fast]) as store:
        store.prepare("pod")
        with pytest.raises(InvalidArgumentError, match="location"):
            store.prepare("c1", labels=share("pod", **{LOCATION: str(fast)}))
        store.prepare("pod2", labels={LOCATION: str(fast)})
        store.prepare("c2", labels=share("pod2", **{LOCATION: str(fast)}))
        assert disk(store, "c2") == disk(store, "pod2")


def test_usage_counts_the_disk_once(store: Snapshotter) -> None:
    store.prepare("pod")
    store.prepare("c1", labels=share("pod"))
    store.prepare("c2", labels=share("pod"))
    with disk(store, "pod").open("ab") as file:
        file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())
    sizes = [store.usage(key).size for key in ("pod", "c1", "c2")]
    assert [size >= 1 << 20 for size in sizes] == [True, False, False]
    store.remove("pod")
    sizes = [store.usage(key).size for key in ("c1", "c2")]
    assert [size >= 1 << 20 for size in sizes] == [True, False]


def test_committing_the_owner_moves_no_cost_to_the_sharers(store: Snapshotter) -> None:
    store.prepare("pod")
    store.prepare("c1", labels=share("pod"))
    before = store.usage("pod"), store.usage("c1")
    store.commit("image", "pod")
    assert (store.usage("image"), store.usage("c1")) == before


def test_a_share_on_an_empty_store_is_refused_plainly(store: Snapshotter) -> None:
    with pytest.raises(NotFoundError, match="no active snapshot"):
        store.prepare("c1", labels=share("pod"))


def test_a_disk_that_vanished_is_not_linked_to(store: Snapshotter) -> None:
    store.prepare("pod")
    disk(store, "pod").unlink()
    with pytest.raises(UnavailableError, match="is missing"):
        store.prepare("c1", labels=share("pod"))
    assert [info.name for info in store.walk()] == ["pod"]

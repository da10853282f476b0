"""A real containerd 1.6 (Debian's) with our service as its proxy plugin, driven by `ctr`."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from harness.image.demo import DEMO_NAME
from snapshotter import Snapshotter, import_image
from snapshotter.ext4.reader import Ext4
from snapshotter.mounts import LAYER_NAME
from snapshotter.rpc import messages
from snapshotter.rpc.descriptors import Message
from snapshotter.vhd import FixedVhd
from tests.conformance.client import RemoteSnapshotter
from tests.conformance.stack import NAMESPACE, Stack
from tests.conformance.trees import tree
from tests.snapshotter.rpc.client import Client

LAYERS = 3
"""Of the demo image."""


@contextlib.contextmanager
def mounted(command: str, target: Path) -> Iterator[Path]:
    """Run the mount command that `ctr snapshots mounts` printed."""
    subprocess.run(shlex.split(command), check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", str(target)], check=True)


def directories(stack: Stack) -> list[str]:
    return sorted(path.name for path in (stack.store / "snapshots").iterdir())


def until_empty(stack: Stack) -> None:
    """containerd collects garbage in the background."""
    for _ in range(100):
        if not stack.table() and not directories(stack):
            return
        time.sleep(0.1)
    assert stack.table() == {}
    assert directories(stack) == []


@pytest.mark.parametrize("mounts", ["lcow", "linux-host"])
def test_every_command_of_ctr_snapshots_works(mounts: str, folder: Path) -> None:
    # Nothing refers to the view that `ctr` makes: a collection takes it away.
    with Stack.running(folder, mounts=mounts, first_collection="0s") as stack:
        stack.snapshots("prepare", "a")
        stack.snapshots("commit", "base", "a")
        stack.snapshots("prepare", "c1", "base")
        stack.snapshots("view", "v1", "base")
        assert stack.table() == {
            "base": ("", "Committed"),
            "c1": ("base", "Active"),
            "v1": ("base", "View"),
        }
        stack.snapshots("label", "c1", "team=red", "stage=2")
        info = json.loads(stack.snapshots("info", "c1"))
        assert (info["Kind"], info["Parent"]) == ("Active", "base")
        assert info["Labels"].items() >= {"team": "red", "stage": "2"}.items()
        assert stack.snapshots("tree").split() == ["base", "\\_", "c1", "\\_", "v1"]
        shown = stack.snapshots("mounts", str(folder / "mnt"), "c1")
        assert ("lcow-layer" if mounts == "lcow" else "overlay") in shown
        assert "c1" in stack.snapshots("usage", "c1")
        refused = stack.snapshots("rm", "base", fails=True)
        assert "failed precondition" in refused
        assert "not found" in stack.snapshots("info", "missing", fails=True)
        assert "already exists" in stack.snapshots("prepare", "c1", fails=True)
        for key in ("v1", "c1", "base"):
            stack.snapshots("rm", key)
        assert stack.table() == {}


def test_an_image_looks_as_under_overlayfs_and_is_collected_when_removed(
    folder: Path, image: Path
) -> None:
    with Stack.running(folder, mounts="linux-host") as stack:
        trees = {}
        for plugin in ("overlayfs", "lcow"):
            stack.ctr("images", "import", "--snapshotter", plugin, str(image))
            table = [
                line.split()
                for line in stack.ctr("snapshots", "--snapshotter", plugin, "ls").splitlines()[1:]
            ]
            parents = {row[1] for row in table if len(row) == 3}
            (top,) = {row[0] for row in table} - parents
            assert len(table) == LAYERS
            target = folder / "mnt"
            stack.ctr("snapshots", "--snapshotter", plugin, "prepare", "look", top)
            command = stack.ctr("snapshots", "--snapshotter", plugin, "mounts", str(target), "look")
            with mounted(command, target):
                trees[plugin] = tree(target)
            stack.ctr("snapshots", "--snapshotter", plugin, "rm", "look")
        assert trees["lcow"] == trees["overlayfs"]
        assert len(trees["lcow"]) > 10
        stack.ctr("images", "rm", "--sync", *stack.ctr("images", "ls", "-q").split())
        until_empty(stack)


def test_changes_of_a_container_are_seen_by_containerds_differ(folder: Path, image: Path) -> None:
    with Stack.running(folder, mounts="linux-host") as stack:
        stack.ctr("images", "import", "--snapshotter", "lcow", str(image))
        (top,) = set(stack.table()) - {parent for parent, _ in stack.table().values()}
        target = folder / "mnt"
        stack.snapshots("prepare", "c1", top)
        with mounted(stack.snapshots("mounts", str(target), "c1"), target):
            (target / "new").write_text("new")
            (target / "etc/motd").unlink()
        command = ["ctr", "-a", str(stack.containerd.socket), "-n", NAMESPACE]
        command += ["snapshots", "--snapshotter", "lcow", "diff", "c1"]
        layer = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
        listed = subprocess.run(["tar", "-tz"], input=layer, capture_output=True, check=True)
        members = set(listed.stdout.decode().split())
        assert {"new", "etc/.wh.motd"} <= members
        assert not any("lost+found" in name for name in members)


def test_either_side_may_be_killed_in_the_middle(folder: Path, image: Path) -> None:
    with Stack.running(folder, mounts="linux-host") as stack:
        stack.ctr("images", "import", "--snapshotter", "lcow", str(image))
        layers = stack.table()
        (top,) = set(layers) - {parent for parent, _ in layers.values()}
        stack.snapshots("prepare", "c1", top)
        target = folder / "mnt"
        with mounted(stack.snapshots("mounts", str(target), "c1"), target):
            stack.service.kill()
            (target / "file").write_text("written while nobody served")
            assert "unavailable" in stack.snapshots("ls", fails=True)
        stack.service.start()
        stack.until_answers()
        with mounted(stack.snapshots("mounts", str(target), "c1"), target):
            assert (target / "file").read_text() == "written while nobody served"
        stack.containerd.kill()
        stack.containerd.start()
        assert stack.table() == {**layers, "c1": (top, "Active")}
        stack.snapshots("commit", "saved", "c1")
        # Not a view: nothing roots one, and the collection that a restart brings would take it.
        stack.snapshots("prepare", "look", "saved")
        with mounted(stack.snapshots("mounts", str(target), "look"), target):
            assert (target / "file").read_text() == "written while nobody served"


def test_a_collection_goes_on_past_a_snapshot_in_use(folder: Path) -> None:
    with Stack.running(folder, mounts="lcow", first_collection="0s") as stack:
        for key in ("a", "b", "c"):
            stack.snapshots("prepare", key)
        found = re.search(r"/snapshots/\d+", stack.snapshots("mounts", str(folder / "mnt"), "b"))
        assert found is not None
        busy = Path(f"{stack.store}{found[0]}")
        subprocess.run(["mount", "--bind", str(busy), str(busy)], check=True)
        try:
            stack.snapshots("rm", "a", "b", "c")
            collect(stack)
            assert directories(stack) == [busy.name]
        finally:
            subprocess.run(["umount", str(busy)], check=True)
        stack.snapshots("prepare", "d")
        stack.snapshots("rm", "d")  # else containerd finds nothing to look at again
        collect(stack)
        assert directories(stack) == []


def test_what_others_put_into_its_store_containerd_removes(folder: Path, image: Path) -> None:
    # docs/containerd.md warns of it.
    with Stack.running(folder, mounts="lcow", first_collection="0s") as stack:
        with Snapshotter.open(stack.store) as store:
            import_image(store, image)
            store.prepare("pod")
        stack.snapshots("prepare", "x")
        stack.snapshots("rm", "x")
        collect(stack)
        assert directories(stack) == []


def test_layers_unpacked_in_one_mode_are_there_in_the_other(folder: Path, image: Path) -> None:
    with Stack.running(folder, mounts="linux-host", first_collection="0s") as unpacking:
        unpacking.ctr("images", "import", "--snapshotter", "lcow", str(image))
        layers = unpacking.table()
    (top,) = set(layers) - {parent for parent, _ in layers.values()}
    with Stack.running(folder, mounts="lcow", first_collection="0s") as stack:
        assert stack.table() == layers
        stack.snapshots("prepare", "c1", top)
        shown = stack.snapshots("mounts", str(folder / "mnt"), "c1")
        parents = json.loads(shown.partition("parentLayerPaths=")[2])
        assert len(parents) == LAYERS
        for parent in parents:
            with FixedVhd.open(Path(parent) / LAYER_NAME) as disk:
                assert Ext4.open(disk).listdir("/")


def collect(stack: Stack) -> None:
    """Have containerd collect garbage now. Fails where the collection does."""
    lease = stack.ctr("leases", "create").strip()
    stack.ctr("leases", "rm", "--sync", lease)


def test_a_layer_that_another_namespace_unpacked_is_taken_from_the_store(folder: Path) -> None:
    # containerd's remote snapshots: whoever names the layer is told that it is there.
    chain, ref = "sha256:" + "a" * 64, "containerd.io/snapshot.ref"
    with (
        Stack.running(folder, mounts="lcow", first_collection="0s") as stack,
        Client(stack.containerd.socket, namespace="one") as one,
        Client(stack.containerd.socket, namespace="two") as two,
    ):
        key = f"extract-1 {chain}"
        (mount,) = one.prepare(key, "", **{ref: chain})
        (Path(mount.source) / LAYER_NAME).write_bytes(b"layer")
        one.commit(chain, key, **{ref: chain, "containerd.io/gc.root": "x"})
        with pytest.raises(grpc.RpcError) as told:
            two.prepare(f"extract-2 {chain}", "", **{ref: chain, "containerd.io/gc.root": "x"})
        assert told.value.code() is grpc.StatusCode.ALREADY_EXISTS
        assert two.stat(chain).kind == one.stat(chain).kind
        (container,) = two.prepare("container", chain)
        assert str(Path(mount.source)) in container.options[1]
        # The layer stays for the one that took it over.
        one.remove(chain)
        kept = {Path(each.source).name for each in (mount, container)}
        assert set(directories(stack)) == kept


def test_diff_v1_applies_blobs_of_containerds_content_store(folder: Path, image: Path) -> None:
    with Stack.running(folder, mounts="lcow") as stack:
        stack.ctr("images", "import", "--no-unpack", str(image))
        (name,) = stack.ctr("images", "ls", "-q").split()
        assert name.endswith(DEMO_NAME)
        digest = next(
            word for word in stack.ctr("images", "ls").split() if word.startswith("sha256:")
        )
        manifest = json.loads(stack.ctr("content", "get", digest))
        if "manifests" in manifest:
            manifest = json.loads(stack.ctr("content", "get", manifest["manifests"][0]["digest"]))
        config = json.loads(stack.ctr("content", "get", manifest["config"]["digest"]))
        client = RemoteSnapshotter.dial(stack.service.socket)
        parent = ""
        for number, (blob, diff_id) in enumerate(
            zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True)
        ):
            key = f"extract-{number} {diff_id}"
            mounts = client.prepare(key, parent)
            applied = apply(stack, blob, mounts)
            assert applied.digest == diff_id
            client.commit(diff_id, key)
            parent = diff_id
        (mount,) = client.prepare("c1", parent)
        assert len(mount.parent_layer_paths) == LAYERS
        with FixedVhd.open(mount.parent_layer_paths[-1] / LAYER_NAME) as disk:
            assert "bin" in Ext4.open(disk).listdir("/")
        foreign = messages.Mount(type="overlay", source="overlay", options=["ro"])
        with pytest.raises(grpc.RpcError) as refused:
            call_apply(stack, blob, [foreign])
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        client.close()


def apply(stack: Stack, blob: dict[str, object], mounts: object) -> Message:
    assert isinstance(mounts, list)
    return call_apply(
        stack,
        blob,
        [messages.Mount(type=m.type, source=m.source, options=m.options) for m in mounts],
    )


def call_apply(stack: Stack, blob: dict[str, object], mounts: list[Message]) -> Message:
    """diff.v1 Apply on our socket; what it says was applied."""
    request = messages.ApplyRequest(
        diff=messages.Descriptor(
            media_type=blob["mediaType"], digest=blob["digest"], size=blob["size"]
        ),
        mounts=mounts,
    )
    with grpc.insecure_channel(f"unix://{stack.service.socket}") as channel:
        call = channel.unary_unary(
            f"/{messages.DIFF}.Diff/Apply",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=messages.ApplyResponse.FromString,
        )
        answer: Message = call(
            request, metadata=(("containerd-namespace", NAMESPACE),), timeout=60
        ).applied
        return answer

"""diff.v1 over a real socket, against a content store on another one."""

from __future__ import annotations

import hashlib
import random
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from snapshotter import Snapshotter
from snapshotter.ext4.reader import Ext4
from snapshotter.rpc import messages
from snapshotter.rpc.content import ContainerdContent
from snapshotter.rpc.descriptors import Message
from snapshotter.rpc.diff_v1 import DiffService
from snapshotter.rpc.server import Server
from snapshotter.rpc.snapshots_v1 import SnapshotsService
from snapshotter.vhd import FixedVhd
from tests.snapshotter.archives import compress, digest, tar
from tests.snapshotter.rpc.client import Client

OCI = "application/vnd.oci.image.layer.v1.tar"
TAR = tar({"etc/hostname": b"lcow\n", "etc/.wh.motd": b""}) + b"\0" * 1000


class Blobs:
    """containerd's content API, Read alone: blobs by namespace and digest."""

    def __init__(self) -> None:
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.lost = 0  # bytes missing at the end
        self.stuck = threading.Event()
        self.hanging = False
        self.chunk = 100
        self.reads = 0  # to the end

    def add(self, data: bytes, namespace: str = "k8s.io") -> str:
        self.blobs[namespace, digest(data)] = data
        return digest(data)

    def read(self, request: Message, context: Any) -> Iterator[bytes]:  # noqa: ANN401
        namespace = dict(context.invocation_metadata())["containerd-namespace"]
        blob = self.blobs.get((namespace, request.digest))
        if blob is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"content digest {request.digest}: not found")
            return
        for at in range(0, len(blob) - self.lost, self.chunk):
            data = blob[at : min(at + self.chunk, len(blob) - self.lost)]
            yield messages.ReadContentResponse(offset=at, data=data).SerializeToString()
        self.reads += 1
        if self.hanging:
            self.stuck.set()
            ended = threading.Event()
            context.add_callback(ended.set)
            ended.wait(30)


@pytest.fixture
def blobs() -> Blobs:
    return Blobs()


@pytest.fixture
def containerd(blobs: Blobs, sockets: Path) -> Iterator[str]:
    address = f"unix://{sockets / 'containerd'}"
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        handler = grpc.unary_stream_rpc_method_handler(
            blobs.read, messages.ReadContentRequest.FromString
        )
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(f"{messages.CONTENT}.Content", {"Read": handler})]
        )
        server.add_insecure_port(address)
        server.start()
        yield address
        server.stop(0).wait()


@pytest.fixture
def client(store: Snapshotter, sockets: Path, containerd: str) -> Iterator[Client]:
    content = ContainerdContent(containerd)
    layers = DiffService(store.root / "snapshots", content, store.layers)
    server = Server.start(sockets / "s", [SnapshotsService(store), layers])
    with Client(sockets / "s") as connected:
        yield connected
    assert server.stop(grace_s=5)
    content.close()


def apply(
    client: Client, mounts: list[Message], blob: str, size: int = 0, media_type: str = OCI
) -> Message:
    request = messages.ApplyRequest(
        diff={"media_type": media_type, "digest": blob, "size": size}, mounts=mounts
    )
    method = "containerd.services.diff.v1.Diff/Apply"
    applied: Message = client.call(method, request, messages.ApplyResponse).applied
    return applied


def code(caught: pytest.ExceptionInfo[grpc.RpcError]) -> str:
    return str(caught.value.code().name)


@pytest.mark.parametrize(
    ("how", "media_type"),
    [
        ("", OCI),
        ("gzip", f"{OCI}+gzip"),
        ("zstd", f"{OCI}+zstd"),
        ("gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip"),
    ],
)
def test_a_layer_becomes_layer_vhd_and_the_answer_is_about_the_tar(
    client: Client, blobs: Blobs, store: Snapshotter, how: str, media_type: str
) -> None:
    blob = compress(TAR, how) if how else TAR
    mounts = client.prepare("extract-1")
    applied = apply(client, mounts, blobs.add(blob), len(blob), media_type)
    assert applied.media_type == OCI
    assert applied.size == len(TAR)
    assert applied.digest == f"sha256:{hashlib.sha256(TAR).hexdigest()}"
    client.commit("base", "extract-1")
    with FixedVhd.open(store.directory("base") / "layer.vhd") as disk:
        tree = Ext4.open(disk)
        assert tree.read("/etc/hostname") == b"lcow\n"
        assert stat.S_ISCHR(tree.stat("/etc/motd").mode)  # a whiteout


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("overlay", "{snapshots}/1"),
        ("bind", "{snapshots}/1"),
        ("lcow-layer", "{elsewhere}/1"),
        ("lcow-layer", "{snapshots}/1/../../../elsewhere/1"),
        ("lcow-layer", "{snapshots}/1/fs"),
        ("lcow-layer", "{snapshots}"),
        ("lcow-layer", "1"),
        ("lcow-layer", ""),
    ],
)
def test_mounts_of_others_are_left_to_other_differs(
    client: Client, blobs: Blobs, store: Snapshotter, tmp_path: Path, kind: str, source: str
) -> None:
    client.prepare("extract-1")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "1").mkdir(parents=True)
    path = source.format(snapshots=store.root / "snapshots", elsewhere=elsewhere)
    with pytest.raises(grpc.RpcError) as caught:
        apply(client, [messages.Mount(type=kind, source=path, options=["rw"])], blobs.add(TAR))
    assert code(caught) == "UNIMPLEMENTED"
    assert list(tmp_path.rglob("layer.vhd")) == []


def test_what_cannot_be_applied_says_why_and_leaves_no_layer(
    client: Client, blobs: Blobs, store: Snapshotter
) -> None:
    mounts = client.prepare("extract-1")
    layer(client, blobs)
    cases: list[tuple[str, list[Message], str, int, str]] = [
        ("INVALID_ARGUMENT", [], blobs.add(TAR), 0, OCI),
        ("INVALID_ARGUMENT", mounts * 2, blobs.add(TAR), 0, OCI),
        ("INVALID_ARGUMENT", mounts, blobs.add(TAR), 0, f"{OCI}+encrypted"),
        ("INVALID_ARGUMENT", mounts, "sha256", 0, OCI),
        ("INVALID_ARGUMENT", mounts, blobs.add(b"no tar" * 200), 0, OCI),
        ("INVALID_ARGUMENT", mounts, blobs.add(compress(TAR, "gzip")[:-50]), 0, f"{OCI}+gzip"),
        ("INVALID_ARGUMENT", client.view("v", "base"), blobs.add(TAR), 0, OCI),
        ("NOT_FOUND", mounts, f"sha256:{'0' * 64}", 0, OCI),
        ("UNAVAILABLE", mounts, blobs.add(TAR), len(TAR) + 1, OCI),
        ("FAILED_PRECONDITION", client.mounts("gone"), blobs.add(TAR), 0, OCI),
    ]
    client.remove("gone")
    for expected, given, blob, size, media_type in cases:
        with pytest.raises(grpc.RpcError) as caught:
            apply(client, given, blob, size, media_type)
        assert (code(caught), list(store.directory("extract-1").iterdir())) == (expected, [])
    apply(client, mounts, blobs.add(TAR))


def layer(client: Client, blobs: Blobs) -> None:
    """A committed snapshot `base`, and an active one `gone`."""
    client.prepare("extract-base")
    client.commit("base", "extract-base")
    client.prepare("gone")


def test_the_namespace_of_the_call_is_the_one_of_the_blob(client: Client, blobs: Blobs) -> None:
    mounts = client.prepare("extract-1")
    with pytest.raises(grpc.RpcError) as caught:
        apply(client, mounts, blobs.add(TAR, namespace="moby"))
    assert code(caught) == "NOT_FOUND"
    request = messages.ApplyRequest(
        diff={"media_type": OCI, "digest": blobs.add(TAR)}, mounts=mounts
    )
    stub = client.channel.unary_unary(
        "/containerd.services.diff.v1.Diff/Apply",
        request_serializer=lambda message: message.SerializeToString(),
    )
    with pytest.raises(grpc.RpcError) as caught:
        stub(request, timeout=10)
    assert code(caught) == "FAILED_PRECONDITION"
    assert "containerd-namespace" in caught.value.details()


def test_a_content_store_that_cannot_be_reached_is_unavailable(
    store: Snapshotter, sockets: Path
) -> None:
    content = ContainerdContent(f"unix://{sockets}/nobody")
    layers = DiffService(store.root / "snapshots", content, store.layers)
    server = Server.start(sockets / "d", [SnapshotsService(store), layers])
    with Client(sockets / "d") as client, pytest.raises(grpc.RpcError) as caught:
        apply(client, client.prepare("extract-1"), digest(TAR))
    assert code(caught) == "UNAVAILABLE"
    assert server.stop(grace_s=5)
    content.close()


def test_a_caller_that_goes_away_ends_the_reading(
    client: Client, blobs: Blobs, store: Snapshotter
) -> None:
    mounts = client.prepare("extract-1")
    blobs.hanging = True
    request = messages.ApplyRequest(
        diff={"media_type": OCI, "digest": blobs.add(TAR)}, mounts=mounts
    )
    stub = client.channel.unary_unary(
        "/containerd.services.diff.v1.Diff/Apply",
        request_serializer=lambda message: message.SerializeToString(),
    )
    under_way = stub.future(request, metadata=(("containerd-namespace", "k8s.io"),))
    assert blobs.stuck.wait(10)
    under_way.cancel()
    # The fixture's stop fails where the call is still at work.


def test_a_blob_whose_layer_is_there_already_is_not_read(
    client: Client, blobs: Blobs, store: Snapshotter
) -> None:
    # Far more than gRPC sends ahead of whoever reads.
    blob = tar({"noise": random.Random(1).randbytes(16 << 20)})
    blobs.chunk = 1 << 16
    first = apply(client, client.prepare("extract-1"), blobs.add(blob), len(blob))
    client.commit("base", "extract-1")
    assert blobs.reads == 1
    second = apply(client, client.prepare("extract-2"), digest(blob), len(blob))
    assert second == first
    assert blobs.reads == 1
    client.commit("again", "extract-2")
    layers = [store.directory(key) / "layer.vhd" for key in ("base", "again")]
    assert layers[0].read_bytes() == layers[1].read_bytes()


def test_no_layer_is_made_of_a_snapshot(client: Client) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.call("containerd.services.diff.v1.Diff/Diff", messages.DiffRequest(), messages.Empty)
    assert code(caught) == "UNIMPLEMENTED"

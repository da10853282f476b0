"""diff.v1 as on Windows: a store on NTFS, behind a named pipe, blobs from containerd's files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from snapshotter import Snapshotter
from snapshotter.errors import InvalidArgumentError, NotFoundError, UnavailableError
from snapshotter.ext4.reader import Ext4
from snapshotter.rpc import messages
from snapshotter.rpc.contentdirectory import ContentDirectory
from snapshotter.rpc.descriptors import Message
from snapshotter.rpc.diff_v1 import DiffService
from snapshotter.rpc.endpoint import endpoint_at
from snapshotter.rpc.server import Server
from snapshotter.rpc.snapshots_v1 import SnapshotsService
from snapshotter.vhd import FixedVhd
from tests.fakes.ntfs import FakeNtfs, NtfsPlatform
from tests.fakes.pipeclients import dialled_by_socket
from tests.fakes.pipes import FakePipes
from tests.snapshotter.archives import compress, digest, tar
from tests.snapshotter.rpc.client import Client

OCI = "application/vnd.oci.image.layer.v1.tar"
TAR = tar({"etc/hostname": b"lcow\n"})


class Content:
    """A content store as containerd lays it out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs" / "sha256").mkdir(parents=True)

    def add(self, data: bytes) -> str:
        name = digest(data)
        (self.path / "blobs" / name.replace(":", "/")).write_bytes(data)
        return name


@pytest.fixture
def blobs(tmp_path: Path) -> Content:
    return Content(tmp_path / "io.containerd.content.v1.content")


@pytest.fixture
def windows(tmp_path: Path) -> Iterator[Snapshotter]:
    platform = NtfsPlatform(FakeNtfs())
    with Snapshotter.open(tmp_path / "root", durable=False, platform=platform) as store:
        yield store


@pytest.fixture
def client(
    windows: Snapshotter, blobs: Content, computer: FakePipes, sockets: Path
) -> Iterator[Client]:
    content = ContentDirectory(blobs.path)
    layers = DiffService(windows.root / "snapshots", content, windows.layers)
    endpoint = endpoint_at("npipe:////./pipe/lcow", pipes=computer.calls)
    server = Server.start(endpoint, [SnapshotsService(windows), layers])
    with (
        dialled_by_socket(computer, "\\\\.\\pipe\\lcow", sockets / "s"),
        Client(sockets / "s") as connected,
    ):
        yield connected
        assert server.stop(grace_s=5)


def apply(client: Client, key: str, blob: str, size: int, media_type: str = OCI) -> Message:
    request = messages.ApplyRequest(
        diff={"media_type": media_type, "digest": blob, "size": size}, mounts=client.mounts(key)
    )
    method = "containerd.services.diff.v1.Diff/Apply"
    applied: Message = client.call(method, request, messages.ApplyResponse).applied
    return applied


def test_a_layer_is_unpacked_as_containerd_for_windows_asks_for_it(
    client: Client, blobs: Content, windows: Snapshotter
) -> None:
    blob = compress(TAR, "gzip")
    client.prepare("extract-1")
    applied = apply(client, "extract-1", blobs.add(blob), len(blob), f"{OCI}+gzip")
    assert (applied.digest, applied.size) == (digest(TAR), len(TAR))
    client.commit("base", "extract-1")
    (mount,) = client.prepare("pod", "base")
    assert mount.type == "lcow-layer"
    with FixedVhd.open(windows.directory("base") / "layer.vhd") as disk:
        assert Ext4.open(disk).read("/etc/hostname") == b"lcow\n"


def test_a_blob_that_is_not_there_or_not_whole_is_told(
    client: Client, blobs: Content, windows: Snapshotter
) -> None:
    client.prepare("extract-1")
    for code, name, size in (
        ("NOT_FOUND", digest(b"never seen"), 0),
        ("UNAVAILABLE", blobs.add(TAR), len(TAR) + 1),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            apply(client, "extract-1", name, size)
        assert caught.value.code().name == code
        assert list(windows.directory("extract-1").iterdir()) == []


def test_a_blob_is_read_whole_or_until_it_is_cancelled(blobs: Content) -> None:
    content = ContentDirectory(blobs.path)
    data = bytes(range(256)) * 20_000
    name = blobs.add(data)
    blob = content.open(name, size=0, namespace="any")
    assert blob.stream.read() == data
    blob.cancel()
    blob = content.open(name, size=len(data), namespace="")
    assert blob.stream.read(10) == data[:10]
    blob.cancel()
    blob.cancel()
    with pytest.raises(UnavailableError, match="cancelled"):
        blob.stream.read()
    content.close()


def test_nothing_outside_of_the_store_is_read(blobs: Content, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    content = ContentDirectory(blobs.path)
    for name in ("sha256:../../../secret", "../secret", "sha256:" + "/" * 64, ""):
        with pytest.raises(InvalidArgumentError):
            content.open(name, size=0, namespace="any")
    with pytest.raises(NotFoundError, match=r"containerd\.content"):
        content.open(f"sha256:{'0' * 64}", size=0, namespace="any")


def test_what_cannot_be_opened_is_named(blobs: Content) -> None:
    name = f"sha256:{'a' * 64}"
    (blobs.path / "blobs" / name.replace(":", "/")).mkdir()
    with pytest.raises(UnavailableError, match=name):
        ContentDirectory(blobs.path).open(name, size=0, namespace="any")

"""snapshots.v1 through a real gRPC client: what containerd's proxy sends and what it needs back."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import grpc
import pytest

from snapshotter import Snapshotter
from snapshotter.labels import (
    LOCATION,
    MAX_SIZE,
    OWNER_KEY,
    REUSE_SCRATCH,
    SIZE_BYTES,
    SIZE_GB,
)
from snapshotter.metastore.model import Info, Usage
from snapshotter.mounts import Mount
from snapshotter.rpc import messages
from snapshotter.rpc.backend import Backend
from snapshotter.rpc.server import Server
from snapshotter.rpc.snapshots_v1 import SnapshotsService
from tests.snapshotter.rpc.client import SNAPSHOTS, Client, failure, layer

VIEW, ACTIVE = 1, 2
TEXT = "x" * 1000
"""A label's value, so that a few snapshots take more than one message."""


def share(owner: str) -> dict[str, str]:
    return {REUSE_SCRATCH: "true", OWNER_KEY: owner}


def test_a_snapshot_goes_through_its_whole_life(client: Client, store: Snapshotter) -> None:
    layer(client, "base")
    (mount,) = client.prepare("pod", "base", a="1")
    assert (mount.type, mount.source, mount.target) == (
        "lcow-layer",
        str(store.root / "snapshots/2"),
        "",
    )
    assert list(mount.options) == ["rw", f'parentLayerPaths=["{store.root}/snapshots/1"]']
    assert client.mounts("pod") == [mount]
    info = client.stat("pod")
    assert (info.name, info.parent, info.kind, dict(info.labels)) == (
        *("pod", "base", ACTIVE),
        {"a": "1"},
    )
    assert info.created_at == info.updated_at
    assert abs(info.created_at.seconds - time.time()) < 60
    (view,) = client.view("v", "base")
    assert view.options[0] == "ro"
    assert client.stat("v").kind == VIEW
    assert client.names() == ["base", "pod", "v"]
    for key in ("pod", "v", "base"):
        client.remove(key)
    assert client.names() == []


@pytest.mark.parametrize(
    ("code", "text", "call"),
    [
        ("NOT_FOUND", "'x' does not exist", lambda c: c.stat("x")),
        ("NOT_FOUND", "'x' does not exist", lambda c: c.mounts("x")),
        ("NOT_FOUND", "'x' does not exist", lambda c: c.usage("x")),
        ("NOT_FOUND", "'x' does not exist", lambda c: c.remove("x")),
        ("NOT_FOUND", "'x' does not exist", lambda c: c.commit("y", "x")),
        ("NOT_FOUND", "'x' does not exist", lambda c: c.prepare("y", "x")),
        ("NOT_FOUND", "'x' does not exist", lambda c: c.update({"name": "x"})),
        ("ALREADY_EXISTS", "'a' already exists", lambda c: c.prepare("a")),
        ("ALREADY_EXISTS", "'base' already exists", lambda c: c.view("base")),
        ("ALREADY_EXISTS", "'base' already exists", lambda c: c.commit("base", "a")),
        ("FAILED_PRECONDITION", "cannot remove", lambda c: c.remove("base")),
        ("FAILED_PRECONDITION", "not active", lambda c: c.commit("n", "v")),
        ("FAILED_PRECONDITION", "not active or view", lambda c: c.mounts("base")),
        ("INVALID_ARGUMENT", "not committed", lambda c: c.prepare("n", "a")),
        ("INVALID_ARGUMENT", "cannot update 'parent'", lambda c: c.update({"name": "a"}, "parent")),
        ("INVALID_ARGUMENT", "filter", lambda c: c.infos("name==")),
        ("INVALID_ARGUMENT", "filter", lambda c: c.infos("", "name==")),
        ("INVALID_ARGUMENT", "key is empty", lambda c: c.prepare("")),
        ("INVALID_ARGUMENT", "cannot change parent", lambda c: c.commit("n", "on-base", "other")),
        ("INVALID_ARGUMENT", f"{SIZE_GB}='big'", lambda c: c.prepare("n", **{SIZE_GB: "big"})),
        ("INVALID_ARGUMENT", f"{SIZE_BYTES}='-1'", lambda c: c.prepare("n", **{SIZE_BYTES: "-1"})),
        ("INVALID_ARGUMENT", f"{MAX_SIZE}='1G'", lambda c: c.prepare("n", **{MAX_SIZE: "1G"})),
        ("INVALID_ARGUMENT", f"{LOCATION}='/etc'", lambda c: c.prepare("n", **{LOCATION: "/etc"})),
        ("INVALID_ARGUMENT", OWNER_KEY, lambda c: c.prepare("n", **{REUSE_SCRATCH: "true"})),
        ("NOT_FOUND", "client key 'x'", lambda c: c.prepare("n/1/n", **share("x"))),
        ("INVALID_ARGUMENT", "size", lambda c: c.prepare("n", **share("a"), **{SIZE_GB: "3"})),
    ],
)
def test_errors_have_the_code_that_containerd_knows_them_by(
    client: Client, code: str, text: str, call: Callable[[Client], object]
) -> None:
    layer(client, "base")
    layer(client, "other")
    client.prepare("a")
    client.prepare("on-base", "base")
    client.view("v", "base")
    found, details = failure(lambda: call(client))
    assert found == code
    assert text in details


def test_a_closed_store_is_unavailable(client: Client, store: Snapshotter) -> None:
    store.close()
    assert failure(lambda: client.stat("a"))[0] == "UNAVAILABLE"
    assert failure(client.infos)[0] == "UNAVAILABLE"


def test_a_text_too_long_for_the_trailers_keeps_its_code(client: Client) -> None:
    key = "k" * 100_000
    code, details = failure(lambda: client.stat(key))
    assert code == "NOT_FOUND"
    assert details.endswith("does not exist")
    assert len(details) < 2000


def test_a_method_that_is_not_there_is_unimplemented(client: Client) -> None:
    request = messages.StatSnapshotRequest(key="a")
    code, _ = failure(lambda: client.call(f"{SNAPSHOTS}/Merge", request, messages.Empty))
    assert code == "UNIMPLEMENTED"


class Broken:
    """A backend with a bug."""

    def usage(self, key: str) -> Usage:
        raise ZeroDivisionError(key)


def test_a_bug_is_internal_and_its_text_stays_in_the_log(
    sockets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server.start(sockets / "b", [SnapshotsService(cast("Backend", Broken()))])
    with Client(sockets / "b") as client:
        code, details = failure(lambda: client.usage("secret"))
    assert server.stop(grace_s=5)
    assert code == "INTERNAL"
    assert "secret" not in details
    assert "ZeroDivisionError" in caplog.text


def test_usage_is_that_of_the_snapshot(client: Client, store: Snapshotter) -> None:
    client.prepare("extract-a")
    (store.directory("extract-a") / "layer.vhd").write_bytes(b"x" * 100_000)
    size, inodes = client.usage("extract-a")
    assert 100_000 <= size < 200_000
    assert inodes == 2
    client.commit("a", "extract-a")
    assert client.usage("a") == (size, inodes)


def test_a_caller_that_leaves_a_list_frees_the_store(client: Client, store: Snapshotter) -> None:
    for number in range(300):
        client.view(f"v{number}", text=TEXT)
    with contextlib.closing(client.batches()) as answers:
        next(iter(answers))
    client.remove("v0")
    assert len(client.infos()) == 299


def test_sixteen_clients_do_not_disturb_each_other(server: Path, store: Snapshotter) -> None:
    rounds = 4
    problems: list[str] = []

    def work(name: int) -> None:
        with Client(server) as client:
            for number in range(rounds):
                base, pod, view = (f"{part}-{name}-{number}" for part in ("base", "pod", "view"))
                layer(client, base)
                client.prepare(pod, base, who=str(name))
                client.view(view, base)
                client.update({"name": pod, "labels": {"who": str(name), "n": "1"}}, "labels.n")
                if dict(client.stat(pod).labels) != {"who": str(name), "n": "1"}:
                    problems.append(pod)
                if set(client.names(f"parent=={base}")) != {pod, view}:
                    problems.append(base)
                if failure(lambda gone=base: client.remove(gone))[0] != "FAILED_PRECONDITION":  # type: ignore[misc]
                    problems.append(f"{base} removed")
                client.remove(view)
                if number % 2:
                    client.remove(pod)
                    client.remove(base)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    assert problems == []
    assert len(list(store.walk())) == 16 * rounds
    assert store.cleanup() == 0


class Slow:
    """A backend whose Prepare takes until it is let go."""

    def __init__(self, store: Snapshotter) -> None:
        self._store = store
        self.entered = threading.Event()
        self.released = threading.Event()

    def prepare(self, key: str, parent: str = "", *, labels: Mapping[str, str]) -> list[Mount]:
        self.entered.set()
        self.released.wait(30)
        return self._store.prepare(key, parent, labels=labels)


def test_a_stopping_server_lets_the_calls_under_way_end(store: Snapshotter, sockets: Path) -> None:
    slow = Slow(store)
    server = Server.start(sockets / "slow", [SnapshotsService(cast("Backend", slow))])
    with Client(sockets / "slow") as client, ThreadPoolExecutor(2) as pool:
        made = pool.submit(client.prepare, "a")
        assert slow.entered.wait(10)
        stopped = pool.submit(lambda: server.stop(grace_s=20))
        while not client_is_refused(sockets / "slow"):
            time.sleep(0.01)
        slow.released.set()
        assert stopped.result() is True
        assert made.result()[0].type == "lcow-layer"
    assert [info.name for info in store.walk()] == ["a"]
    assert list(sockets.glob("slow")) == []


def client_is_refused(path: Path) -> bool:
    with Client(path) as client, contextlib.suppress(grpc.RpcError):
        client.channel.unary_unary(
            f"/{SNAPSHOTS}/Stat", request_serializer=lambda message: message.SerializeToString()
        )(messages.StatSnapshotRequest(key="a"), timeout=0.5)
    with Client(path) as client:
        try:
            grpc.channel_ready_future(client.channel).result(timeout=0.1)
        except grpc.FutureTimeoutError:
            return True
    return False


def test_a_call_that_outlasts_the_grace_is_given_up(store: Snapshotter, sockets: Path) -> None:
    slow = Slow(store)
    server = Server.start(sockets / "slow", [SnapshotsService(cast("Backend", slow))])
    with Client(sockets / "slow") as client, ThreadPoolExecutor(1) as pool:
        made = pool.submit(client.prepare, "a")
        assert slow.entered.wait(10)
        assert server.stop(grace_s=0.05, cut_s=0.05) is False
        assert isinstance(made.exception(), grpc.RpcError)
        slow.released.set()


def test_the_name_of_the_snapshotter_is_containerds_own_matter(client: Client) -> None:
    request = messages.PrepareSnapshotRequest(snapshotter="anything", key="a")
    client.call(f"{SNAPSHOTS}/Prepare", request, messages.MountsResponse)
    assert client.names() == ["a"]


def test_health_tells_of_every_service(client: Client) -> None:
    assert client.health() == 1
    assert client.health(SNAPSHOTS) == 1
    assert failure(lambda: client.health("other"))[0] == "NOT_FOUND"


def test_info_of_python_and_of_grpc_agree(client: Client, store: Snapshotter) -> None:
    client.prepare("a", x="ä")
    info: Info = store.stat("a")
    found = client.stat("a")
    assert found.created_at.ToNanoseconds() == info.created_ns
    assert dict(found.labels) == dict(info.labels)

"""`lcow-snapshotter serve` as a process: sockets, signals, configuration, kills."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from snapshotter import Snapshotter
from snapshotter.cli.serve import open_lcow
from snapshotter.errors import InvalidArgumentError, UnavailableError
from snapshotter.labels import LOCATION
from snapshotter.rpc.address import claimed
from snapshotter.rpc.config import ServiceConfig
from snapshotter.rpc.endpoint import endpoint_at
from snapshotter.units import GIB
from snapshotter.vhdx import VhdxDisk
from tests.snapshotter.rpc.client import Client
from tests.snapshotter.test_crash import check_consistent

REPOSITORY = Path(__file__).parents[3]
KILLS = 6


class Process:
    """A server process; a context manager that leaves nothing behind."""

    def __init__(self, root: Path, path: Path, *options: str, notify: str = "") -> None:
        self.path = path
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", "from snapshotter.cli import main; main()", "serve"),
                *("--root", str(root), "--address", f"unix://{path}", *options),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, **({"NOTIFY_SOCKET": notify} if notify else {})},
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def ready(self) -> Process:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"listening on unix://{self.path}\n"
        return self

    def has_open(self, name: str) -> bool:
        """Whether it has a file of that name open."""
        for path in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                if path.readlink().name == name:
                    return True
        return False

    def end(self, number: int = signal.SIGTERM) -> tuple[int, list[dict[str, object]]]:
        """Send a signal; the exit code and the log."""
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=20)
        return self.process.returncode, [json.loads(line) for line in log.splitlines()]


def refusal(root: Path, path: Path, *options: str) -> tuple[int, str]:
    """Exit code and message of a server that does not start."""
    with Process(root, path, *options) as server:
        _, message = server.process.communicate(timeout=20)
        return server.process.returncode, message


def test_a_server_is_private_logs_each_call_and_ends_in_order(
    tmp_path: Path, sockets: Path
) -> None:
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(sockets / "notify"))
    manager.settimeout(20)
    with manager, Process(tmp_path, sockets / "s", notify=str(sockets / "notify")) as server:
        server.ready()
        assert manager.recv(100) == b"READY=1"
        assert stat.S_IMODE((sockets / "s").stat().st_mode) == 0o600
        with Client(sockets / "s") as client:
            client.prepare("extract-1", x="1")
            with pytest.raises(grpc.RpcError):
                client.remove("none")
            client.stat("extract-1")
        exit_code, log = server.end()
        assert manager.recv(100) == b"STOPPING=1"
    assert exit_code == 0
    assert not (sockets / "s").exists()
    calls = [line for line in log if line["message"] == "call"]
    assert [(line["method"], line["key"], line["code"]) for line in calls] == [
        ("Prepare", "extract-1", "OK"),
        ("Remove", "none", "NOT_FOUND"),
    ]  # reads that go well are left to --log-level debug
    assert all(isinstance(line["duration_ms"], float) for line in calls)
    with Snapshotter.open(tmp_path) as store:
        assert check_consistent(store) == {"extract-1"}
    assert list((tmp_path / "owners").iterdir()) == []


def test_nobody_is_listened_to_before_the_store_is_recovered(tmp_path: Path, sockets: Path) -> None:
    with Snapshotter.open(tmp_path) as store:
        store.prepare("extract-1")
        removed = store.directory("extract-1")
    removed.rename(removed.with_name(f"rm-{removed.name}"))  # killed before its commit
    with contextlib.closing(sqlite3.connect(tmp_path / "metadata.db")) as connection:
        connection.execute("BEGIN IMMEDIATE")  # recovery needs the write lock
        with Process(tmp_path, sockets / "s") as server:
            while not server.has_open("metadata.db"):
                time.sleep(0.01)
            time.sleep(0.3)
            assert not (sockets / "s").exists()
            assert not removed.exists()
            connection.rollback()
            server.ready()
            assert removed.exists()


def test_an_interrupt_ends_it_as_well(tmp_path: Path, sockets: Path) -> None:
    with Process(tmp_path, sockets / "s") as server:
        assert server.ready().end(signal.SIGINT)[0] == 0


def test_the_configuration_decides_sizes_and_places(tmp_path: Path, sockets: Path) -> None:
    fast = tmp_path / "fast"
    fast.mkdir()
    config = tmp_path / "config.toml"
    config.write_text(f'default_scratch_size_gb = 3\nscratch_locations = ["{fast}"]\n')
    with Process(tmp_path / "root", sockets / "s", "--config", str(config)) as server:
        server.ready()
        with Client(sockets / "s") as client:
            (mount,) = client.create("Prepare", "pod", "", {LOCATION: str(fast)})
            with VhdxDisk.open(Path(mount.source) / "sandbox.vhdx") as disk:
                assert disk.size == 3 * GIB
            assert (Path(mount.source) / "sandbox.vhdx").resolve().is_relative_to(fast)
            with pytest.raises(grpc.RpcError) as caught:
                client.create("Prepare", "other", "", {LOCATION: "/etc"})
            assert caught.value.code().name == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("scratch = 1", "scratch: no such key"),
        ("[containerd]\nsocket = 'x'", r"containerd.socket: no such key"),
        ("containerd = 1", "containerd: expected a table"),
        ("default_scratch_size_gb = 'x'", "default_scratch_size_gb"),
        ("default_scratch_size_gb = 0", "default_scratch_size_gb"),
        ("default_scratch_size_gb = true", "default_scratch_size_gb"),
        ("scratch_locations = '/x'", "scratch_locations"),
        ("scratch_locations = [1]", "scratch_locations"),
        ("reuse_layers = 1", "reuse_layers"),
        ("containerd.address = ''", "containerd.address"),
        ("containerd.address = 'npipe:////./pipe/containerd-containerd'", "containerd.content"),
        (r"containerd.address = '\\.\pipe\containerd-containerd'", "containerd.content"),
        ("containerd.content = 'relative'", "absolute path"),
        ("containerd.content = 1", "absolute path"),
        ("[containerd]\ncontent = '/x'\naddress = '/y'", "not both"),
        ("a = ", "not TOML"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused(text: str, problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem):
        ServiceConfig.parse(text)


def test_a_plain_path_of_containerds_socket_is_an_address() -> None:
    config = ServiceConfig.parse("containerd.address = '/run/x.sock'")
    assert config.containerd_address == "unix:///run/x.sock"
    assert ServiceConfig.parse("") == ServiceConfig()


def test_the_content_store_is_read_by_the_api_or_by_its_files() -> None:
    by_files = ServiceConfig.parse("containerd.content = '/var/lib/containerd/content'")
    assert by_files.containerd_content == Path("/var/lib/containerd/content")
    assert ServiceConfig.parse("containerd.address = '/run/x.sock'").containerd_content is None


@pytest.mark.parametrize("reuse", [True, False])
def test_the_configuration_decides_whether_layers_are_reused(tmp_path: Path, reuse: bool) -> None:
    settings = ServiceConfig.parse(f"reuse_layers = {str(reuse).lower()}")
    with contextlib.closing(open_lcow(tmp_path, settings)) as backend:
        assert (backend.layers is not None) is reuse


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("npipe:////./pipe/lcow", "on Windows alone"),
        ("npipe:lcow", "expected npipe:////./pipe/NAME"),
        ("npipe:////./pipe/a/b", "expected npipe:////./pipe/NAME"),
        ("npipe:////server/pipe/lcow", "expected npipe:////./pipe/NAME"),
        ("unix://relative", "absolute path"),
        ("/run/x.sock", "expected unix://"),
        ("tcp://127.0.0.1:1", "expected unix://"),
        ("unix:///" + "x" * 107, "at most 107 bytes"),
    ],
)
def test_other_addresses_are_refused_with_the_reason(address: str, problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem):
        endpoint_at(address)


def test_a_socket_that_somebody_answers_on_is_left_alone(tmp_path: Path, sockets: Path) -> None:
    with Process(tmp_path / "a", sockets / "s") as server:
        server.ready()
        code, message = refusal(tmp_path / "b", sockets / "s")
        assert (code, "another server listens" in message) == (3, True)
        with Client(sockets / "s") as client:
            assert client.names() == []


def test_a_socket_of_another_program_is_left_alone(sockets: Path) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as other:
        other.bind(str(sockets / "s"))
        other.listen()
        with pytest.raises(UnavailableError, match="another server"), claimed(sockets / "s"):
            pass
    assert (sockets / "s").is_socket()
    with claimed(sockets / "s"):  # now nobody answers
        assert not (sockets / "s").exists()


def test_what_is_no_socket_is_left_alone(sockets: Path) -> None:
    (sockets / "s").write_text("precious")
    with pytest.raises(UnavailableError, match="no socket"), claimed(sockets / "s"):
        pass
    assert (sockets / "s").read_text() == "precious"


def test_two_servers_on_one_root_serve_the_same_store(tmp_path: Path, sockets: Path) -> None:
    with Process(tmp_path, sockets / "a") as first, Process(tmp_path, sockets / "b") as second:
        first.ready()
        second.ready()
        with Client(sockets / "a") as one, Client(sockets / "b") as two:
            one.prepare("extract-1")
            two.commit("base", "extract-1")
            assert one.stat("base").kind == 3
            two.cleanup()
            one.prepare("pod", "base")
            assert two.names() == ["base", "pod"]
        assert first.end()[0] == 0
        assert second.end()[0] == 0
    with Snapshotter.open(tmp_path) as store:
        assert {info.name for info in store.walk()} == {"base", "pod"}


def test_a_stop_under_load_loses_no_acknowledged_call(tmp_path: Path, sockets: Path) -> None:
    with Process(tmp_path, sockets / "s") as server, load(sockets / "s", clients=6) as promises:
        server.ready()
        progress(promises, 6)
        assert server.end()[0] == 0
    check_promises(tmp_path, promises)


def test_kills_under_load_lose_nothing_and_the_next_server_takes_over(
    tmp_path: Path, sockets: Path
) -> None:
    chance = random.Random(5)
    with load(sockets / "s", clients=6) as promises:
        for _ in range(KILLS):
            with Process(tmp_path, sockets / "s") as server:
                server.ready()  # in place of the killed one's socket
                progress(promises, 2)
                time.sleep(chance.uniform(0.0, 0.2))
    check_promises(tmp_path, promises)


class Promises:
    """What one client was told."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.unsure: set[str] = set()
        self.acknowledged = 0


@contextlib.contextmanager
def load(path: Path, *, clients: int) -> Iterator[list[Promises]]:
    """Clients that prepare, commit and remove until the end, whatever the server does."""
    stop = threading.Event()
    promises = [Promises() for _ in range(clients)]

    def attempt(promise: Promises, call: str, client: Client, *keys: str) -> bool:
        # From here until the answer every key of the call may be there or not.
        promise.there -= set(keys)
        promise.unsure |= set(keys)
        try:
            getattr(client, call)(*keys)
        except grpc.RpcError:
            return False
        promise.unsure -= set(keys)
        promise.acknowledged += 1
        if call != "remove":
            promise.there.add(keys[0])
        return True

    def work(name: int) -> None:
        promise = promises[name]
        number = 0
        with Client(path, wait=False) as client:
            while not stop.is_set():
                number += 1
                active, layer = f"extract-{name}-{number}", f"{name}-{number}"
                if attempt(promise, "prepare", client, active):
                    attempt(promise, "commit", client, layer, active)
                    if number % 2:
                        attempt(promise, "remove", client, layer)
                else:
                    time.sleep(0.02)

    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(work, name) for name in range(clients)]
        try:
            yield promises
        finally:
            stop.set()
        for future in futures:
            future.result(timeout=30)


def progress(promises: list[Promises], count: int) -> None:
    """Wait until so many more calls were acknowledged."""
    wanted = sum(promise.acknowledged for promise in promises) + count
    deadline = time.monotonic() + 30
    while sum(promise.acknowledged for promise in promises) < wanted:
        assert time.monotonic() < deadline, "the server does not answer"
        time.sleep(0.01)


def check_promises(root: Path, promises: list[Promises]) -> None:
    there = {key for promise in promises for key in promise.there}
    unsure = {key for promise in promises for key in promise.unsure}
    assert sum(promise.acknowledged for promise in promises) > 5
    with Snapshotter.open(root) as store:
        keys = {info.name for info in store.walk()}
        directories = {path.name for path in (root / "snapshots").iterdir()}
        assert directories == {store.directory(key).name for key in keys}
    assert there <= keys
    assert keys <= there | unsure

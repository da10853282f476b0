from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from filelock import FileLock

from harness.image.demo import ensure_demo_image
from snapshotter import Snapshotter
from snapshotter.contract import Contract
from snapshotter.linuxhost.snapshotter import LinuxHostSnapshotter
from snapshotter.rpc.backend import Backend
from snapshotter.rpc.endpoint import Endpoint
from snapshotter.rpc.server import Server
from snapshotter.rpc.snapshots_v1 import SnapshotsService
from tests.conformance.client import RemoteSnapshotter
from tests.conformance.gobuild import CannotBuildError, GoPrograms, go_programs
from tests.conformance.leaks import assert_nothing_left
from tests.conformance.stack import missing_programs
from tests.conformance.windows import behind_a_pipe
from tests.fakes.ntfs import FakeNtfs, NtfsPlatform

CONFIGURATIONS = (
    *("library-lcow", "grpc-lcow"),
    *("library-windows", "grpc-windows"),  # a played NTFS volume and a played named pipe
    *("library-linux-host", "grpc-linux-host"),
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.conformance)
    if "conformance" in config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("long") and here in item.path.parents]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture(scope="session")
def as_root() -> None:
    """Skips where this process may not mount."""
    if os.geteuid() != 0:
        pytest.skip("mounts need root")
    if not Path("/dev/loop-control").exists():
        pytest.skip("there are no loop devices here (no /dev/loop-control)")
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no overlayfs")


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> GoPrograms:
    """Our Go programs, built by the first worker that asks."""
    with FileLock(tmp_path_factory.getbasetemp().parent / "go-build.lock"):
        try:
            return go_programs()
        except CannotBuildError as error:
            if "apt-get install" not in str(error):
                raise
            pytest.skip(str(error))


@pytest.fixture
def folder(as_root: None) -> Iterator[Path]:
    """A folder with a short name, for a real containerd; nothing may stay mounted below it."""
    absent = missing_programs()
    if absent is not None:
        pytest.skip(absent)
    # Not tmp_path: a Unix socket's path has room for 104 characters.
    with tempfile.TemporaryDirectory(prefix="lcow-") as name:
        (Path(name) / "mnt").mkdir()
        yield Path(name)
        assert_nothing_left(Path(name))


@pytest.fixture(scope="session")
def image() -> Path:
    return ensure_demo_image()


@pytest.fixture(params=CONFIGURATIONS)
def configuration(request: pytest.FixtureRequest) -> str:
    """How the snapshotter is used."""
    name = str(request.param)
    if name.endswith("linux-host"):
        request.getfixturevalue("as_root")
    return name


@pytest.fixture
def snapshotter(configuration: str, tmp_path: Path) -> Iterator[Contract]:
    """A fresh store in one of the configurations."""
    root = tmp_path / "root"
    opened: LinuxHostSnapshotter | Snapshotter
    socket = tmp_path / "s.sock"
    windows = configuration.endswith("windows")
    if windows:
        opened = Snapshotter.open(root, durable=False, platform=NtfsPlatform(FakeNtfs()))
    elif configuration.endswith("linux-host"):
        opened = LinuxHostSnapshotter.open(root, durable=False)
    else:
        opened = Snapshotter.open(root, durable=False)
    with opened:
        if configuration.startswith("library"):
            yield opened
        else:
            with behind_a_pipe(socket) if windows else nullcontext(socket) as where:
                yield from _served(opened, where, socket)
    assert_nothing_left(tmp_path)


def _served(backend: Backend, where: Path | Endpoint, socket: Path) -> Iterator[RemoteSnapshotter]:
    server = Server.start(where, [SnapshotsService(backend)])
    try:
        client = RemoteSnapshotter.dial(socket)
        yield client
        client.close()
    finally:
        server.stop(grace_s=5)

"""How often the store waits for the disk: it is what an operation costs."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapshotter import Snapshotter
from snapshotter.errors import NotFoundError, UnavailableError
from snapshotter.fsck import Problem, check
from snapshotter.platform.posix import PosixPlatform
from snapshotter.scratch.template import ScratchTemplate

REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import os, sys
from snapshotter import Snapshotter
from snapshotter.errors import NotFoundError, UnavailableError
from snapshotter.labels import OWNER_KEY, REUSE_SCRATCH
share = {REUSE_SCRATCH: "true", OWNER_KEY: "warm"}
with Snapshotter.open(sys.argv[1]) as store:
    def unpacked():
        store.prepare("extract-layer")
        (store.directory("extract-layer") / "layer.vhd").write_bytes(b"layer")
    store.prepare("warm")
    for name, step in (
        ("fresh", lambda: store.prepare("fresh")),
        ("shared", lambda: store.prepare("shared", labels=share)),
        ("layer", lambda: store.prepare("extract-layer")),
        ("empty", lambda: store.commit("empty", "extract-layer")),
        ("unpacked", unpacked),
        ("commit", lambda: store.commit("layer", "extract-layer")),
        ("view", lambda: store.view("v", "layer")),
        ("remove", lambda: store.remove("fresh")),
        ("end", lambda: None),
    ):
        os.path.exists(f"/step/{name}")
        step()
"""
MOST = {"fresh": 3, "shared": 1, "layer": 1, "empty": 1, "commit": 2, "view": 1, "remove": 1}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_an_operation_waits_for_the_disk_as_seldom_as_it_can(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *("strace", "-f", "-e", "trace=fsync,fdatasync,sync_file_range,msync,/.*stat.*"),
            *(sys.executable, "-c", PROGRAM, str(tmp_path / "root")),
        ],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    if "Operation not permitted" in done.stderr.split("\n")[0]:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr[-2000:]
    _, *steps = re.split(r'"/step/(\w+)"', done.stderr)
    counted = {
        name: len(re.findall(r"\b(?:fsync|fdatasync|sync_file_range|msync)\(", text))
        for name, text in zip(steps[::2], steps[1::2], strict=True)
    }
    del counted["end"], counted["unpacked"]
    assert counted.keys() == MOST.keys()
    assert all(0 < count <= MOST[name] for name, count in counted.items()), counted


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the names of descriptors")
def test_a_fresh_disk_is_flushed_under_its_last_name_and_then_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    flush = os.fsync

    def watched(descriptor: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        flush(descriptor)

    class PlainPlatform(PosixPlatform):
        def file_flush_keeps_path(self, directory: Path) -> bool:
            return directory.name != "scratch"

    with Snapshotter.open(tmp_path, platform=PlainPlatform()) as store:
        monkeypatch.setattr(os, "fsync", watched)
        store.prepare("a")
    assert flushed == [f"{tmp_path}/scratch/1/sandbox.vhdx", f"{tmp_path}/scratch"]


def test_a_disk_that_cannot_be_flushed_is_not_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(5, "Input/output error")

    with Snapshotter.open(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuse)
            with pytest.raises(UnavailableError, match=r"cannot flush .*: Input/output error"):
                store.prepare("a")
        assert list(store.walk()) == []
        assert [os.listdir(tmp_path / name) for name in ("scratch", "snapshots")] == [[], []]
        store.prepare("a")


def test_a_warm_store_makes_no_template_for_its_first_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Snapshotter.open(tmp_path) as store:
        store.warm()
        monkeypatch.delattr(ScratchTemplate, "build")
        store.prepare("a")


def test_a_disk_removed_before_its_commit_needs_no_flush(tmp_path: Path) -> None:
    def remove_at_once(key: str) -> None:
        # In the group commit of its prepare, where it comes early enough.
        while True:
            with contextlib.suppress(NotFoundError):
                return store.remove(key)

    with Snapshotter.open(tmp_path) as store, ThreadPoolExecutor(1) as pool:
        store.warm()
        for number in range(15):
            removal = pool.submit(remove_at_once, f"{number}")
            store.prepare(f"{number}")
            removal.result(timeout=60)
        assert list(store.walk()) == []
        assert os.listdir(tmp_path / "scratch") == []


def test_a_committed_snapshot_with_nothing_in_it_comes_back_after_a_power_cut(
    tmp_path: Path,
) -> None:
    """Its directory is not flushed: it can be made anew, which one that held a layer cannot."""
    with Snapshotter.open(tmp_path) as store:
        for name in ("empty", "full"):
            store.prepare(f"extract-{name}")
            if name == "full":
                (store.directory("extract-full") / "layer.vhd").write_bytes(b"layer")
            store.commit(name, f"extract-{name}")
        directories = {name: store.directory(name) for name in ("empty", "full")}
    for directory in directories.values():
        shutil.rmtree(directory)
    assert [finding.problem for finding in check(tmp_path, repair=False).findings] == [
        Problem.MISSING_DIRECTORY,
        Problem.MISSING_DIRECTORY,
    ]
    with Snapshotter.open(tmp_path):
        assert directories["empty"].is_dir()
        assert not directories["full"].exists()

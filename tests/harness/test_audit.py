"""The leak audit: each kind of thing that a run may leave is found, named, and nobody else's."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.audit import Baseline, mounts_below, store_leftovers
from harness.lab import Lab, LabConfig
from harness.report.events import Outcome
from harness.scenarios.runner import run_scenarios
from harness.scenarios.scenario import Scenario, ScenarioContext
from snapshotter import Snapshotter
from snapshotter.labels import OWNER_KEY, REUSE_SCRATCH

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the audit reads /proc")


@contextlib.contextmanager
def sleeping() -> Iterator[int]:
    """Run a process for the time of the context; yield its id."""
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def test_a_process_is_found_whatever_it_runs() -> None:
    baseline = Baseline.take()
    with sleeping() as pid:
        assert baseline.added() == [f"process {pid}: sleep"]
    assert baseline.added() == []


def test_a_process_of_a_process_is_found() -> None:
    baseline = Baseline.take()
    script = "sleep 600 & echo $!; wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        pid = int(shell.stdout.readline())
        try:
            found = baseline.added()
            assert f"process {pid}: sleep" in found
            assert f"process {shell.pid}: sh" in found
        finally:
            os.kill(pid, signal.SIGKILL)


def test_what_was_there_before_and_what_has_ended_is_nothing() -> None:
    with sleeping():
        baseline = Baseline.take()
        with subprocess.Popen(["true"]) as ended:
            os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # nobody has reaped it yet
            assert baseline.added() == []


def test_sockets_memory_files_and_disk_files_are_counted_by_kind(tmp_path: Path) -> None:
    baseline = Baseline.take()
    with contextlib.ExitStack() as held:
        ends = socket.socketpair()
        for end in ends:
            held.enter_context(end)
        held.callback(os.close, os.memfd_create("guest"))
        held.enter_context(tempfile.NamedTemporaryFile(dir="/dev/shm"))
        gone = held.enter_context((tmp_path / "gone.vhdx").open("wb"))
        held.enter_context((tmp_path / "plain.txt").open("wb"))
        Path(gone.name).unlink()
        assert baseline.added() == [
            "1 more disk files open",
            "2 more memory files open",
            "2 more sockets open",
        ]
    assert baseline.added() == []


@pytest.mark.root
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts need root")
def test_mounts_are_found_however_their_directory_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "a b\\c"
    inner = folder / "tab\there"
    inner.mkdir(parents=True)
    beside = tmp_path / "a b\\c2"
    beside.mkdir()
    with contextlib.ExitStack() as undo:
        for place in (inner, beside):
            done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], check=False)
            if done.returncode:
                pytest.skip("no mounts here")
            undo.callback(subprocess.run, ["umount", str(place)], check=True)
        assert mounts_below(folder) == [str(inner)]
    assert mounts_below(folder) == []


def test_rows_directories_and_shared_disks_of_the_store_are_found(tmp_path: Path) -> None:
    with Snapshotter.open(tmp_path) as store:
        assert store_leftovers(store, tmp_path, ()) == []
        store.prepare("pod")
        store.prepare("c1", labels={REUSE_SCRATCH: "true", OWNER_KEY: "pod"})
        found = store_leftovers(store, tmp_path, ())
        assert found[:2] == ["snapshot c1", "snapshot pod"]
        assert found[2].startswith("snapshot directories: ")
        store.remove("pod")
        store.remove("c1")
        store.cleanup()
        assert store_leftovers(store, tmp_path, ()) == []
        (tmp_path / "snapshots" / "new-1").mkdir()
        assert store_leftovers(store, tmp_path, ()) == ["snapshot directories: new-1 for 0 layers"]


def test_two_labs_of_one_process_are_told_apart_by_run_and_scenario() -> None:
    """What one leaves is named with its scenario's tag, and is no leak of the other one."""
    config = LabConfig(backend="model")
    with Lab.open(config) as one, Lab.open(config) as other:

        def leave_a_machine(context: ScenarioContext) -> None:
            context.lab.boot_uvm()

        other.begin("other")
        with other.boot_uvm():
            result = run_scenarios(one, [Scenario("mine", "", (), leave_a_machine)])
            assert [each.outcome for each in result.scenarios] == [Outcome.PASSED]
            systems = [leak for leak in result.leaks if "compute system" in leak]
            assert len(systems) == 1
            assert f"of lcowlab:{one.run}:mine" in systems[0]
            (theirs,) = other.service.enumerate()
            assert theirs.owner == f"lcowlab:{other.run}:other"
            assert one.run != other.run

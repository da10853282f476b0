"""Containers: their life, more processes in them, and what removal leaves (nothing)."""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import json
import os
from typing import Any

import pytest

from harness.errors import GuestError
from harness.gcs.guest import is_not_found
from harness.gcs.prot import CombinedLayers, HResult, Layer, Request
from harness.guest.oci import complete_process, complete_spec
from tests.harness.guest.conftest import Guest

BUNDLE = "/run/gcs/c/c1"
SCRATCH_DIR = "/run/gcs/c/pod/scratch/c1"


def create(guest: Guest, script: str, *, scratch: str = "") -> None:
    spec = {"process": {"args": ["sh", "-c", script]}}
    guest.client.create_container("c1", spec, bundle=BUNDLE, scratch_dir=scratch)


def started(guest: Guest, script: str = "read x") -> int:
    create(guest, script)
    guest.client.start_container("c1")
    return guest.client.execute_process("c1")


def test_a_container_runs_with_its_first_process(guest: Guest) -> None:
    create(guest, "echo out; echo err >&2; exit 5")
    guest.client.start_container("c1")
    assert guest.run("c1") == (5, b"out\n", b"err\n")
    assert guest.client.wait_container_exit("c1", timeout_s=5).type == "UnexpectedExit"


def test_more_processes_run_in_a_running_container(guest: Guest) -> None:
    process = started(guest, "sleep 60")
    code, output, _ = guest.run("c1", ["sh", "-c", "echo $A; exit 2"], env={"A": "b"})
    assert (code, output) == (2, b"b\n")
    guest.client.signal_process("c1", process)
    assert guest.client.wait_process("c1", process, timeout_s=5) == 137


@pytest.mark.parametrize(
    ("force", "code", "kind"), [(False, 143, "GracefulExit"), (True, 137, "ForcedExit")]
)
def test_a_container_is_shut_down(guest: Guest, force: bool, code: int, kind: str) -> None:
    process = started(guest, "exec sleep 60")
    guest.client.shutdown_container("c1", force=force)
    assert guest.client.wait_container_exit("c1", timeout_s=5).type == kind
    assert guest.client.wait_process("c1", process, timeout_s=5) == code
    with pytest.raises(GuestError) as info:
        guest.client.shutdown_container("c1")
    assert info.value.hresult == HResult.SYSTEM_ALREADY_STOPPED


def test_a_command_that_does_not_exist_is_cruns_error_and_no_hang(guest: Guest) -> None:
    guest.client.create_container("c1", {"process": {"args": ["/no/such"]}}, bundle=BUNDLE)
    with pytest.raises(GuestError, match="executable file `/no/such` not found"):
        guest.client.execute_process("c1", stdio=guest.streams().ports)
    guest.client.delete_container_state("c1")
    started(guest, "exec sleep 60")
    with pytest.raises(GuestError, match="executable file `/no/such` not found"):
        guest.client.execute_process("c1", args=["/no/such"], stdio=guest.streams().ports)
    guest.client.delete_container_state("c1")


def test_a_container_is_started_once(guest: Guest) -> None:
    process = started(guest, "exit 0")
    guest.client.wait_process("c1", process, timeout_s=5)
    with pytest.raises(GuestError, match="started already") as info:
        guest.client.execute_process("c1")
    assert info.value.hresult == HResult.INVALID_STATE
    with pytest.raises(GuestError, match="has exited"):
        guest.client.execute_process("c1", args=["true"])


def test_nothing_runs_in_a_container_before_its_init(guest: Guest) -> None:
    create(guest, "true")
    for action in (
        lambda: guest.client.execute_process("c1", args=["true"]),
        lambda: guest.client.get_properties("c1"),
        lambda: guest.client.shutdown_container("c1"),
    ):
        with pytest.raises(GuestError) as info:
            action()
        assert info.value.hresult == HResult.INVALID_STATE


def test_an_id_is_taken_once_and_free_again_after_removal(guest: Guest) -> None:
    create(guest, "true")
    with pytest.raises(GuestError) as info:
        create(guest, "true")
    assert info.value.hresult == HResult.SYSTEM_ALREADY_EXISTS
    guest.client.delete_container_state("c1")
    create(guest, "true")


def test_the_exit_that_is_waited_for_is_that_of_the_container_which_has_the_id_now(
    guest: Guest,
) -> None:
    started(guest, "exit 0")
    assert guest.client.wait_container_exit("c1", timeout_s=5).type == "UnexpectedExit"
    guest.client.delete_container_state("c1")
    started(guest, "exec sleep 60")
    with pytest.raises(TimeoutError):
        guest.client.wait_container_exit("c1", timeout_s=0)
    guest.client.delete_container_state("c1")
    assert guest.client.wait_container_exit("c1", timeout_s=0).type == "ForcedExit"


def test_a_removal_is_answered_after_the_exit_was_told(guest: Guest) -> None:
    """Else the next container of that id would be taken for the one that has exited."""
    process = started(guest, "exec sleep 60")
    group = guest.os.at("/sys/fs/cgroup/c1")
    group.mkdir(parents=True)
    guest.os.at(f"/proc/{process}").mkdir(parents=True)
    guest.os.at(f"/proc/{process}/cgroup").write_text("0::/c1\n")
    guest.client.get_properties("c1")  # from now on its cgroup is known
    os.mkfifo(group / "memory.events")
    removal = guest.client.bridge.send(Request.DELETE_CONTAINER_STATE, container_id="c1")
    with pytest.raises(TimeoutError):
        guest.client.wait_container_exit("c1", timeout_s=0.3)
    assert not removal.answered
    with (group / "memory.events").open("w"):  # what tells the exit reads this file
        pass
    removal.result()
    assert guest.client.wait_container_exit("c1", timeout_s=0).type == "ForcedExit"


def test_a_creation_that_is_refused_costs_no_exit(guest: Guest) -> None:
    started(guest, "exit 0")
    guest.client.wait_container_exit("c1", timeout_s=5)
    with pytest.raises(GuestError):
        create(guest, "true")
    assert guest.client.wait_container_exit("c1", timeout_s=0).container_id == "c1"


def test_unknown_containers_are_not_found(guest: Guest) -> None:
    for action in (
        lambda: guest.client.start_container("x"),
        lambda: guest.client.execute_process("x"),
        lambda: guest.client.wait_process("x", 1, timeout_s=1),
        lambda: guest.client.shutdown_container("x"),
        lambda: guest.client.get_properties("x"),
        lambda: guest.client.delete_container_state("x"),
    ):
        with pytest.raises(GuestError) as info:
            action()
        assert is_not_found(info.value)


def test_removal_kills_and_leaves_neither_bundle_nor_scratch_directory(guest: Guest) -> None:
    guest.os.make_dirs(f"{SCRATCH_DIR}/upper/deep", 0o755)
    guest.os.make_dirs("/run/gcs/c/pod/scratch/other", 0o755)
    create(guest, "exec sleep 60", scratch=SCRATCH_DIR)
    guest.client.execute_process("c1")
    guest.client.delete_container_state("c1")
    assert guest.client.wait_container_exit("c1", timeout_s=5).type == "ForcedExit"
    assert not guest.os.exists(BUNDLE)
    assert not guest.os.exists(SCRATCH_DIR)
    assert guest.os.exists("/run/gcs/c/pod/scratch/other")


def test_removal_of_a_pod_whose_bundle_is_its_scratch_spares_the_others(guest: Guest) -> None:
    guest.os.make_dirs("/run/gcs/c/pod/scratch/pod", 0o755)
    guest.os.make_dirs("/run/gcs/c/pod/scratch/c1", 0o755)
    guest.os.mount("/dev/sdb", "/run/gcs/c/pod", "ext4", 0, "")
    guest.client.create_container(
        "pod",
        {"process": {"args": ["sleep", "60"]}},
        bundle="/run/gcs/c/pod",
        scratch_dir="/run/gcs/c/pod/scratch/pod",
    )
    guest.client.delete_container_state("pod")
    assert guest.os.list_dir("/run/gcs/c/pod") == ["scratch"]
    assert guest.os.list_dir("/run/gcs/c/pod/scratch") == ["c1"]


def test_removal_unmounts_what_is_below_the_bundle(guest: Guest) -> None:
    guest.os.make_dirs("/run/mounts/a", 0o755)
    guest.os.make_dirs(SCRATCH_DIR, 0o755)
    layers = CombinedLayers(
        container_root_path=f"{BUNDLE}/rootfs",
        layers=(Layer(path="/run/mounts/a"),),
        scratch_path=SCRATCH_DIR,
    )
    guest.client.add_combined_layers(layers)
    create(guest, "true", scratch=SCRATCH_DIR)
    guest.client.delete_container_state("c1")
    assert not guest.os.mounts
    assert not guest.os.exists(SCRATCH_DIR)
    guest.client.remove_combined_layers(layers)


def test_a_removal_that_failed_can_be_repeated(guest: Guest) -> None:
    guest.os.make_dirs(f"{BUNDLE}/rootfs", 0o755)
    guest.os.mount("overlay", f"{BUNDLE}/rootfs", "overlay", 0, "")
    create(guest, "true")
    guest.os.busy.add(f"{BUNDLE}/rootfs")
    with pytest.raises(GuestError):
        guest.client.delete_container_state("c1")
    guest.os.busy.clear()
    guest.client.delete_container_state("c1")
    assert not guest.os.exists(BUNDLE)


@pytest.mark.parametrize(
    ("bundle", "scratch"), [("relative", ""), ("/run/gcs/c/c1", "/"), ("/bundle", "")]
)
def test_dangerous_paths_are_refused(guest: Guest, bundle: str, scratch: str) -> None:
    with pytest.raises(GuestError) as info:
        guest.client.create_container("c1", {}, bundle=bundle, scratch_dir=scratch)
    assert info.value.hresult == HResult.INVALID_ARGUMENT


def test_properties_come_from_the_containers_cgroup(guest: Guest) -> None:
    process = started(guest, "exec sleep 60")
    group = guest.os.at("/sys/fs/cgroup/c1")
    (group / "below").mkdir(parents=True)
    (group / "cgroup.procs").write_text(f"{process}\n")
    (group / "below" / "cgroup.procs").write_text("77\n")
    (group / "cpu.stat").write_text("usage_usec 1500\nuser_usec 9\n")
    (group / "memory.current").write_text("4096\n")
    guest.os.at(f"/proc/{process}").mkdir(parents=True)
    guest.os.at(f"/proc/{process}/cgroup").write_text("1:name=x:/y\n0::/c1\n")
    properties = guest.client.get_properties("c1", types=("ProcessList", "Statistics"))
    assert {entry.process_id for entry in properties.process_list} == {process, 77}
    assert properties.statistics == {
        "memory": {"usage": {"usage": 4096}},
        "memory_oom_control": {"oom_kill": 0},
        "cpu": {"usage": {"total": 1_500_000}},
        "pids": {"current": 0},
    }
    guest.client.delete_container_state("c1")


def test_kills_for_want_of_memory_are_told_with_the_exit(guest: Guest) -> None:
    process = started(guest, "exec sleep 60")
    group = guest.os.at("/sys/fs/cgroup/c1")
    group.mkdir(parents=True)
    guest.os.at(f"/proc/{process}").mkdir(parents=True)
    guest.os.at(f"/proc/{process}/cgroup").write_text("0::/c1\n")
    (group / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    statistics = guest.client.get_properties("c1", types=("Statistics",)).statistics
    assert statistics is not None
    assert statistics["memory_oom_control"] == {"oom_kill": 2}
    guest.client.signal_process("c1", process)
    told = guest.client.wait_container_exit("c1", timeout_s=5)
    assert json.loads(told.result_info) == {"OutOfMemoryKills": 2}
    assert any("ran out of memory" in line for line in guest.console)


def test_the_bundle_has_a_complete_specification(guest: Guest) -> None:
    create(guest, "true")
    spec = json.loads(guest.os.at(f"{BUNDLE}/config.json").read_text())
    assert spec["root"] == {"path": f"{BUNDLE}/rootfs"}
    assert spec["process"]["cwd"] == "/"
    assert {mount["destination"] for mount in spec["mounts"]} >= {"/proc", "/dev", "/sys"}


def test_what_a_specification_says_is_never_changed() -> None:
    spec: dict[str, Any] = {
        "ociVersion": "1.1.0",
        "process": {
            "args": ["a"],
            "env": ["PATH=/x"],
            "cwd": "/w",
            "user": {"uid": 5, "gid": 6},
            "capabilities": {"bounding": ["CAP_KILL"]},
            "noNewPrivileges": True,
        },
        "root": {"path": "/r", "readonly": True},
        "mounts": [],
        "linux": {"namespaces": [], "cgroupsPath": "/p/c", "resources": {"devices": []}},
        "hostname": "h",
    }
    assert complete_spec(spec, root="/other") == spec


def test_a_container_gets_no_device_that_its_specification_does_not_give_it() -> None:
    spec = complete_spec({"linux": {"resources": {"memory": {"limit": 1}}}}, root="/r")
    assert spec["linux"]["resources"] == {
        "memory": {"limit": 1},
        "devices": [{"allow": False, "access": "rwm"}],
    }


def test_a_process_inherits_from_the_init_but_for_its_command_and_terminal() -> None:
    init = complete_process({"args": ["a"], "terminal": True, "env": ["A=1"], "cwd": "/w"})
    more = complete_process({"args": ["b"], "env": ["B=2"]}, init)
    assert more["args"] == ["b"]
    assert more["cwd"] == "/w"
    assert "terminal" not in more
    assert more["env"][0] == "B=2"
    assert any(setting.startswith("PATH=") for setting in more["env"])

"""Disks that run full: in the guest, and on the host below it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.capabilities import Capability
from harness.errors import InfrastructureError
from harness.processes import Completed
from harness.scenarios.pods import Pod, close_clean, free_kib
from harness.scenarios.scenario import Scenario, ScenarioContext
from harness.uvm import UtilityVm
from snapshotter.units import MIB
from snapshotter.vhdx import create_vhdx

_SMALL = 16 * MIB  # smaller than the snapshotter makes any: it fills up within seconds


@contextmanager
def _small_pod(context: ScenarioContext, *workloads: str) -> Iterator[tuple[Pod, UtilityVm]]:
    """Start a pod whose scratch disk was replaced by a small one."""
    with context.step("prepare a small disk, boot and start"):
        pod = Pod.prepare(context, *workloads)
        scratch = pod.scratch
        scratch.unlink()
        create_vhdx(scratch, _SMALL)  # the guest formats it at its first mount
        vm = context.lab.boot_uvm()
        pod.start(vm)
    yield pod, vm
    with context.step("take everything down"):
        pod.close(vm)


def _no_space(context: ScenarioContext) -> None:
    """One sharer fills the disk: all see it, nobody is hurt, and it works again afterwards."""
    with _small_pod(context, "c1", "c2") as (pod, _):
        pod.sh("c2", "echo precious > /root/file && sync")
        with context.step("one sharer fills the disk"):
            done = pod.try_sh(
                "c1", "dd if=/dev/zero of=/root/ballast bs=1M count=64; code=$?; sync; exit $code"
            )
            context.check(done.exit_code != 0, "64 MiB fitted on 16 MiB")
            said = done.stderr.decode()
            context.check("No space left on device" in said, f"it says {said!r}")
            context.check(free_kib(pod, "c2") < 1024, "the other does not see it")
        with context.step("the others read, and are refused in words"):
            context.check_equal("file of c2", pod.sh("c2", "cat /root/file"), "precious")
            refused = pod.try_sh(
                "c2", "dd if=/dev/zero of=/root/more bs=1M count=8; code=$?; sync; exit $code"
            )
            context.check(refused.exit_code != 0, "8 MiB fitted on a full disk")
        with context.step("and go on once there is room"):
            pod.sh("c1", "rm /root/ballast && sync")
            pod.sh("c2", "rm -f /root/more; echo again > /root/file2 && sync")
            context.check_equal("file of c2", pod.sh("c2", "cat /root/file2"), "again")


def _no_inodes(context: ScenarioContext) -> None:
    """One sharer takes every inode: `df` shows room, and yet nobody can make a file."""
    with _small_pod(context, "c1", "c2") as (pod, _):
        free = free_kib(pod, "c1", inodes=True)
        context.fact("inodes", free)
        with context.step("one sharer takes every inode"):
            loop = (
                f"mkdir /root/d; for i in $(seq 1 {free + 10}); do : > /root/d/$i || exit 9; done"
            )
            done = pod.try_sh("c1", loop, timeout_s=300)
            said = done.stderr.decode()
            context.check("No space left on device" in said, f"it says {said[-200:]!r}")
            left = free_kib(pod, "c2", inodes=True)
            context.check(left < 4, f"{left} inodes are left")
        with context.step("the other is refused, and goes on once there are some"):
            context.check(pod.try_sh("c2", ": > /root/new").exit_code != 0, "it made a file")
            pod.sh("c1", "rm -rf /root/d && sync", timeout_s=300)
            pod.sh("c2", "echo fine > /root/new && sync")


def _host_full(context: ScenarioContext) -> None:
    """The volume below the dynamic VHDX is full: the machine waits, and goes on when there is room.

    Nothing is lost, and no writer is told of it: so does Hyper-V ("paused-critical").
    """
    pod = Pod.prepare(context, "c1")
    scratch = pod.scratch
    with _small_volume(context) as volume:
        with context.step("put the disk on a small volume"):
            moved = Path(shutil.copy(scratch, volume / "sandbox.vhdx"))
            scratch.unlink()
            scratch.symlink_to(moved)
            vm = context.lab.boot_uvm()
            pod.start(vm)
            pod.sh("pod", "echo precious > /root/file && sync")
        done: list[Completed] = []
        script = "dd if=/dev/zero of=/root/ballast bs=1M count=48 && sync"
        writer = threading.Thread(target=lambda: done.append(pod.try_sh("c1", script)))
        with context.step("fill the volume by writing in a container"):
            writer.start()
            context.check(_wait(lambda: _free(volume) == 0), "the volume did not run full")
            writer.join(1.0)
            context.check(writer.is_alive(), "the writer ended on a full volume")
        with context.step("make room: everybody goes on"):
            _mount(volume, "remount,size=256m")
            writer.join(60)
            context.check(not writer.is_alive(), "the writer still waits")
            context.check_equal("exit codes of the writer", [d.exit_code for d in done], [0])
            context.check_equal("the other's file", pod.sh("pod", "cat /root/file"), "precious")
        with context.step("and it was said"):
            wanted = f"s: the volume below {moved} is full"
            said = _wait(lambda: [p.endswith(wanted) for p in vm.pauses] == [True])
            context.check(said, f"one pause below {moved}: {vm.pauses}")
        pod.release()
        close_clean(context, vm)
        with context.step("the disk is sound"), context.lab.files_on(moved) as files:
            context.check_equal("directories under scratch/", files.listdir("/scratch"), [])
        moved.unlink()
        scratch.unlink()
    for name in pod.mounts:
        context.lab.snapshotter.remove(name)
    context.lab.snapshotter.cleanup()


@contextmanager
def _small_volume(context: ScenarioContext) -> Iterator[Path]:
    """Mount a volume of 24 MiB in the lab's directory; unmounted and removed at the end."""
    if not _is_root():
        context.skip("needs root on Linux, to mount a small volume: run it with sudo")
    volume = context.lab.directory / "volume"
    volume.mkdir()
    _mount(volume, "size=24m")
    try:
        yield volume
    finally:
        subprocess.run(["umount", str(volume)], check=True)
        volume.rmdir()


def _is_root() -> bool:
    if sys.platform == "linux":
        return os.geteuid() == 0
    else:  # noqa: RET505 - mypy understands platforms in this form only
        return False


def _mount(volume: Path, options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(volume)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InfrastructureError(f"{' '.join(command)}: {done.stderr.strip()}")


def _free(volume: Path) -> int:
    return shutil.disk_usage(volume).free


def _wait(condition: Callable[[], bool], *, timeout_s: float = 60.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
    return True


SCENARIOS = (
    Scenario(
        "host-volume-full",
        "The host's volume runs full below the disk: the machine waits, and goes on with room.",
        ("scratch", "sharing", "space"),
        _host_full,
        needs=(Capability.REAL_DISKS,),
    ),
    Scenario(
        "no-space-left",
        "One sharer fills the disk; the others keep their files and go on when there is room.",
        ("scratch", "sharing", "space"),
        _no_space,
    ),
    Scenario(
        "no-inodes-left",
        "One sharer takes every inode; the others go on when there are some again.",
        ("scratch", "sharing", "space"),
        _no_inodes,
    ),
)

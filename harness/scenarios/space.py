"""Disks that run full: in the guest, and on the host below it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from harness.scenarios.pods import Pod, free_kib
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


SCENARIOS = (
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

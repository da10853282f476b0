"""One failure at each step of a container's life: everything is undone, and the next try works."""

from __future__ import annotations

import threading
import time
from functools import partial

from harness.errors import DiskError, GuestError, HarnessError
from harness.scenarios.pods import Pod, attachments_of, close_clean, pod_in_vm
from harness.scenarios.scenario import Scenario, ScenarioContext
from harness.scsi import MountConfig, ScsiMount
from harness.uvm import UtilityVm

_SOON_S = 30.0
_REFUSED = "error(0x80004005)"
# hcsshim AllocateLayers_*: which step fails, and how the fault is spelled. The demo image has three
# layers, so that the fourth attach and mount are those of the scratch.
_STARTS = (
    ("a layer's attach", "service.attach", _REFUSED),
    ("a layer's attach midway", "service.attach", f"1*ok->{_REFUSED}"),
    ("a layer's mount", "guest.add-mapped-virtual-disk", f"1*ok->{_REFUSED}"),
    ("the scratch's attach", "service.attach", f"3*ok->{_REFUSED}"),
    ("the scratch's mount", "guest.add-mapped-virtual-disk", f"3*ok->{_REFUSED}"),
    ("the overlay", "guest.add-combined-layers", _REFUSED),
    ("the container", "guest.create", _REFUSED),
    ("the start", "guest.start", _REFUSED),
    ("the first process", "guest.execute-process", _REFUSED),
    ("its stream", "stream.listen", "error(0x8007000E)"),
)
_RELEASES = (
    ("the overlay", "guest.remove-combined-layers", _REFUSED),
    ("the container's state", "guest.delete-container-state", _REFUSED),
    ("an unmount", "guest.remove-mapped-virtual-disk", _REFUSED),
    ("an unmount midway", "guest.remove-mapped-virtual-disk", f"2*ok->{_REFUSED}"),
    ("an eject", "guest.remove-scsi-device", _REFUSED),
    ("the detach", "service.detach", "error(0x80370105)"),
    ("two unmounts and the detach", "guest.remove-mapped-virtual-disk", f"2*{_REFUSED}"),
)


def _failed_starts(context: ScenarioContext) -> None:
    pod = Pod.prepare(context)
    vm = context.lab.boot_uvm()
    for what, boundary, spec in _STARTS:
        with context.step(f"a start fails at {what}"):
            context.lab.faults.add(boundary, spec)
            with context.expect(f"a start whose {what} fails", HarnessError):
                pod.start(vm)
            context.lab.faults.clear()
            vm.scsi.reclaim()
            context.check_equal("disks left", vm.service.properties(vm.system_id).disks, ())
    with context.step("and works when nothing does"):
        pod.start(vm)
        context.check_equal("output", pod.sh("pod", "echo fine"), "fine")
    pod.close(vm)


def _failed_releases(context: ScenarioContext) -> None:
    pod = Pod.prepare(context, "c1")
    vm = context.lab.boot_uvm()
    for what, boundary, spec in _RELEASES:
        with context.step(f"a release fails at {what}"):
            pod.start(vm, "pod")
            context.lab.faults.add(boundary, spec)
            with context.expect(f"a release whose {what} fails", GuestError, DiskError):
                pod.containers["pod"].release()
            context.lab.faults.clear()
        with context.step("the same release again"):
            pod.release("pod")
            context.check_equal("disks left", vm.service.properties(vm.system_id).disks, ())
    pod.close(vm)


def _unknown_outcomes(context: ScenarioContext) -> None:
    """Nobody says whether a disk was attached or detached: the machine is asked."""
    with pod_in_vm(context, "c1") as (pod, vm):
        pod.release()
        for boundary in ("service.attach", "service.detach"):
            for kind in ("lost", "timeout"):
                with context.step(f"{boundary}: {kind}"):
                    context.lab.faults.add(boundary, kind)
                    for name in ("pod", "c1"):
                        _start_and_release(pod, vm, name)
                    context.lab.faults.clear()
                    vm.scsi.reclaim()
                    disks = vm.service.properties(vm.system_id).disks
                    context.check_equal("disks left", disks, ())
        pod.start(vm)


def _start_and_release(pod: Pod, vm: UtilityVm, name: str) -> None:
    """Start and release a container; a failure on either way is followed by another release."""
    try:
        pod.start(vm, name)
    except HarnessError:
        return
    try:
        pod.release(name)
    except HarnessError:
        pod.release(name)


def _cancelled_waiter(context: ScenarioContext) -> None:
    """Who gives up waiting for another's attach or mount keeps nothing, and disturbs nobody."""
    pod = Pod.prepare(context, "c1")
    vm = context.lab.boot_uvm()
    scratch = pod.scratch
    acquire = partial(
        vm.scsi.acquire, scratch, mount=MountConfig(ensure_filesystem=True, filesystem="ext4")
    )
    first: list[ScsiMount] = []
    for what, boundary in (
        ("attach", "service.attach"),
        ("mount", "guest.add-mapped-virtual-disk"),
    ):
        context.lab.faults.add(boundary, "hang(600ms)")
        met = len(context.lab.faults.met)
        with context.step(f"wait for another's {what}, and give up"):
            owner = threading.Thread(target=lambda: first.append(acquire(holder="first")))
            owner.start()
            _await_fault(context, met)
            with context.expect("an acquire whose patience ends", DiskError) as refused:
                acquire(holder="impatient", timeout_s=0.1)
            owner.join()
            context.fact(f"said of the {what}", refused.message[:120])
            context.check_equal("holders", vm.scsi.holders(scratch), ("first",))
        with context.step("the first goes on alone"):
            vm.scsi.release_all(first)
            first.clear()
            context.check_equal("attachments", attachments_of(vm, scratch), 0)
    close_clean(context, vm)
    pod.close()


def _await_fault(context: ScenarioContext, before: int) -> None:
    """Wait until another thread has met the next fault."""
    deadline = time.monotonic() + _SOON_S
    while len(context.lab.faults.met) <= before and time.monotonic() < deadline:
        time.sleep(0.005)


def _shared_failure(context: ScenarioContext) -> None:
    """Whoever joined an attach that fails is told so, too, and the table is empty."""
    pod = Pod.prepare(context)
    vm = context.lab.boot_uvm()
    scratch = pod.scratch
    errors: list[str] = []

    def acquire(holder: str) -> None:
        try:
            vm.scsi.acquire(scratch, holder=holder).release()
        except DiskError as error:
            errors.append(str(error))

    context.lab.faults.add("service.attach", "error(0x80070020)")
    with context.step("an attach fails"):
        threads = [threading.Thread(target=acquire, args=(f"t{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        context.check(1 <= len(errors) <= 4, f"{len(errors)} of 4 were told")
        context.check_equal("attachments still counted", vm.scsi.snapshot().attachments, ())
    with context.step("and works afterwards"):
        vm.scsi.acquire(scratch, holder="later").release()
    close_clean(context, vm)
    pod.close()


def _failed_boot(context: ScenarioContext) -> None:
    """A machine that does not come up leaves no process and no disk behind."""
    for boundary, spec in (
        ("service.create", "error(0x80370106)"),
        ("service.start", "error(0xC0370106)"),
        ("guest.negotiate-protocol", "error(0x80004005)"),
        ("stream.listen", "error(0x80004005)"),
    ):
        with context.step(f"a boot fails at {boundary}"):
            context.lab.faults.add(boundary, spec)
            with context.expect(f"a boot whose {boundary} fails", HarnessError):
                context.lab.boot_uvm()
            context.lab.faults.clear()
            context.check_equal("systems left", context.lab.service.enumerate(), [])


SCENARIOS = (
    Scenario(
        "failed-starts",
        "A start fails at each of its steps: all is undone, and the next start works.",
        ("containers", "failure"),
        _failed_starts,
    ),
    Scenario(
        "failed-releases",
        "A release fails at each of its steps; the same release, repeated, finishes the job.",
        ("containers", "failure"),
        _failed_releases,
    ),
    Scenario(
        "unknown-outcomes",
        "Nobody answers whether a disk was attached or detached: the machine is asked.",
        ("scsi", "failure"),
        _unknown_outcomes,
    ),
    Scenario(
        "cancelled-waiter",
        "Who gives up waiting for another's attach or mount leaves no count behind.",
        ("scsi", "failure", "concurrency"),
        _cancelled_waiter,
    ),
    Scenario(
        "shared-failure",
        "An attach fails for everybody who waited for it, and can be repeated.",
        ("scsi", "failure", "concurrency"),
        _shared_failure,
    ),
    Scenario(
        "failed-boots",
        "A boot fails at each of its steps: no process and no disk is left.",
        ("uvm", "failure"),
        _failed_boot,
    ),
)

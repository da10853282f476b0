"""Two who want one disk at the same moment, and a machine that dies in each of their steps."""

from __future__ import annotations

import threading
from pathlib import Path

from harness.errors import DiskError, HarnessError
from harness.scenarios.disks import attach_disks, make_disks
from harness.scenarios.pods import attachments_of
from harness.scenarios.scenario import Scenario, ScenarioContext
from harness.scsi import MountConfig, ScsiMount
from harness.uvm import UtilityVm

_EXT4 = MountConfig(ensure_filesystem=True, filesystem="ext4")
_STEPS = (
    ("the attach", "service.attach"),
    ("the mount", "guest.add-mapped-virtual-disk"),
    ("the unmount", "guest.remove-mapped-virtual-disk"),
    ("the eject", "guest.remove-scsi-device"),
    ("the detach", "service.detach"),
)


def _meets_a_detach(context: ScenarioContext) -> None:
    """Who comes while the last holder's disk is detached waits, and attaches it afresh."""
    with attach_disks(context, 1) as (vm, (disk,)):
        leaving = vm.scsi.acquire(disk, holder="leaving", mount=_EXT4)
        context.lab.faults.add("service.detach", "hang(400ms)")
        with context.step("come while the last one goes"):
            thread = threading.Thread(target=leaving.release)
            thread.start()
            coming = vm.scsi.acquire(disk, holder="coming", mount=_EXT4)
            thread.join()
        context.check(leaving.released, "the release did not succeed")
        context.check_equal("holders", vm.scsi.holders(disk), ("coming",))
        context.check_equal("attachments", attachments_of(vm, disk), 1)
        path = coming.guest_path
        done = vm.processes.start(["/bin/sh", "-c", f"echo x > {path}/file && sync"]).wait()
        context.check_equal("exit code of a write", done.exit_code, 0)
        coming.release()


def _other_disk_goes(context: ScenarioContext) -> None:
    """A release goes through while another disk's attach is under way: no lock is held for it."""
    with attach_disks(context, 2) as (vm, (one, other)):
        held = vm.scsi.acquire(one, holder="held", mount=_EXT4)
        context.lab.faults.add("service.attach", "hang(400ms)")
        arrived: list[ScsiMount] = []
        thread = threading.Thread(
            target=lambda: arrived.append(vm.scsi.acquire(other, holder="other", mount=_EXT4))
        )
        thread.start()
        held.release()
        context.check_equal("attachments of the first", attachments_of(vm, one), 0)
        thread.join()
        vm.scsi.release_all(arrived)


def _nothing_works(context: ScenarioContext) -> None:
    """The mount fails, and so does the way back: the disk stays known, and is taken out later."""
    with attach_disks(context, 1) as (vm, (disk,)):
        for boundary in ("service.detach", "guest.remove-scsi-device"):
            with context.step(f"the mount fails, and then {boundary}"):
                context.lab.faults.add("guest.add-mapped-virtual-disk", "error(0x80004005)")
                context.lab.faults.add(boundary, "error(0x80004005)")
                with context.expect("an acquire whose mount fails", DiskError):
                    vm.scsi.acquire(disk, holder="unlucky", mount=_EXT4)
                context.check_equal("holders", vm.scsi.holders(disk), ())
            with context.step("the next one finds it, and shares nothing of the failure"):
                context.lab.faults.clear()
                vm.scsi.acquire(disk, holder="lucky", mount=_EXT4).release()
                context.check_equal("attachments", attachments_of(vm, disk), 0)


def _dies_anywhere(context: ScenarioContext) -> None:
    """The machine dies in each step of a disk's life: everybody is told, the counts end at zero."""
    for what, boundary in _STEPS:
        (disk,) = make_disks(context, 1)
        vm = context.lab.boot_uvm()
        with context.step(f"the machine dies in {what}"):
            met = len(context.lab.faults.met)
            context.lab.faults.add(boundary, "die")
            threads = [threading.Thread(target=_live, args=(vm, disk, f"t{n}")) for n in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            context.check(not any(t.is_alive() for t in threads), "somebody still waits")
            context.check(len(context.lab.faults.met) > met, "the fault was not met")
            vm.close()
            context.check_equal("attachments", vm.scsi.snapshot().attachments, ())
            disk.unlink()


def _live(vm: UtilityVm, disk: Path, holder: str) -> None:
    try:
        vm.scsi.acquire(disk, holder=holder, mount=_EXT4).release()
    except HarnessError:
        return  # told that the machine is gone


SCENARIOS = (
    Scenario(
        "meets-a-detach",
        "Who comes while the last holder goes waits for the detach and attaches afresh.",
        ("scsi", "concurrency"),
        _meets_a_detach,
    ),
    Scenario(
        "other-disk-goes",
        "One disk is released while another is attached.",
        ("scsi", "concurrency"),
        _other_disk_goes,
    ),
    Scenario(
        "nothing-works",
        "A mount fails and the way back, too: nobody holds the disk, and the next one gets it.",
        ("scsi", "failure"),
        _nothing_works,
    ),
    Scenario(
        "dies-anywhere",
        "The machine dies in the attach, mount, unmount, eject or detach under three waiters.",
        ("scsi", "crash", "failure", "concurrency"),
        _dies_anywhere,
    ),
)

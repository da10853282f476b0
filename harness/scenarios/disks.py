"""SCSI disks of a utility VM, attached and mounted by count, after hcsshim's tests."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from harness.errors import DiskError, HarnessError, NoSlotError
from harness.gcs.prot import MappedVirtualDisk
from harness.hcs.document import (
    LUNS_PER_CONTROLLER,
    MAX_SCSI_CONTROLLERS,
    attach_request,
    detach_request,
)
from harness.scenarios.pods import Pod, attachments_of, close_clean, pod_in_vm
from harness.scenarios.scenario import Scenario, ScenarioContext
from harness.scsi import MountConfig, ScsiMount
from harness.uvm import UtilityVm
from snapshotter.scratch.template import ScratchTemplate
from snapshotter.units import GIB

_EXT4 = MountConfig(ensure_filesystem=True, filesystem="ext4")


def make_disks(context: ScenarioContext, count: int) -> list[Path]:
    """Make scratch disks outside the store, in the lab's own directory."""
    template = ScratchTemplate.build(GIB)
    folder = context.lab.directory
    disks = [folder / f"{context.name}-disk-{number}.vhdx" for number in range(count)]
    for disk in disks:
        template.write(disk, overwrite=True)  # what a failure left is in nobody's way
    return disks


@contextlib.contextmanager
def attach_disks(context: ScenarioContext, count: int) -> Iterator[tuple[UtilityVm, list[Path]]]:
    """Boot a machine and make that many disks; check afterwards that it kept none, remove them."""
    disks = make_disks(context, count)
    vm = context.lab.boot_uvm()
    yield vm, disks
    _close(context, vm, disks)


def _close(context: ScenarioContext, vm: UtilityVm, disks: list[Path]) -> None:
    with context.step("take everything down"):
        close_clean(context, vm)
        for disk in disks:
            disk.unlink()


def _add_add_remove_remove(context: ScenarioContext) -> None:
    """As hcsshim's AddAddRemoveRemove and GuestPath: a sharer gets the path that is there."""
    (disk,) = disks = make_disks(context, 1)
    vm = context.lab.boot_uvm()
    first = vm.scsi.acquire(disk, holder="first", mount=_EXT4, guest_path="/run/gcs/c/one")
    second = vm.scsi.acquire(disk, holder="second", mount=_EXT4)
    third = vm.scsi.acquire(disk, holder="third", mount=_EXT4, guest_path="/run/gcs/c/two")
    for share in (first, second, third):
        context.check_equal(f"path of {share.holder}", share.guest_path, "/run/gcs/c/one")
    for share, left in ((first, 1), (third, 1), (second, 0)):
        share.release()
        context.check_equal(f"attachments without {share.holder}", attachments_of(vm, disk), left)
    again = vm.scsi.acquire(disk, holder="fourth", mount=_EXT4)
    again.release()
    _close(context, vm, disks)


def _conflicting_path(context: ScenarioContext) -> None:
    one, other = disks = make_disks(context, 2)
    vm = context.lab.boot_uvm()
    held = vm.scsi.acquire(one, holder="first", mount=_EXT4, guest_path="/run/gcs/c/one")
    with context.expect("another disk at the same path", DiskError) as refused:
        vm.scsi.acquire(other, holder="second", mount=_EXT4, guest_path="/run/gcs/c/one")
    context.check("first" in refused.message, f"the holder is not named: {refused.message}")
    context.check_equal("attachments of the refused disk", attachments_of(vm, other), 0)
    held.release()
    _close(context, vm, disks)


def _again_and_again(context: ScenarioContext) -> None:
    """Seen in hcsshim #377: the second add or remove of a disk hung the machine."""
    (disk,) = disks = make_disks(context, 1)
    vm = context.lab.boot_uvm()
    for turn in range(5):
        with context.step(f"attach, mount, release: {turn + 1}. time"):
            vm.scsi.acquire(disk, holder=f"turn {turn}", mount=_EXT4).release()
            context.check_equal("attachments", attachments_of(vm, disk), 0)
    _close(context, vm, disks)


def _spellings(context: ScenarioContext) -> None:
    (disk,) = disks = make_disks(context, 1)
    soft, hard = disk.with_name("soft.vhdx"), disk.with_name("hard.vhdx")
    soft.symlink_to(disk)
    os.link(disk, hard)
    vm = context.lab.boot_uvm()
    shares = [vm.scsi.acquire(path, holder=path.name) for path in (disk, soft, hard)]
    context.check_equal("slots", len({share.slot for share in shares}), 1)
    context.check_equal("disks", len(vm.service.properties(vm.system_id).disks), 1)
    with context.expect("the same file read-only", DiskError) as refused:
        vm.scsi.acquire(hard, holder="reader", read_only=True)
    context.check(disk.name in refused.message, f"the holder is not named: {refused.message}")
    vm.scsi.release_all(shares)
    vm.scsi.acquire(soft, holder="reader", read_only=True).release()
    _close(context, vm, [*disks, soft, hard])


def _fill(context: ScenarioContext, count: int) -> None:
    """As hcsshim uvm_scsi_test: many disks, each twice; a slot that was freed is used again."""
    disks = make_disks(context, count)
    vm = context.lab.boot_uvm()
    for turn in range(2):
        with context.step(f"add {count} disks twice, {turn + 1}. time"):
            bare = [vm.scsi.acquire(disk, holder="bare") for disk in disks]
            mounted = [vm.scsi.acquire(disk, holder="mounted", mount=_EXT4) for disk in disks]
            context.check_equal("slots", len({share.slot for share in mounted}), count)
        with context.step("the first holders go, the disks stay"):
            vm.scsi.release_all(bare)
            attached = len(vm.service.properties(vm.system_id).disks)
            context.check_equal("disks", attached, count)
        with context.step("a slot in the middle is used again"):
            slot = mounted[count // 2].slot
            mounted[count // 2].release()
            mounted[count // 2] = vm.scsi.acquire(disks[count // 2], holder="mounted", mount=_EXT4)
            context.check_equal("slot", mounted[count // 2].slot, slot)
        with context.step("the second holders go, the disks too"):
            vm.scsi.release_all(mounted)
            context.check_equal("disks", vm.service.properties(vm.system_id).disks, ())
    _close(context, vm, disks)


def _every_slot(context: ScenarioContext) -> None:
    """The 257th disk: refused in words, and taken as soon as any other goes."""
    disks = make_disks(context, MAX_SCSI_CONTROLLERS * LUNS_PER_CONTROLLER + 1)
    vm = context.lab.boot_uvm()
    with context.step(f"attach {len(disks) - 1} disks"):
        held = [vm.scsi.acquire(disk, holder=disk.stem) for disk in disks[:-1]]
        context.check_equal("slots", len({share.slot for share in held}), len(held))
    with context.step("one more is refused"):
        with context.expect("a disk too many", NoSlotError) as refused:
            vm.scsi.acquire(disks[-1], holder="last")
        context.check("disk-0" in refused.message, f"no holder is named: {refused.message}")
    with context.step("and gets the slot of one that goes"):
        slot = held[100].slot
        held[100].release()
        held[100] = vm.scsi.acquire(disks[-1], holder="last")
        context.check_equal("slot", held[100].slot, slot)
    with context.step("detach them all"):
        vm.scsi.release_all(held)
    _close(context, vm, disks)


def _four_controllers(context: ScenarioContext) -> None:
    """Seen in hcsshim #2215: a guest numbers controllers in any order, a disk is found the same."""
    with attach_disks(context, MAX_SCSI_CONTROLLERS) as (vm, disks):
        for turn, order in enumerate(((0, 1, 2, 3), (3, 0, 2, 1))):
            with context.step(f"a disk on each controller, {turn + 1}. time"):
                for controller, number in enumerate(order):
                    _attach_at(vm, disks[number], controller)
                for controller, number in enumerate(order):
                    path = f"/run/mounts/scsi/at{controller}"
                    script = f"echo {number} > {path}/number && sync" if not turn else ""
                    text = vm.processes.start(
                        ["/bin/sh", "-c", script or f"cat {path}/number"]
                    ).wait()
                    context.check_equal("exit code", text.exit_code, 0)
                    if turn:
                        context.check_equal(f"disk at {controller}", text.text, str(number))
            with context.step("take them out"):
                for controller in range(MAX_SCSI_CONTROLLERS):
                    _detach_at(vm, controller)


_LUN = 7


def _mapped(controller: int) -> MappedVirtualDisk:
    return MappedVirtualDisk(
        mount_path=f"/run/mounts/scsi/at{controller}", controller=controller, lun=_LUN
    )


def _attach_at(vm: UtilityVm, disk: Path, controller: int) -> None:
    vm.service.modify(vm.system_id, attach_request(controller, _LUN, str(disk)))
    vm.guest.mount_disk(_mapped(controller))


def _detach_at(vm: UtilityVm, controller: int) -> None:
    vm.guest.unmount_disk(_mapped(controller))
    vm.guest.eject_disk(controller=controller, lun=_LUN)
    vm.service.modify(vm.system_id, detach_request(controller, _LUN))


def _parallel(context: ScenarioContext, turns: int) -> None:
    """As hcsshim TestParallelScsiOps: workers attach, mount and release without pause."""
    disks = make_disks(context, 4)
    vm = context.lab.boot_uvm()
    failures: list[str] = []

    def work(worker: int) -> None:
        held: list[ScsiMount] = []
        try:
            for turn in range(turns):
                disk = disks[(worker + turn) % len(disks)]
                mount = _EXT4 if turn % 2 else None
                held.append(vm.scsi.acquire(disk, holder=f"worker {worker}", mount=mount))
                if len(held) > 2:
                    held.pop(0).release()
            vm.scsi.release_all(held)
        except HarnessError as error:
            failures.append(f"worker {worker}: {error}")

    with context.step(f"8 workers, {turns} turns each"):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    context.check_equal("failures", failures, [])
    _close(context, vm, disks)


def _second_machine(context: ScenarioContext) -> None:
    with pod_in_vm(context, "c1") as (pod, vm):
        with context.step("start a sharer in a second utility VM"):
            other = context.lab.boot_uvm()
            with context.expect("the same disk in another machine", DiskError) as refused:
                pod.start(other, "c1", container_id="c1-elsewhere")
            for word in ("container pod", vm.system_id):
                context.check(word in refused.message, f"{word!r} is not in: {refused.message}")
        with context.step("the first machine did not notice"):
            pod.sh("pod", "echo fine > /root/file && sync")
            close_clean(context, other)


def _next_machine(context: ScenarioContext) -> None:
    """TestScratchCreateLCOW: what one machine used, another one uses afterwards."""
    pod = Pod.prepare(context, "c1")
    for turn in range(2):
        with context.step(f"use it in the {turn + 1}. machine"):
            vm = context.lab.boot_uvm()
            pod.start(vm)
            pod.sh("c1", "echo x > /root/file && sync")
            pod.release()
            close_clean(context, vm)
    pod.close()


SCENARIOS = (
    Scenario(
        "add-add-remove-remove",
        "A disk that is added three times is there once, at one path, until the last one goes.",
        ("scsi",),
        _add_add_remove_remove,
    ),
    Scenario(
        "conflicting-guest-path",
        "A path that is taken is refused, its holder named, and nothing stays attached.",
        ("scsi", "failure"),
        _conflicting_path,
    ),
    Scenario(
        "again-and-again",
        "A disk comes and goes five times in one machine.",
        ("scsi",),
        _again_and_again,
    ),
    Scenario(
        "one-disk-many-names",
        "Links of both kinds name one disk; read-only and read-write at once is refused.",
        ("scsi", "failure"),
        _spellings,
    ),
    Scenario(
        "sixteen-disks-twice",
        "Sixteen disks, each held twice, and slots that are used again.",
        ("scsi",),
        lambda context: _fill(context, 16),
    ),
    Scenario(
        "eighty-disks-twice",
        "Eighty disks on two controllers, each held twice, and slots that are used again.",
        ("scsi", "slow", "soak"),
        lambda context: _fill(context, 80),
    ),
    Scenario(
        "every-slot-taken",
        "256 disks fill four controllers; the next is refused, and gets the first free slot.",
        ("scsi", "failure", "slow", "soak"),
        _every_slot,
    ),
    Scenario(
        "four-controllers",
        "Disks on all four controllers are found, whatever numbers the guest's kernel gave them.",
        ("scsi",),
        _four_controllers,
    ),
    Scenario(
        "parallel-disks",
        "Eight workers attach, mount and release four disks without pause.",
        ("scsi", "concurrency"),
        lambda context: _parallel(context, 6),
    ),
    Scenario(
        "parallel-disks-long",
        "Eight workers attach, mount and release four disks for a long time.",
        ("scsi", "concurrency", "slow", "soak"),
        lambda context: _parallel(context, 200),
    ),
    Scenario(
        "second-machine-refused",
        "A sharer in a second utility VM is refused, and told who holds the disk where.",
        ("scsi", "sharing", "failure"),
        _second_machine,
    ),
    Scenario(
        "next-machine",
        "A disk that one utility VM let go of works in the next one.",
        ("scsi", "scratch"),
        _next_machine,
    ),
)

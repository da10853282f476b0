"""Utility VMs that differ from the usual one: where their root is, what their image can."""

from __future__ import annotations

from harness.hcs.document import ROOT_SLOT
from harness.machinekind import MachineKind, RootSource
from harness.scenarios.pods import Pod
from harness.scenarios.scenario import Scenario, ScenarioContext
from harness.scsi import Slot


def _root_disk(context: ScenarioContext) -> None:
    """As hcsshim's rootfs.vhd on SCSI: its slot is reserved, and nothing writes to it."""
    pod = Pod.prepare(context, "c1", "c2")
    with context.step("boot from a disk"):
        vm = context.lab.boot_uvm(MachineKind(root=RootSource.DISK))
        context.fact("ready_ms", round(vm.boot_s * 1000, 1))
    with context.step("the root is that disk, read-only"):
        table = vm.processes.start(["/bin/cat", "/proc/self/mountinfo"]).wait().text.splitlines()
        (root,) = (row.split() for row in table if row.split()[4] == "/")
        context.check(root[2].startswith("8:"), f"the root is no SCSI disk: {' '.join(root)}")
        context.check(root[5].startswith("ro"), f"the root can be written to: {' '.join(root)}")
    with context.step("containers run, and none gets the root's slot"):
        pod.start(vm)
        pod.sh("c1", "echo one > /root/file && sync")
        context.check_equal("the file in c2", pod.try_sh("c2", "cat /root/file").exit_code, 1)
        slots = {each.slot for each in vm.scsi.snapshot().attachments}
        context.check(Slot(*ROOT_SLOT) not in slots, "a disk got the slot of the root")
        context.fact("disks", len(slots))
    with context.step("take everything down"):
        pod.close(vm)


SCENARIOS = (
    Scenario(
        "root-disk",
        "The machine boots from a VHD in the reserved slot, and runs containers on it.",
        ("uvm", "scsi"),
        _root_disk,
    ),
)

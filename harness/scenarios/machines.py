"""Utility VMs that differ from the usual one: where their root is, what their image can."""

from __future__ import annotations

import uuid

from harness.capabilities import Capability
from harness.errors import SystemNotFoundError
from harness.hcs.document import ROOT_SLOT, ComputeSystem
from harness.hcs.service import EventType, SystemState
from harness.machinekind import MachineKind, RootSource
from harness.scenarios.pods import Pod
from harness.scenarios.scenario import Scenario, ScenarioContext
from harness.scsi import Slot
from harness.uvm import UtilityVm


def _root_disk(context: ScenarioContext) -> None:
    """As hcsshim's rootfs.vhd on SCSI: its slot is reserved, and nothing writes to it."""
    pod = Pod.prepare(context, "c1", "c2")
    with context.step("boot from a disk"):
        vm = context.lab.boot_uvm(MachineKind(root=RootSource.DISK, writable=True))
        context.fact("ready_ms", round(vm.boot_s * 1000, 1))
    with context.step("the root is that disk, read-only"):
        table = vm.processes.start(["/bin/cat", "/proc/self/mountinfo"]).wait().text.splitlines()
        (root,) = (row.split() for row in table if row.split()[4] == "/")
        context.check(root[2].startswith("8:"), f"the root is no SCSI disk: {' '.join(root)}")
        context.check(root[5].startswith("ro"), f"the root can be written to: {' '.join(root)}")
    with context.step("nothing but /etc and /var can be written to"):
        for path, writable in (("/usr/x", False), ("/etc/x", True), ("/var/x", True)):
            done = vm.processes.start(["/bin/sh", "-c", f"echo x > {path}"]).wait()
            context.check_equal(f"{path} written", done.exit_code == 0, writable)
    with context.step("containers run, and none gets the root's slot"):
        pod.start(vm)
        pod.sh("c1", "echo one > /root/file && sync")
        context.check_equal("the file in c2", pod.try_sh("c2", "cat /root/file").exit_code, 1)
        slots = {each.slot for each in vm.scsi.snapshot().attachments}
        context.check(Slot(*ROOT_SLOT) not in slots, "a disk got the slot of the root")
        context.fact("disks", len(slots))
    with context.step("take everything down"):
        pod.close(vm)


def _boot_modes(context: ScenarioContext) -> None:
    """As hcsshim's TestLCOW_UVM_KernelArgs: what the document says is what the kernel was told."""
    for root, has_console in (
        (RootSource.INITRD, True),
        (RootSource.DISK, True),
        (RootSource.DISK, False),
    ):
        with context.step(f"root: {root}, console: {'yes' if has_console else 'no'}"):
            document = context.lab.document(MachineKind(root=root))
            if not has_console:
                document = _without_console(document)
            vm = UtilityVm.boot(context.lab.service, document, claims=context.lab.claims)
            try:
                told = vm.processes.start(["/bin/cat", "/proc/cmdline"]).wait().text.split()
                missing = [word for word in _command_line(document).split() if word not in told]
                context.check_equal("words that the kernel was not told", missing, [])
                serial = vm.processes.start(["/bin/ls", "/sys/class/tty"]).wait().text.split()
                context.check_equal("a serial port", "ttyS0" in serial, has_console)
                if vm.origin == "cold":  # a copy has said nothing since it was saved
                    context.check_equal("console output", bool(vm.console()), has_console)
            finally:
                vm.close()


def _command_line(document: ComputeSystem) -> str:
    machine = document.virtual_machine
    assert machine is not None
    assert machine.chipset is not None
    assert machine.chipset.linux_kernel_direct is not None
    return machine.chipset.linux_kernel_direct.kernel_cmd_line


def _without_console(document: ComputeSystem) -> ComputeSystem:
    """Return the same machine without a serial port (hcsshim emits `nr_uarts=0` then)."""
    raw = document.to_json()
    del raw["VirtualMachine"]["Devices"]["ComPorts"]
    words = [
        "8250.nr_uarts=0" if word == "8250.nr_uarts=1" else word
        for word in _command_line(document).split()
        if not word.startswith(("console=", "8250.skip"))
    ]
    raw["VirtualMachine"]["Chipset"]["LinuxKernelDirect"]["KernelCmdLine"] = " ".join(words)
    return ComputeSystem.from_json(raw)


def _never_started(context: ScenarioContext) -> None:
    """As hcsshim's TestUVM: a system that is created and not started is waited on and closed."""
    service, system_id = context.lab.service, str(uuid.uuid4())
    service.create(system_id, context.lab.document())
    with context.step("it does not exit by itself"):
        events = service.events(system_id, timeout_s=0.3)
        context.check_equal("exits", [e for e in events if e.type is EventType.EXITED], [])
        state = service.properties(system_id).state
        context.check(state is not SystemState.STOPPED, f"it is {state}")
    with context.step("closing it leaves nothing"):
        service.close(system_id)
        with context.expect("a question about it", SystemNotFoundError):
            service.properties(system_id)
    with context.step("one with the same id is another one"):
        service.create(system_id, context.lab.document())
        service.terminate(system_id)
        service.close(system_id)


SCENARIOS = (
    Scenario(
        "never-started",
        "A machine that was created and never started is closed, and nothing of it is left.",
        ("uvm",),
        _never_started,
    ),
    Scenario(
        "boot-modes",
        "The kernel is told what the document says: root in memory or on a disk, console or none.",
        ("uvm",),
        _boot_modes,
        needs=(Capability.KERNEL,),
    ),
    Scenario(
        "root-disk",
        "The machine boots from a VHD in the reserved slot, and runs containers on it.",
        ("uvm", "scsi"),
        _root_disk,
    ),
)

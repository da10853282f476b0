"""HCS documents and requests in QEMU's terms; pure functions of plain values.

A `ComputeSystem` document becomes QEMU's argument list, and a list of the fields that QEMU does not
honour as HCS does (`ParityItem`): nothing is dropped silently. A `ModifySettingRequest` becomes QMP
commands.

The virtual machine is a q35 with nothing on it but what is asked for:

- virtio-serial with the ports `gcs` (number 1: the bridge) and `stdio` (number 2: the multiplex),
- virtio-scsi controllers; disk (C, L) is `scsi-hd` at channel 0, id 0, LUN L of controller C, so
  that the guest sees it at `/sys/bus/scsi/devices/C:0:0:L`,
- virtio-rng, and a serial port where the document has COM port "0".
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from harness.errors import ComputeServiceError, UsageError
from harness.hcs.document import (
    MAX_SCSI_CONTROLLERS,
    Attachment,
    ComputeSystem,
    LinuxKernelDirect,
    ModifySettingRequest,
    RequestType,
    controller_number,
    parse_scsi_attachment_path,
)
from harness.qemu.disks import E_NOTIMPL, DiskImage
from harness.qemu.hostfacts import SANDBOX, HostFacts
from harness.qemu.kvm import Accelerator
from harness.qemu.qmp import QmpCommand

GCS_PORT_NAME: Final = "gcs"
STDIO_PORT_NAME: Final = "stdio"

# Each was measured by leaving it out of a boot under emulation (1.35 s in all).
_QUICK_BOOT: Final = (
    "cryptomgr.notests",  # 0.3 s of self-tests
    "init_on_alloc=0",  # 0.1 s of clearing pages
    # A disk that goes waits for several RCU grace periods: 16 deletes in a row took 1.1 s
    # without these two, and 0.6 s with them (medians; an emulated guest on a busy host).
    "rcupdate.rcu_expedited=1",
    "rcutree.jiffies_till_first_fqs=0",
)
_QUICK_BOOT_TCG: Final = (
    "mitigations=off",  # 0.1 s; an emulated processor has no such weakness
    "no_timer_check",  # the check fails when a loaded host delays the timer, and panics
    "tsc=reliable",  # no watchdog: it distrusts the TSC when the host is loaded
)
# A kernel that sees "fast strings" copies and clears memory with `rep movsb`, which TCG runs a byte
# at a time: 32 MiB through a pipe took 320 to 370 ms with them, and 30 to 44 ms without.
_EMULATED_CPU: Final = "max,-erms,-fsrm"
# Explicit slots keep the guest's enumeration, and so the numbers of its SCSI hosts, stable.
_SERIAL_SLOT: Final = 0x4
_RNG_SLOT: Final = 0x5
_FIRST_SCSI_SLOT: Final = 0x8


class Treatment(enum.StrEnum):
    """What QEMU does with a field that it does not honour as HCS does."""

    IGNORED = "ignored"
    DIFFERENT = "different"


@dataclass(frozen=True, slots=True)
class ParityItem:
    """A field of a document, what becomes of it on QEMU, and why."""

    field: str
    treatment: Treatment
    reason: str


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Inherited file descriptors of QEMU's ends of the socket pairs."""

    qmp: int
    gcs: int
    stdio: int
    console: int


@dataclass(frozen=True, slots=True)
class GuestMemory:
    """A file that is the guest's memory; not `shared`, what the guest writes stays its own."""

    path: str
    shared: bool


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """QEMU's argument list (the program first) and what it was made from."""

    argv: tuple[str, ...]
    command_line: str
    controllers: int
    has_console: bool
    parity: tuple[ParityItem, ...]


@dataclass(frozen=True, slots=True)
class AttachDisk:
    """A request to attach a disk to a slot."""

    controller: int
    lun: int
    attachment: Attachment


@dataclass(frozen=True, slots=True)
class DetachDisk:
    """A request to detach the disk of a slot."""

    controller: int
    lun: int


def plan_launch(
    document: ComputeSystem,
    host: HostFacts,
    descriptors: Descriptors,
    *,
    system_id: str,
    runtime_id: str,
    kernel: str | None = None,
    memory: GuestMemory | None = None,
    incoming: bool = False,
) -> LaunchPlan:
    """Return how to run a document's virtual machine, paused; its disks are attached afterwards.

    `kernel` replaces the document's kernel file (the same kernel in a form this QEMU boots).
    `incoming`: the machine waits for the state of another one and boots nothing.
    Raises ComputeServiceError for a document that only Hyper-V can run, UsageError for a bad one.
    """
    boot = _kernel_direct(document)
    machine = document.virtual_machine
    assert machine is not None
    topology, devices = machine.compute_topology, machine.devices
    memory_mb = topology.memory.size_in_mb if topology and topology.memory else 0
    processors = topology.processor.count if topology and topology.processor else 0
    if memory_mb <= 0 or processors <= 0:
        raise UsageError("ComputeTopology: Memory.SizeInMB and Processor.Count must be given")
    keys = devices.scsi if devices else {}
    controllers = max((controller_number(key) + 1 for key in keys), default=0)
    assert controllers <= MAX_SCSI_CONTROLLERS
    has_console = bool(devices and "0" in devices.com_ports)
    command_line = append_options(boot.kernel_cmd_line, _added_options(host))

    emulated = host.accelerator is Accelerator.TCG
    argv = [host.qemu, "-name", f"guest={system_id.replace(',', ',,')}", "-uuid", runtime_id]
    argv += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S"]
    if host.sandbox:
        argv += ["-sandbox", SANDBOX]
    machine_options = "q35,usb=off,smbus=off,sata=off,vmport=off,hpet=off"
    if memory is not None:
        share = "on" if memory.shared else "off"
        path = memory.path.replace(",", ",,")
        argv += [
            "-object",
            f"memory-backend-file,id=memory,size={memory_mb}M,mem-path={path},share={share}",
        ]
        machine_options += ",memory-backend=memory"
    argv += ["-M", machine_options]
    argv += ["-accel", str(host.accelerator), "-cpu", _EMULATED_CPU if emulated else "host"]
    argv += ["-m", str(memory_mb), "-smp", str(processors)]
    argv += ["-kernel", kernel or boot.kernel_file_path]
    if boot.init_rd_path:
        argv += ["-initrd", boot.init_rd_path]
    argv += ["-append", command_line]
    argv += ["-chardev", f"socket,id=qmp,fd={descriptors.qmp}"]
    argv += ["-mon", "chardev=qmp,mode=control"]
    if has_console:
        argv += ["-chardev", f"socket,id=console,fd={descriptors.console}"]
        argv += ["-serial", "chardev:console"]
    argv += ["-device", f"virtio-serial-pci,id=ports,addr={_SERIAL_SLOT:#x},max_ports=4"]
    ports = ((GCS_PORT_NAME, descriptors.gcs), (STDIO_PORT_NAME, descriptors.stdio))
    for number, (name, descriptor) in enumerate(ports, start=1):
        argv += ["-chardev", f"socket,id={name},fd={descriptor}"]
        argv += ["-device", f"virtserialport,bus=ports.0,nr={number},chardev={name},name={name}"]
    argv += ["-object", "rng-builtin,id=entropy"]
    argv += ["-device", f"virtio-rng-pci,rng=entropy,addr={_RNG_SLOT:#x}"]
    for index in range(controllers):
        slot = _FIRST_SCSI_SLOT + index
        argv += ["-device", f"virtio-scsi-pci,id=scsi{index},addr={slot:#x}"]
    if incoming:
        argv += ["-incoming", "defer"]
    return LaunchPlan(tuple(argv), command_line, controllers, has_console, parity_of(document))


def append_options(command_line: str, options: tuple[str, ...]) -> str:
    """Return a kernel command line with options added, before the arguments of init after `--`."""
    kernel_part, separator, init_part = f" {command_line.strip()} ".partition(" -- ")
    words = [*kernel_part.split(), *options]
    return " ".join(words) + (f" -- {init_part.strip()}" if separator else "")


def plan_change(request: ModifySettingRequest) -> AttachDisk | DetachDisk:
    """Return what a request means here.

    Raises ComputeServiceError (0x80004001) for a resource that the QEMU service cannot change, and
    UsageError for a malformed request or one that still carries its guest part.
    """
    if request.guest_request is not None:
        raise UsageError("GuestRequest is for the guest: send it over the bridge, then the rest")
    if "/Devices/Scsi/" not in request.resource_path:
        raise ComputeServiceError(
            f"the QEMU service changes SCSI attachments only, not {request.resource_path!r}",
            hresult=E_NOTIMPL,
        )
    controller, lun = parse_scsi_attachment_path(request.resource_path)
    match request.request_type:
        case RequestType.ADD:
            if not isinstance(request.settings, Attachment):
                raise UsageError(f"Add {request.resource_path}: Settings must be an attachment")
            return AttachDisk(controller, lun, request.settings)
        case RequestType.REMOVE:
            return DetachDisk(controller, lun)
        case other:
            raise ComputeServiceError(
                f"{other} of a SCSI attachment is not done on QEMU", hresult=E_NOTIMPL
            )


def device_name(controller: int, lun: int) -> str:
    """Return QEMU's id of the device in a slot."""
    return f"scsi-{controller}-{lun}"


def node_name(controller: int, lun: int) -> str:
    """Return QEMU's name of the block node behind a slot."""
    return f"disk-{controller}-{lun}"


def attach_commands(controller: int, lun: int, disk: DiskImage) -> tuple[QmpCommand, QmpCommand]:
    """Return `blockdev-add` and `device_add`; when the second fails the node must be deleted."""
    node: dict[str, Any] = {
        "driver": disk.driver,
        "node-name": node_name(controller, lun),
        "read-only": disk.read_only,
        # locking=on refuses where the file system cannot lock: a disk in two machines is lost.
        "file": {"driver": "file", "filename": disk.path, "locking": "on"},
    }
    if disk.size is not None:
        node |= {"offset": 0, "size": disk.size}
    if not disk.read_only:
        node["discard"] = "unmap"
    if disk.ignore_flushes:
        node["cache"] = {"no-flush": True}
    device = {
        "driver": "scsi-hd",
        "id": device_name(controller, lun),
        "bus": f"scsi{controller}.0",
        "channel": 0,
        "scsi-id": 0,
        "lun": lun,
        "drive": node_name(controller, lun),
    }
    return QmpCommand("blockdev-add", node), QmpCommand("device_add", device)


def detach_commands(controller: int, lun: int) -> tuple[QmpCommand, QmpCommand]:
    """Return `device_del` and `blockdev-del`; DEVICE_DELETED must come in between."""
    return (
        QmpCommand("device_del", {"id": device_name(controller, lun)}),
        QmpCommand("blockdev-del", {"node-name": node_name(controller, lun)}),
    )


# What becomes of each field, by its path; `*` stands for one name. The first match decides. None:
# honoured.
_DIFFERENT: Final = Treatment.DIFFERENT
_IGNORED: Final = Treatment.IGNORED
_TREATMENTS: Final[tuple[tuple[str, tuple[Treatment, str] | None], ...]] = (
    ("Owner", None),
    ("SchemaVersion.*", None),
    (
        "ShouldTerminateOnLastHandleClosed",
        None,  # QEMU ends when the service is closed or its process dies
    ),
    ("VirtualMachine.StopOnReset", None),
    ("VirtualMachine.Chipset.LinuxKernelDirect.KernelFilePath", None),
    ("VirtualMachine.Chipset.LinuxKernelDirect.InitRdPath", None),
    (
        "VirtualMachine.Chipset.LinuxKernelDirect.KernelCmdLine",
        (_DIFFERENT, "options for QEMU's virtual hardware are added"),
    ),
    ("VirtualMachine.ComputeTopology.Memory.SizeInMB", None),
    ("VirtualMachine.ComputeTopology.Memory.AllowOvercommit", None),
    ("VirtualMachine.ComputeTopology.Processor.Count", None),
    (
        "VirtualMachine.Devices.ComPorts.0.NamedPipe",
        (_DIFFERENT, "the port's output is kept by the service; no pipe of that name is made"),
    ),
    (
        "VirtualMachine.Devices.HvSocket.**",
        (_DIFFERENT, "streams are sockets in a directory that only this user may enter"),
    ),
    ("VirtualMachine.Devices.Scsi.*.Attachments.*.Type", None),
    ("VirtualMachine.Devices.Scsi.*.Attachments.*.Path", None),
    ("VirtualMachine.Devices.Scsi.*.Attachments.*.ReadOnly", None),
    ("VirtualMachine.Devices.Scsi.*.Attachments.*.IgnoreFlushes", None),
    (
        "VirtualMachine.Devices.Scsi.*.Attachments.*.CachingMode",
        (_IGNORED, "the page cache is used"),
    ),
    (
        "VirtualMachine.ComputeTopology.Memory.*",
        (_IGNORED, "memory is the process's own, overcommitted and never physically backed"),
    ),
    (
        "VirtualMachine.ComputeTopology.Processor.**",
        (_IGNORED, "processors are threads under the host's scheduler"),
    ),
    ("VirtualMachine.Devices.VirtualPMem.**", (_IGNORED, "layers go on SCSI: there is no NVDIMM")),
    ("VirtualMachine.Devices.NetworkAdapters.**", (_IGNORED, "there is no network")),
    ("VirtualMachine.Devices.Plan9.**", (_IGNORED, "there is no 9p server")),
)


def parity_of(document: ComputeSystem) -> tuple[ParityItem, ...]:
    """Return every field of a document that QEMU does not honour as HCS does."""
    items = [
        item
        for path, value in _leaves(document.to_json(), "")
        if (item := _parity_item(path, value)) is not None
    ]
    machine = document.virtual_machine
    if machine is not None and not machine.stop_on_reset:
        items.append(
            ParityItem(
                "VirtualMachine.StopOnReset",
                _DIFFERENT,
                "not set, but a reset stops the system all the same",
            )
        )
    return tuple(items)


def refusal_of(document: ComputeSystem) -> str | None:
    """Return why QEMU cannot run a document at all, on any host; None where it can."""
    host = HostFacts(qemu="qemu", version="", accelerator=Accelerator.TCG)
    try:
        plan_launch(document, host, Descriptors(0, 0, 0, 0), system_id="", runtime_id="")
        document.attachments()
    except (ComputeServiceError, UsageError) as error:
        return str(error)
    return None


def attachment_parity(controller: int, lun: int, attachment: Attachment) -> tuple[ParityItem, ...]:
    """Return the fields of a hot-added attachment that QEMU does not honour as HCS does."""
    prefix = f"VirtualMachine.Devices.Scsi.{controller}.Attachments.{lun}"
    return tuple(
        item
        for path, value in _leaves(attachment.to_json(), prefix)
        if (item := _parity_item(path, value)) is not None
    )


def _parity_item(path: str, value: object) -> ParityItem | None:
    for pattern, treatment in _TREATMENTS:
        expression = re.escape(pattern).replace(r"\*\*", ".+").replace(r"\*", "[^.]+")
        if re.fullmatch(expression, path):
            return ParityItem(path, *treatment) if treatment is not None else None
    if value == {}:
        return None  # an object that says nothing: a controller without attachments
    return ParityItem(path, _IGNORED, "QEMU has no such thing")


def _leaves(value: object, at: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{at}.{key}" if at else str(key))
    else:
        yield at, value


def _kernel_direct(document: ComputeSystem) -> LinuxKernelDirect:
    machine = document.virtual_machine
    if machine is None:
        raise UsageError("the document has no VirtualMachine")
    boot = machine.chipset.linux_kernel_direct if machine.chipset else None
    if boot is None or not boot.kernel_file_path:
        raise ComputeServiceError(
            "the QEMU service boots Chipset.LinuxKernelDirect only", hresult=E_NOTIMPL
        )
    return boot


def _added_options(host: HostFacts) -> tuple[str, ...]:
    options = list(_QUICK_BOOT)
    if host.accelerator is Accelerator.TCG:
        options += _QUICK_BOOT_TCG
    if host.tsc_khz is not None:
        options.append(f"tsc_early_khz={host.tsc_khz}")
    return tuple(options)

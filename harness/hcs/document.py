"""HCS documents: the `ComputeSystem` tree as LCOW uses it; also the names that go with it.

Field names, spelling and omission rules are those of the HCS schema as hcsshim sends it (hcsshim
`internal/hcs/schema2`; MicrosoftDocs `virtualization/api/hcs/SchemaReference`). Fields that LCOW
does not use are kept in `extra`, so that a document from elsewhere survives a round trip.

A kernel command line in a document is the neutral part: what is right on every compute service.
Each service appends what its own virtual hardware needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from harness.errors import UsageError
from harness.hcs.devices import (
    Attachment,
    AttachmentType,
    ComPort,
    Devices,
    HvSocket,
    HvSocketSystemConfig,
    Scsi,
)
from harness.hcs.requests import (
    ModifySettingRequest,
    RequestType,
    attach_request,
    detach_request,
)
from harness.hcs.schema import decode, encode, json_name, unknown_fields
from harness.hcs.scsislots import (
    LUNS_PER_CONTROLLER,
    MAX_SCSI_CONTROLLERS,
    SCSI_CONTROLLER_GUIDS,
    controller_number,
    is_scsi_attachment_path,
    lun_number,
    parse_scsi_attachment_path,
    scsi_attachment_path,
)

__all__ = [
    "LUNS_PER_CONTROLLER",
    "MAX_SCSI_CONTROLLERS",
    "MIN_MEMORY_MB",
    "ROOT_SLOT",
    "SCSI_CONTROLLER_GUIDS",
    "Attachment",
    "AttachmentType",
    "Chipset",
    "ComPort",
    "ComputeSystem",
    "CpuGroup",
    "Devices",
    "HvSocket",
    "HvSocketSystemConfig",
    "LinuxKernelDirect",
    "Memory",
    "ModifySettingRequest",
    "Processor",
    "RequestType",
    "Scsi",
    "StorageQoS",
    "Topology",
    "Uefi",
    "UefiBootEntry",
    "Version",
    "VirtualMachine",
    "attach_request",
    "controller_number",
    "detach_request",
    "is_scsi_attachment_path",
    "lcow_document",
    "lun_number",
    "parse_scsi_attachment_path",
    "scsi_attachment_path",
]

ROOT_SLOT: Final = (0, 0)
"""Controller and LUN of a root disk, as hcsshim reserves them."""
MIN_MEMORY_MB: Final = 256
"""Less leaves too little for the guest agent beside a container."""


@dataclass(frozen=True, slots=True)
class Version:
    """Schema version; 2.2 is the first with LinuxKernelDirect, hcsshim sends 2.1 all the same."""

    major: int = 2
    minor: int = 1
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a virtual machine; sizes in MiB, as HCS counts them."""

    size_in_mb: int = field(default=0, metadata=json_name("SizeInMB"))
    backing: str = ""
    allow_overcommit: bool = False
    enable_hot_hint: bool = False
    enable_cold_hint: bool = False
    enable_cold_discard_hint: bool = False
    enable_deferred_commit: bool = False
    low_mmio_gap_in_mb: int = field(default=0, metadata=json_name("LowMmioGapInMB"))
    high_mmio_base_in_mb: int = field(default=0, metadata=json_name("HighMmioBaseInMB"))
    high_mmio_gap_in_mb: int = field(default=0, metadata=json_name("HighMmioGapInMB"))
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CpuGroup:
    """A CPU group of the host."""

    id: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Processor:
    """Virtual processors and their scheduling."""

    count: int = 0
    limit: int = 0
    weight: int = 0
    reservation: int = 0
    cpu_group: CpuGroup | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Topology:
    """Memory and processors."""

    memory: Memory | None = None
    processor: Processor | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UefiBootEntry:
    """What UEFI boots; `optional_data` is the kernel command line."""

    device_type: str = ""
    device_path: str = ""
    disk_number: int = 0
    optional_data: str = ""
    vmb_fs_root_path: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Uefi:
    """UEFI firmware."""

    enable_debugger: bool = False
    apply_secure_boot_template: str = ""
    secure_boot_template_id: str = ""
    boot_this: UefiBootEntry | None = None
    console: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LinuxKernelDirect:
    """A kernel that is booted without firmware."""

    kernel_file_path: str = ""
    init_rd_path: str = ""
    kernel_cmd_line: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chipset:
    """Firmware and boot."""

    uefi: Uefi | None = None
    linux_kernel_direct: LinuxKernelDirect | None = None
    use_utc: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StorageQoS:
    """Limits of all disks together."""

    iops_maximum: int = 0
    bandwidth_maximum: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VirtualMachine:
    """A virtual machine."""

    stop_on_reset: bool = False
    chipset: Chipset | None = None
    compute_topology: Topology | None = None
    devices: Devices | None = None
    storage_qos: StorageQoS | None = field(default=None, metadata=json_name("StorageQoS"))
    guest_state: Mapping[str, Any] = field(default_factory=dict)
    guest_connection: Mapping[str, Any] = field(default_factory=dict)
    security_settings: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ComputeSystem:
    """The document that describes a compute system to HcsCreateComputeSystem."""

    owner: str = ""
    schema_version: Version | None = None
    hosting_system_id: str = ""
    virtual_machine: VirtualMachine | None = None
    should_terminate_on_last_handle_closed: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that HCS takes."""
        return encode(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Return the document of a JSON object. Raises UsageError with the path of a bad value."""
        return decode(cls, raw)

    @property
    def root_is_disk(self) -> bool:
        """Whether the kernel is told to take its root from a SCSI disk."""
        kernel_part, _ = self._command_line()
        return any(option.startswith("root=/dev/sd") for option in kernel_part)

    @property
    def init_options(self) -> tuple[str, ...]:
        """What init is told behind `--`."""
        return self._command_line()[1]

    def _command_line(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        chipset = self.virtual_machine.chipset if self.virtual_machine else None
        boot = chipset.linux_kernel_direct if chipset else None
        kernel, _, init = (f" {boot.kernel_cmd_line} " if boot else "").partition(" -- ")
        return tuple(kernel.split()), tuple(init.split())

    def unknown_fields(self) -> tuple[str, ...]:
        """Return the dotted paths of fields these classes do not know; they are kept."""
        return tuple(unknown_fields(self))

    def attachments(self) -> dict[tuple[int, int], Attachment]:
        """Return (controller, LUN) -> attachment. Raises UsageError for a slot amiss."""
        devices = self.virtual_machine.devices if self.virtual_machine else None
        return {
            (controller_number(key), lun_number(lun)): attachment
            for key, scsi in (devices.scsi if devices else {}).items()
            for lun, attachment in scsi.attachments.items()
        }


def lcow_document(
    *,
    owner: str,
    kernel: str,
    initrd: str,
    memory_mb: int = 1024,
    processors: int = 2,
    serial_pipe: str | None = None,
    kernel_options: Sequence[str] = (),
    attachments: Mapping[tuple[int, int], Attachment] | None = None,
    root_disk: str = "",
    init_options: Sequence[str] = (),
) -> ComputeSystem:
    r"""Return the document of an LCOW utility VM that boots `kernel` with `initrd`.

    With a `root_disk` (VHD or VHDX) the root file system is that, read-only, in the slot
    ROOT_SLOT; `initrd` is then empty, or what loads the disk's driver first. `init_options` go
    behind `--`: `-w` makes /etc and /var of a root disk writable, in memory; `-s`, which is ours,
    has a guest whose host is gone stay, with all that runs in it, instead of powering off.

    It has four SCSI controllers, no network, a serial port on `serial_pipe` (a path such as
    `\\.\pipe\console`; other services than HCS take any text for "yes") and a neutral kernel
    command line with `kernel_options` in it. An odd `memory_mb` is rounded up, as hcsshim does.

    Raises UsageError for less than 256 MiB, no processor, or a slot that does not exist.
    """
    if memory_mb < MIN_MEMORY_MB:
        raise UsageError(f"{memory_mb} MB of memory: a utility VM needs {MIN_MEMORY_MB} at least")
    if processors < 1:
        raise UsageError(f"{processors} processors: a utility VM needs one at least")
    disks: dict[str, dict[str, Attachment]] = {guid: {} for guid in SCSI_CONTROLLER_GUIDS}
    slots = dict(attachments or {})
    root_options: list[str] = []
    if root_disk:
        if ROOT_SLOT in slots:
            path = slots[ROOT_SLOT].path
            raise UsageError(f"slot 0:0 is the root disk's: attach {path} elsewhere")
        slots[ROOT_SLOT] = Attachment(AttachmentType.VIRTUAL_DISK, root_disk, read_only=True)
        root_options = ["root=/dev/sda", "ro", "rootwait", "init=/init"]
    for (controller, lun), attachment in slots.items():
        scsi_attachment_path(controller, lun)
        disks[SCSI_CONTROLLER_GUIDS[controller]][str(lun)] = attachment
    if serial_pipe:
        console = ["8250.nr_uarts=1", "8250.skip_txen_test=1", "console=ttyS0,115200", "quiet"]
    else:
        console = ["8250.nr_uarts=0", "quiet"]
    # panic=-1: a guest that panics resets at once, and StopOnReset makes that the system's end.
    command_line = [*root_options, *console, "panic=-1", f"nr_cpus={processors}", *kernel_options]
    command_line += ["--", *init_options] if init_options else []
    return ComputeSystem(
        owner=owner,
        schema_version=Version(2, 1),
        should_terminate_on_last_handle_closed=True,
        virtual_machine=VirtualMachine(
            stop_on_reset=True,
            chipset=Chipset(
                linux_kernel_direct=LinuxKernelDirect(kernel, initrd, " ".join(command_line))
            ),
            compute_topology=Topology(
                memory=Memory(size_in_mb=memory_mb + memory_mb % 2, allow_overcommit=True),
                processor=Processor(count=processors),
            ),
            devices=Devices(
                com_ports={"0": ComPort(named_pipe=serial_pipe)} if serial_pipe else {},
                scsi={guid: Scsi(attachments=luns) for guid, luns in disks.items()},
                # Administrators and SYSTEM may bind: what hcsshim grants its own listeners.
                hv_socket=HvSocket(
                    HvSocketSystemConfig(
                        default_bind_security_descriptor="D:P(A;;FA;;;SY)(A;;FA;;;BA)"
                    )
                ),
            ),
        ),
    )

"""Documents and requests in QEMU's terms, without QEMU."""

from __future__ import annotations

import dataclasses

import pytest

from harness.errors import ComputeServiceError, UsageError
from harness.hcs.document import (
    SCSI_CONTROLLER_GUIDS,
    Attachment,
    AttachmentType,
    ComputeSystem,
    ModifySettingRequest,
    RequestType,
    attach_request,
    detach_request,
    lcow_document,
    scsi_attachment_path,
)
from harness.qemu.disks import DiskImage
from harness.qemu.hostfacts import HostFacts
from harness.qemu.kvm import Accelerator
from harness.qemu.translate import (
    AttachDisk,
    Descriptors,
    DetachDisk,
    LaunchPlan,
    Treatment,
    append_options,
    attach_commands,
    detach_commands,
    parity_of,
    plan_change,
    plan_launch,
)

TCG = HostFacts("/usr/bin/qemu", "7.2.22", Accelerator.TCG, tsc_khz=2_500_000)
KVM = dataclasses.replace(TCG, accelerator=Accelerator.KVM)
FDS = Descriptors(qmp=10, gcs=11, stdio=12, console=13)


def document(**values: object) -> ComputeSystem:
    raw = lcow_document(
        owner="t", kernel="/k/vmlinux", initrd="/k/initrd", serial_pipe="p"
    ).to_json()
    raw["VirtualMachine"].update(values)
    return ComputeSystem.from_json(raw)


def plan(given: ComputeSystem, host: HostFacts = TCG) -> LaunchPlan:
    return plan_launch(given, host, FDS, system_id="s1", runtime_id="uuid")


def values_of(argv: tuple[str, ...], option: str) -> list[str]:
    return [argv[index + 1] for index, word in enumerate(argv) if word == option]


def test_boot_and_topology_are_the_documents() -> None:
    argv = plan(document()).argv
    assert values_of(argv, "-kernel") == ["/k/vmlinux"]
    assert values_of(argv, "-initrd") == ["/k/initrd"]
    assert values_of(argv, "-m") == ["1024"]
    assert values_of(argv, "-smp") == ["2"]


def test_the_machine_starts_paused_and_stops_at_a_reset() -> None:
    assert {"-S", "-no-reboot", "-nodefaults", "-no-user-config"} <= set(plan(document()).argv)


def test_ports_and_controllers_are_where_the_guest_looks_for_them() -> None:
    devices = values_of(plan(document()).argv, "-device")
    assert "virtserialport,bus=ports.0,nr=1,chardev=gcs,name=gcs" in devices
    assert "virtserialport,bus=ports.0,nr=2,chardev=stdio,name=stdio" in devices
    scsi = [device for device in devices if device.startswith("virtio-scsi-pci")]
    assert scsi == [f"virtio-scsi-pci,id=scsi{n},addr={8 + n:#x}" for n in range(4)]


def test_emulation_gets_its_kernel_options_and_kvm_its_own() -> None:
    emulated, virtual = plan(document()), plan(document(), KVM)
    assert {"mitigations=off", "tsc_early_khz=2500000"} <= set(emulated.command_line.split())
    assert "mitigations=off" not in virtual.command_line
    assert "cryptomgr.notests" in virtual.command_line
    assert values_of(emulated.argv, "-cpu") == ["max,-erms,-fsrm"]
    assert values_of(virtual.argv, "-cpu") == ["host"]


def test_options_are_added_before_the_arguments_of_init() -> None:
    assert append_options("quiet -- -e 1 sh", ("a=1",)) == "quiet a=1 -- -e 1 sh"
    assert append_options("", ("a=1",)) == "a=1"


def test_a_document_without_a_serial_port_gets_none() -> None:
    given = lcow_document(owner="t", kernel="/k", initrd="/i")
    assert "-serial" not in plan(given).argv
    assert not plan(given).has_console


def test_without_seccomp_there_is_no_sandbox() -> None:
    assert "-sandbox" in plan(document()).argv
    assert "-sandbox" not in plan(document(), dataclasses.replace(TCG, sandbox=False)).argv


def test_a_comma_in_an_id_stays_within_its_option() -> None:
    given = plan_launch(document(), TCG, FDS, system_id="a,b", runtime_id="u")
    assert values_of(given.argv, "-name") == ["guest=a,,b"]


def test_a_document_for_uefi_is_refused() -> None:
    given = document(Chipset={"Uefi": {"BootThis": {"DeviceType": "VmbFs"}}})
    with pytest.raises(ComputeServiceError, match="LinuxKernelDirect") as caught:
        plan(given)
    assert caught.value.hresult == 0x80004001


def test_a_document_without_processors_is_refused() -> None:
    with pytest.raises(UsageError, match="Processor"):
        plan(document(ComputeTopology={"Memory": {"SizeInMB": 512}}))


def test_no_field_is_dropped_silently() -> None:
    given = document(
        StorageQoS={"IopsMaximum": 1},
        GuestState={"GuestStateFilePath": "x"},
        Novel={"Deep": {"Er": 1}},
        ComputeTopology={
            "Memory": {"SizeInMB": 512, "Backing": "Physical", "EnableColdHint": True},
            "Processor": {"Count": 1, "Weight": 7, "CpuGroup": {"Id": "g"}},
        },
    )
    ignored = {i.field for i in parity_of(given) if i.treatment is Treatment.IGNORED}
    assert ignored == {
        "VirtualMachine.StorageQoS.IopsMaximum",
        "VirtualMachine.GuestState.GuestStateFilePath",
        "VirtualMachine.Novel.Deep.Er",
        "VirtualMachine.ComputeTopology.Memory.Backing",
        "VirtualMachine.ComputeTopology.Memory.EnableColdHint",
        "VirtualMachine.ComputeTopology.Processor.Weight",
        "VirtualMachine.ComputeTopology.Processor.CpuGroup.Id",
    }


def test_what_a_plain_document_asks_for_is_honoured_but_for_transports() -> None:
    items = {item.field: item.treatment for item in parity_of(document())}
    assert set(items.values()) == {Treatment.DIFFERENT}
    assert set(items) == {
        "VirtualMachine.Chipset.LinuxKernelDirect.KernelCmdLine",
        "VirtualMachine.Devices.ComPorts.0.NamedPipe",
        "VirtualMachine.Devices.HvSocket.HvSocketConfig.DefaultBindSecurityDescriptor",
    }


def test_a_guest_that_may_reset_is_named_as_different() -> None:
    fields = [item.field for item in parity_of(document(StopOnReset=False))]
    assert "VirtualMachine.StopOnReset" in fields


def test_scsi_requests_become_attach_and_detach() -> None:
    attach = plan_change(attach_request(2, 9, "/d", read_only=True))
    assert isinstance(attach, AttachDisk)
    assert (attach.controller, attach.lun, attach.attachment.read_only) == (2, 9, True)
    assert plan_change(detach_request(2, 9)) == DetachDisk(2, 9)


def test_other_resources_are_refused_as_not_implemented() -> None:
    with pytest.raises(ComputeServiceError, match="Plan9") as caught:
        plan_change(ModifySettingRequest("VirtualMachine/Devices/Plan9/Shares"))
    assert caught.value.hresult == 0x80004001


def test_a_request_with_its_guest_part_is_refused() -> None:
    request = dataclasses.replace(detach_request(0, 0), guest_request={"RequestType": "Remove"})
    with pytest.raises(UsageError, match="bridge"):
        plan_change(request)


def test_an_update_of_a_disk_is_refused() -> None:
    request = ModifySettingRequest(
        scsi_attachment_path(0, 0), RequestType.UPDATE, Attachment(AttachmentType.VIRTUAL_DISK)
    )
    with pytest.raises(ComputeServiceError):
        plan_change(request)


def test_a_disk_is_locked_and_addressed_as_the_guest_expects() -> None:
    node, device = attach_commands(3, 63, DiskImage("/d.vhdx", "vhdx", read_only=False))
    assert node.arguments["file"] == {"driver": "file", "filename": "/d.vhdx", "locking": "on"}
    assert node.arguments["node-name"] == device.arguments["drive"]
    assert device.arguments["bus"] == "scsi3.0"
    assert (device.arguments["channel"], device.arguments["scsi-id"]) == (0, 0)
    assert device.arguments["lun"] == 63


def test_a_fixed_vhd_is_opened_without_its_footer() -> None:
    node, _ = attach_commands(0, 1, DiskImage("/l.vhd", "raw", read_only=True, size=4096))
    assert (node.arguments["driver"], node.arguments["offset"]) == ("raw", 0)
    assert node.arguments["size"] == 4096
    assert node.arguments["read-only"] is True


def test_detaching_names_what_attaching_made() -> None:
    node, device = attach_commands(1, 2, DiskImage("/d", "vhdx", read_only=False))
    remove_device, remove_node = detach_commands(1, 2)
    assert remove_device.arguments["id"] == device.arguments["id"]
    assert remove_node.arguments["node-name"] == node.arguments["node-name"]


def test_controllers_up_to_the_highest_exist() -> None:
    given = document(Devices={"Scsi": {SCSI_CONTROLLER_GUIDS[2]: {}}})
    assert plan(given).controllers == 3

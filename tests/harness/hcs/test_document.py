"""HCS documents keep hcsshim's spelling and survive a round trip."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import UsageError
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
    parse_scsi_attachment_path,
    scsi_attachment_path,
)

# Composed from hcsshim's structs: LinuxKernelDirect, rootfs.vhd on SCSI 0:0, a console pipe.
HCSSHIM_DOCUMENT = {
    "Owner": "pylcow",
    "SchemaVersion": {"Major": 2, "Minor": 1},
    "ShouldTerminateOnLastHandleClosed": True,
    "VirtualMachine": {
        "StopOnReset": True,
        "Chipset": {
            "LinuxKernelDirect": {
                "KernelFilePath": "C:\\Program Files\\Linux Containers\\vmlinux",
                "KernelCmdLine": "root=/dev/sda ro rootwait init=/init pci=off nr_cpus=2",
            }
        },
        "ComputeTopology": {
            "Memory": {"SizeInMB": 1024, "AllowOvercommit": True},
            "Processor": {"Count": 2},
        },
        "Devices": {
            "ComPorts": {"0": {"NamedPipe": "\\\\.\\pipe\\uvm-console"}},
            "Scsi": {
                "df6d0690-79e5-55b6-a5ec-c1e2f77f580a": {
                    "Attachments": {
                        "0": {
                            "Type": "VirtualDisk",
                            "Path": "C:\\Program Files\\Linux Containers\\rootfs.vhd",
                            "ReadOnly": True,
                        }
                    }
                },
                "0110f83b-de10-5172-a266-78bca56bf50a": {},
                "b5d2d8d4-3a75-51bf-945b-3444dc6b8579": {},
                "305891a9-b251-5dfe-91a2-c25d9212275b": {},
            },
            "HvSocket": {
                "HvSocketConfig": {"DefaultBindSecurityDescriptor": "D:P(A;;FA;;;SY)(A;;FA;;;BA)"}
            },
            "Plan9": {},
        },
    },
}


def test_a_document_of_hcsshim_survives_a_round_trip() -> None:
    document = ComputeSystem.from_json(HCSSHIM_DOCUMENT)
    assert document.to_json() == HCSSHIM_DOCUMENT
    assert document.unknown_fields() == ()


def test_attachments_of_a_document_are_found_by_slot() -> None:
    disks = ComputeSystem.from_json(HCSSHIM_DOCUMENT).attachments()
    assert list(disks) == [(0, 0)]
    assert disks[0, 0].read_only


def test_a_root_disk_is_where_hcsshim_has_it_and_the_kernel_is_told() -> None:
    made = lcow_document(owner="x", kernel="k", initrd="", root_disk="C:\\rootfs.vhd")
    assert made.attachments() == {
        (0, 0): Attachment(AttachmentType.VIRTUAL_DISK, "C:\\rootfs.vhd", read_only=True)
    }
    direct = made.to_json()["VirtualMachine"]["Chipset"]["LinuxKernelDirect"]
    assert direct["KernelCmdLine"].startswith("root=/dev/sda ro rootwait init=/init ")
    assert made.root_is_disk
    assert made.init_options == ()
    writable = lcow_document(owner="x", kernel="k", initrd="", root_disk="r", init_options=["-w"])
    assert writable.init_options == ("-w",)
    assert ComputeSystem.from_json(HCSSHIM_DOCUMENT).root_is_disk
    assert not lcow_document(owner="x", kernel="k", initrd="i").root_is_disk


def test_the_slot_of_a_root_disk_is_nobody_elses() -> None:
    taken = {(0, 0): Attachment(AttachmentType.VIRTUAL_DISK, "data.vhdx")}
    with pytest.raises(UsageError, match=r"0:0 is the root disk's: attach data\.vhdx elsewhere"):
        lcow_document(owner="x", kernel="k", initrd="", root_disk="r.vhd", attachments=taken)


def test_fields_that_are_not_known_are_kept_and_named() -> None:
    raw = {"Owner": "x", "VirtualMachine": {"Chipset": {"Novel": {"A": 1}}, "Version": "9"}}
    document = ComputeSystem.from_json(raw)
    assert document.to_json() == raw
    assert set(document.unknown_fields()) == {
        "VirtualMachine.Chipset.Novel",
        "VirtualMachine.Version",
    }


def test_spellings_that_pascal_case_does_not_give_are_hcs_own() -> None:
    raw = {
        "VirtualMachine": {
            "StorageQoS": {"IopsMaximum": 5},
            "Devices": {"VirtualPMem": {"MaximumSizeBytes": 1, "Backing": "Virtual"}},
            "ComputeTopology": {
                "Memory": {"SizeInMB": 2, "LowMmioGapInMB": 3},
                "Processor": {"CpuGroup": {"Id": "g"}},
            },
            "Chipset": {"Uefi": {"BootThis": {"VmbFsRootPath": "C:\\", "DeviceType": "VmbFs"}}},
        }
    }
    document = ComputeSystem.from_json(raw)
    assert document.unknown_fields() == ()
    assert document.to_json() == raw


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ({"Owner": 5}, "Owner"),
        ({"VirtualMachine": []}, "VirtualMachine"),
        (
            {"VirtualMachine": {"ComputeTopology": {"Memory": {"SizeInMB": True}}}},
            "VirtualMachine.ComputeTopology.Memory.SizeInMB",
        ),
        (
            {"VirtualMachine": {"Devices": {"Scsi": {"g": {"Attachments": {"0": {"Type": "X"}}}}}}},
            "VirtualMachine.Devices.Scsi.g.Attachments.0.Type",
        ),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_with_its_path(
    raw: dict[str, object], path: str
) -> None:
    with pytest.raises(UsageError) as caught:
        ComputeSystem.from_json(raw)
    assert str(caught.value).startswith(f"{path}:")


def test_the_built_document_has_four_controllers_and_omits_what_is_empty() -> None:
    document = lcow_document(owner="t", kernel="k", initrd="i", serial_pipe="p", memory_mb=513)
    raw = document.to_json()
    assert list(raw["VirtualMachine"]["Devices"]["Scsi"]) == list(SCSI_CONTROLLER_GUIDS)
    assert raw["VirtualMachine"]["Devices"]["Scsi"][SCSI_CONTROLLER_GUIDS[3]] == {}
    assert raw["VirtualMachine"]["ComputeTopology"]["Memory"]["SizeInMB"] == 514
    assert "HostingSystemId" not in raw
    assert ComputeSystem.from_json(raw) == document


def test_the_built_command_line_is_neutral() -> None:
    document = lcow_document(owner="t", kernel="k", initrd="i", kernel_options=["debug"])
    line = document.to_json()["VirtualMachine"]["Chipset"]["LinuxKernelDirect"]["KernelCmdLine"]
    assert "debug" in line.split()
    assert "panic=-1" in line.split()
    # Each would break the other compute service.
    assert not {"pci=off", "mitigations=off"} & set(line.split())


def test_a_machine_too_small_for_the_agent_is_refused() -> None:
    with pytest.raises(UsageError, match="256"):
        lcow_document(owner="t", kernel="k", initrd="i", memory_mb=128)


@pytest.mark.parametrize(("controller", "lun"), [(0, 0), (3, 63), (1, 31)])
def test_a_slot_path_is_parsed_back(controller: int, lun: int) -> None:
    assert parse_scsi_attachment_path(scsi_attachment_path(controller, lun)) == (controller, lun)


@pytest.mark.parametrize(
    "path",
    [
        "VirtualMachine/Devices/Scsi/0/Attachments/0",
        f"VirtualMachine/Devices/Scsi/{SCSI_CONTROLLER_GUIDS[0]}/Attachments/64",
        f"VirtualMachine/Devices/Scsi/{SCSI_CONTROLLER_GUIDS[0]}/Attachments/-1",
        "VirtualMachine/Devices/Plan9/Shares",
    ],
)
def test_a_path_of_no_slot_is_refused(path: str) -> None:
    with pytest.raises(UsageError):
        parse_scsi_attachment_path(path)


@pytest.mark.parametrize(("controller", "lun"), [(4, 0), (-1, 0), (0, 64)])
def test_a_slot_that_does_not_exist_has_no_path(controller: int, lun: int) -> None:
    with pytest.raises(UsageError):
        scsi_attachment_path(controller, lun)


def test_an_attach_request_is_what_hcs_takes() -> None:
    request = attach_request(0, 3, "C:\\scratch\\sandbox.vhdx")
    assert request.to_json() == {
        "ResourcePath": "VirtualMachine/Devices/Scsi/df6d0690-79e5-55b6-a5ec-c1e2f77f580a/"
        "Attachments/3",
        "RequestType": "Add",
        "Settings": {"Type": "VirtualDisk", "Path": "C:\\scratch\\sandbox.vhdx"},
    }


def test_requests_survive_a_round_trip() -> None:
    for request in (
        attach_request(1, 2, "/x", read_only=True),
        detach_request(3, 4),
        ModifySettingRequest("VirtualMachine/X", RequestType.UPDATE, {"A": 1}, {"B": 2}),
    ):
        assert ModifySettingRequest.from_json(request.to_json()) == request


def test_a_request_with_a_misspelt_field_is_refused() -> None:
    with pytest.raises(UsageError, match="Resourcepath"):
        ModifySettingRequest.from_json({"Resourcepath": "x"})


_JSON = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(
    attachment=st.builds(
        Attachment,
        type=st.sampled_from(AttachmentType) | st.none(),
        path=st.text(),
        read_only=st.booleans(),
        ignore_flushes=st.booleans(),
        caching_mode=st.sampled_from(["", "Cached", "Uncached"]),
        extra=st.dictionaries(st.sampled_from(["New", "Other"]), _JSON),
    )
)
def test_any_attachment_survives_a_round_trip(attachment: Attachment) -> None:
    assert Attachment.from_json(attachment.to_json()) == attachment

"""Utility VMs whose root is a disk: a VHDX of the image's root boots, and a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.hcs.document import lcow_document
from harness.image.rootdisk import ensure_root_disk
from harness.lab import Lab
from harness.qemu.service import QemuComputeService
from harness.uvm import UtilityVm
from snapshotter.convert import convert_disk
from snapshotter.scratch.template import ScratchTemplate
from snapshotter.units import GIB

pytestmark = pytest.mark.qemu


def boot(lab: Lab, service: QemuComputeService, disk: Path) -> UtilityVm:
    document = lcow_document(
        owner="test",
        kernel=str(lab.image.vmlinux),
        initrd=str(ensure_root_disk(lab.image).bootstrap),
        memory_mb=256,
        serial_pipe="console",
        root_disk=str(disk),
    )
    return UtilityVm.boot(service, document, timeout_s=90)


def test_a_root_in_a_vhdx_boots_and_is_no_disk_of_ours(lab: Lab, tmp_path: Path) -> None:
    disk = tmp_path / "root.vhdx"
    convert_disk(ensure_root_disk(lab.image).disk, disk)
    with QemuComputeService() as service, boot(lab, service, disk) as vm:
        done = vm.processes.start(["/bin/sh", "-c", "cat /proc/mounts; touch /x 2>&1"]).wait()
        assert "/dev/sda / ext4 ro," in done.text
        assert "Read-only file system" in done.text
        snapshot = vm.scsi.snapshot()
        assert (snapshot.attachments, snapshot.free_slots) == ((), 255)


def test_a_disk_without_a_root_ends_the_machine_with_the_reason(lab: Lab, tmp_path: Path) -> None:
    disk = tmp_path / "empty.vhdx"
    ScratchTemplate.build(GIB).write(disk)
    with QemuComputeService() as service:
        with pytest.raises(HarnessError, match="no root: /dev/sda has no /init"):
            boot(lab, service, disk)
        assert service.enumerate() == []

"""The model's guests boot from a disk, or panic as a kernel does."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import InfrastructureError
from harness.hcs.document import lcow_document
from harness.model.rootdisk import write_root_disk
from harness.model.service import ModelComputeService
from harness.uvm import UtilityVm
from snapshotter.scratch.template import ScratchTemplate
from snapshotter.units import GIB


def boot(service: ModelComputeService, disk: Path) -> UtilityVm:
    document = lcow_document(owner="x", kernel="", initrd="", root_disk=str(disk))
    return UtilityVm.boot(service, document, timeout_s=5)


def test_the_root_is_the_disk_and_read_only(tmp_path: Path) -> None:
    write_root_disk(tmp_path / "root.vhd")
    with ModelComputeService() as service, boot(service, tmp_path / "root.vhd") as vm:
        table = vm.processes.start(["/bin/cat", "/proc/self/mountinfo"]).wait().text
        assert "8:0 / / ro - ext4 /dev/sda" in table
        assert vm.processes.start(["/bin/sh", "-c", "echo x > /file"]).wait().exit_code != 0
        assert vm.processes.start(["/bin/sh", "-c", "echo x > /tmp/file"]).wait().exit_code == 0


def test_a_disk_without_an_init_is_a_panic(tmp_path: Path) -> None:
    ScratchTemplate.build(GIB).write(tmp_path / "empty.vhdx")
    with ModelComputeService() as service:
        with pytest.raises(InfrastructureError, match=r"Kernel panic .* No working init found"):
            boot(service, tmp_path / "empty.vhdx")
        assert service.enumerate() == []

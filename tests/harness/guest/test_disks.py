"""Disks and combined layers, asked for by a host and done on a played operating system."""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import errno
import threading
import time

import pytest

from harness.errors import GuestError
from harness.gcs.prot import (
    CombinedLayers,
    HResult,
    Layer,
    MappedVirtualDisk,
    Modification,
    ModifySettings,
    Request,
)
from tests.harness.guest.conftest import Guest

LAYER = MappedVirtualDisk(mount_path="/run/mounts/scsi/m0", lun=1, read_only=True, options=("ro",))
SCRATCH = MappedVirtualDisk(
    mount_path="/run/gcs/c/pod", lun=2, controller=3, ensure_filesystem=True, filesystem="ext4"
)
SCRATCH_DIR = "/run/gcs/c/pod/scratch/c1"
ROOT = CombinedLayers(
    container_id="c1",
    container_root_path="/run/gcs/c/c1/rootfs",
    layers=(Layer(path=LAYER.mount_path),),
    scratch_path=SCRATCH_DIR,
)


def refused(action: object, *arguments: object) -> GuestError:
    assert callable(action)
    with pytest.raises(GuestError) as info:
        action(*arguments)
    return info.value


def test_a_read_only_layer_is_mounted_without_replaying_its_journal(guest: Guest) -> None:
    guest.os.attach(0, 1)
    guest.client.mount_disk(LAYER)
    mount = guest.os.mounted()["/run/mounts/scsi/m0"]
    assert (mount.source, mount.fstype, mount.flags, mount.data) == (
        "/dev/sda",
        "ext4",
        1,
        "noload",
    )


def test_a_writable_disk_with_a_file_system_is_not_formatted(guest: Guest) -> None:
    guest.os.attach(3, 2)
    guest.client.mount_disk(SCRATCH)
    assert guest.os.mounted()["/run/gcs/c/pod"].flags == 0
    assert guest.os.commands == []


def test_an_empty_disk_is_formatted_only_when_a_file_system_is_ensured(guest: Guest) -> None:
    guest.os.attach(0, 1, formatted=False)
    guest.os.attach(3, 2, formatted=False)
    assert "no ext4" in str(refused(guest.client.mount_disk, LAYER))
    guest.client.mount_disk(SCRATCH)
    assert guest.os.commands == [["/sbin/mkfs.ext4", "-q", "-F", "/dev/sdb"]]


def test_a_disk_that_appears_late_is_waited_for(guest: Guest) -> None:
    timer = threading.Timer(0.2, guest.os.attach, (0, 1))
    timer.start()
    guest.client.mount_disk(LAYER)
    timer.join()
    assert guest.os.mounted()


def test_a_block_directory_that_is_still_empty_means_not_yet(guest: Guest) -> None:
    sysfs = guest.os.attach(0, 1)
    (sysfs / "block" / "sda").rename(sysfs / "sda")
    timer = threading.Timer(0.1, (sysfs / "sda").rename, (sysfs / "block" / "sda",))
    timer.start()
    guest.client.mount_disk(LAYER)
    timer.join()


@pytest.mark.parametrize("code", [errno.ENXIO, errno.ENOENT, errno.EBUSY])
def test_a_device_that_does_not_open_at_once_is_tried_again(guest: Guest, code: int) -> None:
    guest.os.attach(0, 1)
    guest.os.fail_mounts = [code, code]
    guest.client.mount_disk(LAYER)
    assert guest.os.mounted()


def test_a_failed_mount_leaves_nothing_and_can_be_repeated(guest: Guest) -> None:
    guest.os.attach(0, 1)
    guest.os.fail_mounts = [errno.EIO]
    assert "Input/output error" in str(refused(guest.client.mount_disk, LAYER))
    assert not guest.os.exists("/run/mounts/scsi/m0")
    guest.client.mount_disk(LAYER)


def test_a_mount_whose_propagation_fails_is_undone(guest: Guest) -> None:
    guest.os.attach(0, 1)
    guest.os.fail_mounts = [0, errno.EINVAL]
    disk = MappedVirtualDisk(mount_path="/run/mounts/p", lun=1, options=("rshared",))
    refused(guest.client.mount_disk, disk)
    assert not guest.os.mounts
    assert not guest.os.exists("/run/mounts/p")


def test_a_disk_that_cannot_be_read_is_an_error_and_not_formatted(guest: Guest) -> None:
    guest.os.attach(3, 2)
    guest.os.at("/dev/sda").unlink()
    guest.os.at("/dev/sda").mkdir()
    assert "directory" in str(refused(guest.client.mount_disk, SCRATCH))
    assert guest.os.commands == []


def test_on_hyperv_a_controller_is_found_by_its_vmbus_instance(guest: Guest) -> None:
    guest.os.attach(2, 5, host=0)
    guest.client.mount_disk(MappedVirtualDisk(mount_path="/run/mounts/x", controller=2, lun=5))
    guest.client.unmount_disk(MappedVirtualDisk(mount_path="/run/mounts/x", controller=2, lun=5))
    guest.client.eject_disk(controller=2, lun=5)
    assert not guest.os.exists("/sys/bus/scsi/devices/0:0:0:5")
    guest.client.eject_disk(controller=3, lun=0)


def test_a_partition_is_waited_for_and_used(guest: Guest) -> None:
    sysfs = guest.os.attach(0, 1)
    (sysfs / "block" / "sda" / "sda2").mkdir()
    guest.os.at("/dev/sda2").write_bytes(guest.os.at("/dev/sda").read_bytes())
    guest.client.mount_disk(MappedVirtualDisk(mount_path="/run/mounts/p", lun=1, partition=2))
    assert guest.os.mounted()["/run/mounts/p"].source == "/dev/sda2"


def test_a_block_device_is_a_link_that_goes_again(guest: Guest) -> None:
    guest.os.attach(0, 1)
    disk = MappedVirtualDisk(mount_path="/run/mounts/dev", lun=1, block_dev=True)
    guest.client.mount_disk(disk)
    assert guest.os.at("/run/mounts/dev").readlink().as_posix() == "/dev/sda"
    guest.client.unmount_disk(disk)
    assert not guest.os.exists("/run/mounts/dev")


def test_propagation_is_the_one_option_that_counts(guest: Guest) -> None:
    guest.os.attach(0, 1)
    guest.client.mount_disk(
        MappedVirtualDisk(mount_path="/run/mounts/p", lun=1, options=("rshared", "whatever"))
    )
    assert [mount.flags for mount in guest.os.mounts] == [0, 1 << 20 | 16384]


@pytest.mark.parametrize(
    "disk",
    [
        MappedVirtualDisk(mount_path="relative", lun=1),
        MappedVirtualDisk(mount_path="/run/x", lun=1, ensure_filesystem=True, filesystem="btrfs"),
    ],
)
def test_what_is_not_supported_is_refused(guest: Guest, disk: MappedVirtualDisk) -> None:
    guest.os.attach(0, 1)
    refused(guest.client.mount_disk, disk)
    assert not guest.os.mounts


def test_unmounting_removes_every_mount_of_the_path_and_can_be_repeated(guest: Guest) -> None:
    guest.os.attach(0, 1)
    guest.client.mount_disk(LAYER)
    guest.os.mount("/dev/sda", LAYER.mount_path, "ext4", 0, "")
    for _ in range(2):
        guest.client.unmount_disk(LAYER)
    assert not guest.os.mounts
    assert not guest.os.exists(LAYER.mount_path)


def test_a_path_whose_unmount_failed_keeps_its_files(guest: Guest) -> None:
    guest.os.attach(3, 2)
    guest.client.mount_disk(SCRATCH)
    precious = guest.os.at("/run/gcs/c/pod/precious")
    precious.touch()
    guest.os.busy.add("/run/gcs/c/pod")
    assert refused(guest.client.unmount_disk, SCRATCH).hresult == HResult.INVALID_STATE
    assert precious.exists()
    guest.os.busy.clear()
    guest.client.unmount_disk(SCRATCH)
    assert not guest.os.mounts


def test_a_disk_is_ejected_once_it_is_unmounted_and_gone_is_fine(guest: Guest) -> None:
    guest.os.attach(0, 1)
    guest.client.mount_disk(LAYER)
    assert "still mounted at /run/mounts" in str(
        refused(lambda: guest.client.eject_disk(controller=0, lun=1))
    )
    guest.client.unmount_disk(LAYER)
    for _ in range(2):
        guest.client.eject_disk(controller=0, lun=1)


def test_disks_that_leave_together_are_let_go_but_for_those_in_use(guest: Guest) -> None:
    for lun in range(1, 7):
        guest.os.attach(0, lun)
    guest.client.negotiate()
    guest.client.mount_disk(LAYER)
    slots = [(0, lun) for lun in range(1, 8)]
    kept = guest.client.eject_disks(slots)
    assert list(kept) == [(0, 1)]
    assert "still mounted at /run/mounts" in str(kept[0, 1])
    assert kept[0, 1].hresult == HResult.INVALID_STATE
    assert guest.os.exists("/sys/bus/scsi/devices/0:0:0:1")
    guest.client.unmount_disk(LAYER)
    assert guest.client.eject_disks(slots) == {}
    for controller, lun in slots:
        guest.client.eject_disk(controller=controller, lun=lun)
        assert not guest.os.exists(f"/sys/bus/scsi/devices/0:0:0:{lun}")


def test_disks_that_leave_together_take_no_more_io_when_that_is_answered(guest: Guest) -> None:
    states = [guest.os.attach(0, lun) / "state" for lun in (1, 2)]
    guest.os.hold_deletes = threading.Event()
    guest.client.negotiate()
    assert guest.client.eject_disks([(0, 1), (0, 2), (0, 3)]) == {}
    assert [state.read_text() for state in states] == ["offline\n"] * 2
    guest.os.hold_deletes.set()
    guest.client.eject_disk(controller=0, lun=1)
    assert not guest.os.exists("/sys/bus/scsi/devices/0:0:0:1")


def test_a_process_in_the_machine_sees_no_disk_that_was_let_go(guest: Guest) -> None:
    guest.os.attach(0, 1)
    guest.os.hold_deletes = threading.Event()
    guest.client.negotiate()
    guest.client.eject_disks([(0, 1)])
    seen: list[bool] = []

    def start() -> None:
        guest.client.execute_process(None, args=["true"])
        seen.append(guest.os.exists("/sys/bus/scsi/devices/0:0:0:1"))

    starting = threading.Thread(target=start)
    starting.start()
    starting.join(0.05)  # a start that did not wait is done by now, or nearly
    guest.os.hold_deletes.set()
    starting.join(10)
    assert seen == [False]


def test_a_disk_that_cannot_be_taken_offline_is_kept(guest: Guest) -> None:
    (guest.os.attach(0, 1) / "state").mkdir()  # cannot be written
    guest.client.negotiate()
    assert list(guest.client.eject_disks([(0, 1)])) == [(0, 1)]
    assert guest.os.exists("/sys/bus/scsi/devices/0:0:0:1")


def test_the_next_disk_in_a_slot_is_not_taken_for_the_one_that_leaves(guest: Guest) -> None:
    guest.os.attach(0, 1)
    guest.os.hold_deletes = threading.Event()
    guest.client.negotiate()
    guest.client.eject_disks([(0, 1)])
    mounting = threading.Thread(target=guest.client.mount_disk, args=(LAYER,))
    mounting.start()
    mounting.join(0.05)  # a mount that did not wait is done by now, or nearly
    guest.os.hold_deletes.set()
    deadline = time.monotonic() + 30
    while guest.os.exists("/sys/bus/scsi/devices/0:0:0:1"):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    guest.os.attach(0, 1)
    mounting.join(10)
    assert guest.os.mounted()[LAYER.mount_path].source == "/dev/sdb"


def test_a_path_is_taken_once(guest: Guest) -> None:
    guest.os.attach(0, 1)
    guest.client.mount_disk(LAYER)
    error = refused(guest.client.mount_disk, LAYER)
    assert error.hresult == HResult.SYSTEM_ALREADY_EXISTS
    assert len(guest.os.mounts) == 1


def with_disks(guest: Guest) -> None:
    guest.os.attach(0, 1)
    guest.os.attach(3, 2)
    guest.client.mount_disk(LAYER)
    guest.client.mount_disk(SCRATCH)


def test_combined_layers_keep_their_changes_on_the_scratch(guest: Guest) -> None:
    with_disks(guest)
    guest.client.add_combined_layers(ROOT)
    mount = guest.os.mounted()["/run/gcs/c/c1/rootfs"]
    assert mount.data == f"/run/mounts/scsi/m0|{SCRATCH_DIR}/upper|{SCRATCH_DIR}/work"
    assert guest.os.exists(f"{SCRATCH_DIR}/upper")
    for _ in range(2):
        guest.client.remove_combined_layers(ROOT)
    assert not guest.os.exists("/run/gcs/c/c1/rootfs")
    assert guest.os.exists(f"{SCRATCH_DIR}/upper")


def test_the_first_layer_is_topmost(guest: Guest) -> None:
    for name in "abc":
        guest.os.make_dirs(f"/run/mounts/{name}", 0o700)
    layers = tuple(Layer(path=f"/run/mounts/{name}") for name in "cab")
    guest.client.add_combined_layers(CombinedLayers(container_root_path="/run/r", layers=layers))
    assert guest.os.mounts[-1].data == "/run/mounts/c:/run/mounts/a:/run/mounts/b|None|None"


def test_one_layer_without_a_scratch_is_a_read_only_bind(guest: Guest) -> None:
    guest.os.make_dirs("/run/mounts/a", 0o700)
    guest.client.add_combined_layers(
        CombinedLayers(container_root_path="/run/r", layers=(Layer(path="/run/mounts/a"),))
    )
    assert [mount.flags for mount in guest.os.mounts] == [4096, 4096 | 32 | 1]


def test_a_bind_that_cannot_be_made_read_only_is_undone(guest: Guest) -> None:
    guest.os.make_dirs("/run/mounts/a", 0o700)
    guest.os.fail_mounts = [0, errno.EPERM]
    one = CombinedLayers(container_root_path="/run/r", layers=(Layer(path="/run/mounts/a"),))
    refused(guest.client.add_combined_layers, one)
    assert not guest.os.mounts
    assert not guest.os.exists("/run/r")


def test_a_disk_below_an_overlay_is_not_unmounted(guest: Guest) -> None:
    with_disks(guest)
    guest.client.add_combined_layers(ROOT)
    for disk in (LAYER, SCRATCH):
        error = refused(guest.client.unmount_disk, disk)
        assert error.hresult == HResult.INVALID_STATE
        assert "/run/gcs/c/c1/rootfs" in str(error)
    guest.client.remove_combined_layers(ROOT)
    guest.client.unmount_disk(LAYER)
    guest.client.unmount_disk(SCRATCH)
    assert not guest.os.mounts


def test_a_failed_overlay_leaves_nothing_and_holds_nothing(guest: Guest) -> None:
    with_disks(guest)
    guest.os.fail_mounts = [errno.EINVAL]
    refused(guest.client.add_combined_layers, ROOT)
    assert not guest.os.exists("/run/gcs/c/c1/rootfs")
    guest.client.unmount_disk(LAYER)


def test_a_layer_that_is_not_there_is_named(guest: Guest) -> None:
    error = refused(guest.client.add_combined_layers, ROOT)
    assert error.hresult == HResult.NOT_FOUND
    assert LAYER.mount_path in str(error)


def test_modifications_of_unknown_resources_are_refused(guest: Guest) -> None:
    change = Modification(request_type="Add", resource_type="MappedDirectory")
    message = ModifySettings(request=change)
    error = refused(lambda: guest.client.bridge.call(Request.MODIFY_SETTINGS, message))
    assert error.hresult == HResult.NOT_IMPLEMENTED


def test_many_disks_are_mounted_at_once(guest: Guest) -> None:
    disks = [
        MappedVirtualDisk(mount_path=f"/run/mounts/scsi/m{n}", controller=n % 4, lun=n)
        for n in range(16)
    ]
    for disk in disks:
        guest.os.attach(disk.controller, disk.lun)
    threads = [threading.Thread(target=guest.client.mount_disk, args=(disk,)) for disk in disks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert set(guest.os.mounted()) == {disk.mount_path for disk in disks}

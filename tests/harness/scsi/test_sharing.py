"""What shares a disk, a mount and a path: hcsshim's manager and controller tests, and more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import ComputeServiceError, DiskError, NoSlotError, UsageError
from harness.scsi import AttachmentState, MountConfig, MountState, ScsiManager, Slot
from tests.fakes.scsi_host import FakeScsiHost

MakeDisk = Callable[[str], Path]
PLAIN = MountConfig()


def test_one_disk_held_twice_is_one_attachment_until_both_are_released(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path
) -> None:
    first = manager.acquire(disk, holder="pod", mount=PLAIN)
    second = manager.acquire(disk, holder="c1", mount=PLAIN)
    assert (first.slot, first.guest_path) == (second.slot, second.guest_path)
    assert (vm.count("attach"), vm.count("mount")) == (1, 1)
    first.release()
    assert list(vm.mounts) == [second.guest_path]
    second.release()
    assert vm.empty
    assert [call[0] for call in vm.calls] == ["attach", "mount", "unmount", "eject", "detach"]


def test_a_disk_can_be_taken_again_after_its_last_release(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path
) -> None:
    for _ in range(3):
        with manager.acquire(disk, holder="c1", mount=PLAIN) as held:
            assert (held.slot, held.guest_path) == (Slot(0, 0), "/run/mounts/scsi/m0")
        assert vm.empty


def test_sharers_get_the_guest_path_that_is_there_to_the_last_release(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path
) -> None:
    held = [
        manager.acquire(disk, holder="a", mount=PLAIN, guest_path="/mnt1"),
        manager.acquire(disk, holder="b", mount=PLAIN),
        manager.acquire(disk, holder="c", mount=PLAIN, guest_path="/mnt2"),
    ]
    assert [each.guest_path for each in held] == ["/mnt1"] * 3
    for each in held:
        assert "/mnt1" in vm.mounts
        each.release()
    assert vm.empty


def test_another_disk_at_a_taken_guest_path_is_refused_with_the_holder_named(
    vm: FakeScsiHost, manager: ScsiManager, make_disk: MakeDisk
) -> None:
    manager.acquire(make_disk("a"), holder="container c1", mount=PLAIN, guest_path="/mnt")
    with pytest.raises(DiskError, match=r"/mnt: the path has .*held by container c1"):
        manager.acquire(make_disk("b"), holder="c2", mount=PLAIN, guest_path="//mnt/./x/..")
    assert len(vm.disks) == 1
    assert len(manager.snapshot().attachments) == 1


def test_default_guest_paths_are_reused_and_pass_over_taken_ones(
    manager: ScsiManager, make_disk: MakeDisk
) -> None:
    taken = manager.acquire(
        make_disk("x"), holder="x", mount=PLAIN, guest_path="/run/mounts/scsi/m1"
    )
    first = manager.acquire(make_disk("a"), holder="a", mount=PLAIN)
    second = manager.acquire(make_disk("b"), holder="b", mount=PLAIN)
    assert [first.guest_path, second.guest_path] == ["/run/mounts/scsi/m0", "/run/mounts/scsi/m2"]
    first.release()
    third = manager.acquire(make_disk("c"), holder="c", mount=PLAIN)
    assert third.guest_path == "/run/mounts/scsi/m0"
    taken.release()
    fourth = manager.acquire(make_disk("d"), holder="d", mount=PLAIN)
    assert fourth.guest_path == "/run/mounts/scsi/m1"


def test_every_spelling_of_a_file_meets_in_one_attachment(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(disk)
    (tmp_path / "hard").hardlink_to(disk)
    for path in (disk, tmp_path / "link", tmp_path / "hard"):
        manager.acquire(path, holder=path.name, mount=PLAIN)
    (attachment,) = manager.snapshot().attachments
    assert attachment.refcount == 3
    assert attachment.path == disk.resolve()
    assert vm.disks == {Slot(0, 0): (disk.resolve(), False)}


def test_read_write_of_a_disk_held_read_only_is_refused_with_the_holders_named(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path
) -> None:
    first = manager.acquire(disk, holder="container c1", read_only=True, mount=PLAIN)
    second = manager.acquire(disk, holder="container c2", read_only=True)
    with pytest.raises(DiskError, match=r"for c3 read-write.*held by container c1, container c2"):
        manager.acquire(disk, holder="c3")
    manager.release_all([first, second])
    with manager.acquire(disk, holder="c3") as held:
        assert not held.read_only
        with pytest.raises(DiskError, match=r"for c4 read-only.*held by c3"):
            manager.acquire(disk, holder="c4", read_only=True)
    assert vm.empty


def test_a_mount_of_a_read_only_disk_is_read_only(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path
) -> None:
    held = manager.acquire(disk, holder="a", read_only=True, mount=PLAIN)
    assert vm.mounts[held.guest_path][1].read_only
    shared = manager.acquire(disk, holder="b", read_only=True, mount=MountConfig(read_only=True))
    assert shared.guest_path == held.guest_path


def test_partitions_and_options_are_mounts_of_their_own_on_one_attachment(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path
) -> None:
    configs = [
        PLAIN,
        MountConfig(partition=1),
        MountConfig(partition=1, options=("rshared",)),
        MountConfig(block_device=True),
    ]
    held = [manager.acquire(disk, holder=str(config), mount=config) for config in configs]
    assert len({each.guest_path for each in held}) == 4
    assert len(vm.disks) == 1
    manager.release_all(held)
    assert vm.empty


def test_options_are_compared_regardless_of_order_and_case(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path
) -> None:
    manager.acquire(disk, holder="a", mount=MountConfig(options=("ro", "RShared")))
    manager.acquire(disk, holder="b", mount=MountConfig(options=("rshared", "ro", "ro")))
    assert vm.count("mount") == 1


def test_b6_an_unmount_is_sent_exactly_what_its_mount_was_sent(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path
) -> None:
    """(B) 6: `Encrypted` was not sent on the unmount, so the guest never closed LUKS."""
    config = MountConfig(
        partition=2, options=("X",), filesystem="ext4", ensure_filesystem=True, encrypted=True
    )
    manager.acquire(disk, holder="a", mount=config, guest_path="/mnt").release()
    mount, unmount = (call for call in vm.calls if call[0] in ("mount", "unmount"))
    assert mount[1:] == unmount[1:] == (Slot(0, 0), config, "/mnt")


def test_an_encrypted_partition_is_mounted_once_and_shared_never_twice(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path
) -> None:
    config = MountConfig(filesystem="xfs", encrypted=True)
    manager.acquire(disk, holder="pod", mount=config)
    manager.acquire(disk, holder="c1", mount=config)
    for other in (MountConfig(), MountConfig(options=("x",), filesystem="xfs", encrypted=True)):
        with pytest.raises(DiskError, match=r"would be changed.*held by pod, c1"):
            manager.acquire(disk, holder="c2", mount=other)
    assert vm.count("mount") == 1
    assert manager.snapshot().attachments[0].refcount == 2


def test_another_wish_about_the_file_system_of_a_mounted_partition_is_refused(
    manager: ScsiManager, disk: Path
) -> None:
    manager.acquire(disk, holder="a", mount=MountConfig(filesystem="ext4", ensure_filesystem=True))
    with pytest.raises(DiskError, match="ask for the same file system"):
        manager.acquire(
            disk, holder="b", mount=MountConfig(filesystem="xfs", ensure_filesystem=True)
        )


def test_a_disk_can_be_held_attached_only_and_mounted_at_once(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path
) -> None:
    attached = manager.acquire(disk, holder="a")
    mounted = manager.acquire(disk, holder="b", mount=PLAIN)
    assert attached.slot == mounted.slot
    with pytest.raises(UsageError, match="without a mount"):
        _ = attached.guest_path
    mounted.release()
    assert not vm.mounts
    assert len(vm.disks) == 1
    attached.release()
    assert vm.empty


def test_64_disks_each_held_twice_survive_the_first_release_and_go_with_the_second(
    vm: FakeScsiHost, make_disk: MakeDisk
) -> None:
    manager = ScsiManager(vm, vm, controllers=1)
    disks = [make_disk(f"{number}.vhdx") for number in range(64)]
    for _ in range(2):
        attached = [manager.acquire(disk, holder="first") for disk in disks]
        mounted = [manager.acquire(disk, holder="second", mount=PLAIN) for disk in disks]
        assert {each.refcount for each in manager.snapshot().attachments} == {2}
        manager.release_all(attached)
        assert {each.holders for each in manager.snapshot().attachments} == {("second",)}
        assert len(vm.disks) == 64
        manager.release_all(mounted)
        assert vm.empty
        assert manager.snapshot().attachments == ()


def test_the_257th_disk_is_refused_and_a_freed_slot_serves_it(
    vm: FakeScsiHost, manager: ScsiManager, make_disk: MakeDisk
) -> None:
    held = [manager.acquire(make_disk(f"{n}"), holder="pod p1") for n in range(256)]
    assert [each.slot for each in held] == [Slot(n // 64, n % 64) for n in range(256)]
    extra = make_disk("extra")
    with pytest.raises(NoSlotError, match=r"all 256 SCSI slots are taken.*held by pod p1"):
        manager.acquire(extra, holder="c1")
    held[100].release()
    assert manager.acquire(extra, holder="c1").slot == Slot(1, 36)


def test_the_root_file_systems_slot_is_never_handed_out(
    vm: FakeScsiHost, make_disk: MakeDisk
) -> None:
    manager = ScsiManager(vm, vm, controllers=1, reserved=[Slot(0, 0)])
    held = [manager.acquire(make_disk(f"{n}"), holder="c") for n in range(63)]
    assert held[0].slot == Slot(0, 1)
    with pytest.raises(NoSlotError, match="all 63 SCSI slots are taken"):
        manager.acquire(make_disk("extra"), holder="c")
    assert manager.snapshot().free_slots == 0


def test_without_controllers_there_is_no_slot(vm: FakeScsiHost, disk: Path) -> None:
    with pytest.raises(NoSlotError, match="held by nobody"):
        ScsiManager(vm, vm, controllers=0).acquire(disk, holder="c")


def test_a_second_release_is_a_no_op(vm: FakeScsiHost, manager: ScsiManager, disk: Path) -> None:
    first = manager.acquire(disk, holder="a", mount=PLAIN)
    manager.acquire(disk, holder="b", mount=PLAIN)
    first.release()
    first.release()
    assert first.released
    assert manager.holders(disk) == ("b",)
    assert len(vm.disks) == 1


def test_who_holds_a_disk_is_a_query(manager: ScsiManager, disk: Path, tmp_path: Path) -> None:
    assert manager.holders(disk) == ()
    pod = manager.acquire(disk, holder="pod p1", mount=PLAIN)
    container = manager.acquire(disk, holder="container c1")
    (tmp_path / "link").symlink_to(disk)
    assert manager.holders(tmp_path / "link") == ("pod p1", "container c1")
    pod.release()
    assert manager.holders(disk) == ("container c1",)
    container.release()
    assert manager.holders(disk) == ()


def test_the_disks_of_one_release_leave_in_one_detach(
    vm: FakeScsiHost, manager: ScsiManager, make_disk: MakeDisk
) -> None:
    disks = [make_disk(f"{n}") for n in range(16)]
    held = [manager.acquire(disk, holder="c1", mount=PLAIN) for disk in disks]
    kept = manager.acquire(disks[3], holder="c2", mount=PLAIN)
    manager.release_all([*held, held[0]])
    assert vm.count("detach") == 1
    assert vm.disks == {kept.slot: (disks[3].resolve(), False)}


def test_the_snapshot_tells_states_counts_and_holders(manager: ScsiManager, disk: Path) -> None:
    held = manager.acquire(disk, holder="a", mount=PLAIN)
    attachment = manager.snapshot().of(disk)
    assert attachment is not None
    assert (attachment.state, attachment.refcount, attachment.waiting) == (
        AttachmentState.ATTACHED,
        1,
        0,
    )
    (mount,) = attachment.mounts
    assert (mount.state, mount.guest_path, mount.holders) == (
        MountState.MOUNTED,
        held.guest_path,
        ("a",),
    )
    assert manager.snapshot().free_slots == 255


def test_wrong_arguments_are_usage_errors(manager: ScsiManager, disk: Path) -> None:
    with pytest.raises(UsageError, match="without a mount"):
        manager.acquire(disk, holder="a", guest_path="/mnt")
    with pytest.raises(UsageError, match="not absolute"):
        manager.acquire(disk, holder="a", mount=PLAIN, guest_path="mnt")
    with pytest.raises(UsageError, match="partitions start at 1"):
        MountConfig(partition=-1)
    with pytest.raises(UsageError, match="needs the name"):
        MountConfig(ensure_filesystem=True)


def test_the_context_manager_releases_also_after_an_error(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path
) -> None:
    with pytest.raises(ComputeServiceError), manager.acquire(disk, holder="a", mount=PLAIN):
        raise ComputeServiceError("the body failed")
    assert vm.empty

"""Failures of host and guest: each defect of hcsshim's Manager (B) and Controller (C) by name.

`test_b1` to `test_b6` and `test_c1` to `test_c4` are those of the facts sheet; 1 of (B) and 2 of
(C) are in `test_concurrency`, 6 of (B) in `test_sharing`, 4 of (C), which is the layer above, in
`tests/harness/test_containers.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import (
    BridgeClosedError,
    ComputeServiceError,
    ComputeTimeoutError,
    DiskError,
    GuestError,
)
from harness.scsi import AttachmentState, MountConfig, MountState, ScsiManager, Slot
from tests.fakes.scsi_host import FakeScsiHost

MakeDisk = Callable[[str], Path]
PLAIN = MountConfig()
REFUSED = ComputeServiceError("sharing violation", hresult=0x80070020)
SILENCE = ComputeTimeoutError("no answer in 30 s")
GUEST = GuestError("I/O error", hresult=0x80004005, request="ModifySettings")
BROKEN = BridgeClosedError("the bridge is closed")


def test_a_refused_attach_keeps_nothing_and_can_be_asked_again(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path
) -> None:
    vm.fail("attach", REFUSED)
    with pytest.raises(DiskError, match=r"sandbox\.vhdx.*asked for by c1.*sharing violation"):
        manager.acquire(disk, holder="c1", mount=PLAIN)
    assert vm.count("attached") == 0, "a refusal leaves nothing to ask"
    assert manager.snapshot().attachments == ()
    assert manager.acquire(disk, holder="c1", mount=PLAIN).slot == Slot(0, 0)


@pytest.mark.parametrize(
    ("error", "happens"),
    [(GUEST, False), (BROKEN, False), (BROKEN, True), (SILENCE, False), (SILENCE, True)],
)
def test_c1_a_failed_mount_gives_the_disk_back(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path, error: Exception, happens: bool
) -> None:
    """(C) 1: after a failed guest mount every unmap failed for ever."""
    vm.fail("mount", error, happens=happens)
    with pytest.raises(DiskError, match="cannot mount"):
        manager.acquire(disk, holder="c1", mount=PLAIN)
    assert vm.empty
    assert manager.snapshot().attachments == ()


@pytest.mark.parametrize("error", [GUEST, BROKEN])
def test_c1_a_failed_mount_leaves_the_disk_to_who_has_it_already(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path, error: Exception
) -> None:
    attached = manager.acquire(disk, holder="first")
    vm.fail("mount", error)
    with pytest.raises(DiskError, match="cannot mount"):
        manager.acquire(disk, holder="second", mount=PLAIN)
    assert manager.holders(disk) == ("first",)
    again = manager.acquire(disk, holder="second", mount=PLAIN)
    attached.release()
    again.release()
    assert vm.empty


@pytest.mark.parametrize("operation", ["attach", "mount"])
def test_c3_a_reservation_that_came_to_nothing_keeps_no_mount_and_no_path(
    vm: FakeScsiHost, manager: ScsiManager, make_disk: MakeDisk, operation: str
) -> None:
    """(C) 3: releasing what was only reserved never dropped the mount's entry."""
    failing, other = make_disk("a.vhdx"), make_disk("b.vhdx")
    vm.fail(operation, REFUSED if operation == "attach" else GUEST)
    with pytest.raises(DiskError):
        manager.acquire(failing, holder="c1", mount=PLAIN, guest_path="/mnt")
    assert manager.snapshot().mounts == ()
    with manager.acquire(other, holder="c2", mount=PLAIN, guest_path="/mnt") as held:
        assert held.guest_path == "/mnt"
    with manager.acquire(failing, holder="c3", mount=MountConfig(read_only=True)) as held:
        assert held.guest_path == "/run/mounts/scsi/m0", "no number of a path was lost"


def test_b5_a_silent_attach_that_happened_is_a_success(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path
) -> None:
    """(B) 5: an attach of unknown outcome freed the slot though the disk may be attached."""
    vm.fail("attach", SILENCE, happens=True)
    held = manager.acquire(disk, holder="c1", mount=PLAIN)
    assert vm.count("attached") == 1
    held.release()
    assert vm.empty


def test_b5_a_silent_attach_that_did_not_happen_is_a_failure(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path
) -> None:
    vm.fail("attach", SILENCE)
    with pytest.raises(DiskError, match="no answer in 30 s"):
        manager.acquire(disk, holder="c1", mount=PLAIN)
    assert manager.snapshot().attachments == ()


@pytest.mark.parametrize("happens", [False, True])
def test_b5_a_slot_in_doubt_is_not_reused_before_the_host_has_answered(
    vm: FakeScsiHost, manager: ScsiManager, make_disk: MakeDisk, happens: bool
) -> None:
    disk, other = make_disk("a"), make_disk("b")
    vm.fail("attach", SILENCE, happens=happens)
    for _ in range(2):  # once after the attach, once on the way back
        vm.fail("attached", SILENCE)
    with pytest.raises(DiskError, match="nor ask the host"):
        manager.acquire(disk, holder="c1")
    assert [each.state for each in manager.snapshot().attachments] == [AttachmentState.ATTACHING]
    assert manager.acquire(other, holder="c2").slot == Slot(0, 1)
    held = manager.acquire(disk, holder="c3")
    assert held.slot == Slot(0, 0)
    assert manager.holders(disk) == ("c3",)
    held.release()
    assert list(vm.disks) == [Slot(0, 1)]


@pytest.mark.parametrize("error", [GUEST, BROKEN])
def test_b2_a_failed_unmount_can_be_retried_and_holds_the_disk_until_then(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path, error: Exception
) -> None:
    """(B) 2: after a failed unmount the detach was skipped and no retry possible: slot leaked."""
    held = manager.acquire(disk, holder="c1", mount=PLAIN)
    vm.fail("unmount", error)
    with pytest.raises(DiskError, match=r"cannot unmount .*held by c1"):
        held.release()
    assert not held.released
    assert manager.holders(disk) == ("c1",)
    assert len(vm.disks) == 1
    held.release()
    assert vm.empty


@pytest.mark.parametrize("operation", ["eject", "detach"])
def test_b3_a_failed_eject_or_detach_can_be_retried_from_where_it_stopped(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path, operation: str
) -> None:
    held = manager.acquire(disk, holder="c1", mount=PLAIN)
    vm.fail(operation, GUEST if operation == "eject" else REFUSED)
    with pytest.raises(DiskError, match=r"cannot detach .*held by c1"):
        held.release()
    assert manager.holders(disk) == ("c1",)
    held.release()
    assert vm.empty
    assert vm.count("unmount") == 1
    assert vm.count("eject") == (2 if operation == "eject" else 1)


@pytest.mark.parametrize("operation", ["unmount", "eject", "detach"])
def test_b3_a_sharer_after_a_failed_release_starts_afresh_and_nothing_underflows(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path, operation: str
) -> None:
    """(B) 3: a new sharer joined the half-detached disk with count 0, a release underflowed."""
    first = manager.acquire(disk, holder="c1", mount=PLAIN)
    vm.fail(operation, REFUSED if operation == "detach" else GUEST)
    with pytest.raises(DiskError):
        first.release()
    second = manager.acquire(disk, holder="c2", mount=PLAIN)
    assert "c2" in manager.holders(disk)
    assert first.released == (operation != "unmount"), "its disk left, if not by its own doing"
    assert second.guest_path in vm.mounts
    first.release()
    assert manager.holders(disk) == ("c2",)
    assert second.guest_path in vm.mounts
    second.release()
    assert vm.empty
    assert manager.snapshot().attachments == ()


def test_b3_a_sharer_is_refused_while_the_old_disk_still_cannot_leave(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path
) -> None:
    first = manager.acquire(disk, holder="c1")
    vm.fail("detach", REFUSED)
    vm.fail("detach", REFUSED)
    with pytest.raises(DiskError):
        first.release()
    with pytest.raises(DiskError, match="held by c1"):
        manager.acquire(disk, holder="c2")
    assert manager.holders(disk) == ("c1",)
    first.release()
    assert vm.empty


def test_b4_the_mount_that_is_released_is_the_one_that_is_unmounted(
    vm: FakeScsiHost, manager: ScsiManager, make_disk: MakeDisk
) -> None:
    """(B) 4: an unmount that matched nothing decremented the last mount of the list."""
    held = [manager.acquire(make_disk(f"{n}"), holder=f"c{n}", mount=PLAIN) for n in range(4)]
    for index in (1, 3, 0, 2):
        path = held[index].guest_path
        held[index].release()
        assert path not in vm.mounts
        held[index].release()
    assert vm.empty


def test_a_disk_that_the_guest_discovers_too_late_is_forgotten_after_all(
    vm: FakeScsiHost, manager: ScsiManager, make_disk: MakeDisk
) -> None:
    vm.discovers_late = True
    shares = [manager.acquire(make_disk(f"{n}.vhdx"), holder="c1") for n in range(3)]
    manager.release_all(shares)
    assert vm.empty
    assert vm.violations == []


@pytest.mark.parametrize("happens", [False, True])
def test_a_silent_detach_is_settled_by_asking(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path, happens: bool
) -> None:
    held = manager.acquire(disk, holder="c1", mount=MountConfig())
    vm.fail("detach", SILENCE, happens=happens)
    if happens:
        held.release()
    else:
        with pytest.raises(DiskError, match="no answer"):
            held.release()
        held.release()
    assert held.released
    assert vm.empty
    assert vm.count("eject") == 1


def test_a_silent_detach_nobody_can_tell_about_keeps_its_slot(
    vm: FakeScsiHost, manager: ScsiManager, make_disk: MakeDisk
) -> None:
    held = manager.acquire(make_disk("a"), holder="c1")
    vm.fail("detach", SILENCE, happens=True)
    vm.fail("attached", SILENCE)
    with pytest.raises(DiskError):
        held.release()
    assert manager.snapshot().attachments[0].state is AttachmentState.DETACHING
    assert manager.acquire(make_disk("b"), holder="c2").slot == Slot(0, 1)
    held.release()
    assert vm.count("detach") == 1, "the host said that it was gone"
    assert manager.acquire(make_disk("c"), holder="c3").slot == Slot(0, 0)


def test_a_batch_that_stops_half_way_releases_exactly_what_is_gone(
    vm: FakeScsiHost, manager: ScsiManager, make_disk: MakeDisk
) -> None:
    held = [manager.acquire(make_disk(f"{n}"), holder=f"c{n}", mount=PLAIN) for n in range(4)]
    vm.fail("detach", REFUSED, happens=True)  # the fake takes half of them out
    with pytest.raises(DiskError, match="2 disks failed"):
        manager.release_all(held)
    assert [each.released for each in held] == [True, True, False, False]
    manager.release_all(held)
    assert vm.empty
    assert vm.count("eject") == 4


def test_a_share_named_twice_in_a_batch_is_tried_once(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path
) -> None:
    held = manager.acquire(disk, holder="c1")
    vm.fail("detach", REFUSED)
    with pytest.raises(DiskError, match="sharing violation"):
        manager.release_all([held, held])
    manager.release_all([held, held])
    assert vm.empty


def test_one_failure_in_a_batch_does_not_keep_the_others(
    vm: FakeScsiHost, manager: ScsiManager, make_disk: MakeDisk
) -> None:
    held = [manager.acquire(make_disk(f"{n}"), holder=f"c{n}", mount=PLAIN) for n in range(3)]
    vm.fail("unmount", GUEST)
    vm.fail("eject", GUEST)
    with pytest.raises(DiskError, match="2 disks failed, this may be repeated"):
        manager.release_all(held)
    assert [each.released for each in held] == [False, False, True]
    manager.release_all(held)
    assert vm.empty


@pytest.mark.parametrize("operation", ["eject", "detach"])
def test_a_mount_and_its_way_back_that_fail_are_finished_by_the_next_acquire(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path, operation: str
) -> None:
    vm.fail("mount", GUEST)
    vm.fail(operation, GUEST if operation == "eject" else REFUSED)
    with pytest.raises(DiskError, match="I/O error") as caught:
        manager.acquire(disk, holder="c1", mount=PLAIN)
    assert any("on the way back" in note for note in caught.value.__notes__)
    assert manager.holders(disk) == ()
    with manager.acquire(disk, holder="c2", mount=PLAIN):
        assert manager.holders(disk) == ("c2",)
    assert vm.empty


def test_a_mount_in_doubt_whose_unmount_failed_is_unmounted_before_the_disk_leaves(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path
) -> None:
    attached = manager.acquire(disk, holder="c1")
    vm.fail("mount", BROKEN, happens=True)
    vm.fail("unmount", GUEST)
    with pytest.raises(DiskError):
        manager.acquire(disk, holder="c2", mount=PLAIN)
    (mount,) = manager.snapshot().mounts
    assert (mount.state, mount.holders) == (MountState.UNMOUNTING, ())
    attached.release()
    assert vm.empty


@pytest.mark.parametrize("request_it", [True, False])
def test_leftovers_are_reclaimed_on_request_and_when_slots_run_out(
    vm: FakeScsiHost, make_disk: MakeDisk, *, request_it: bool
) -> None:
    manager = ScsiManager(vm, vm, controllers=1, reserved=[Slot(0, lun) for lun in range(62)])
    for name in ("a", "b"):
        vm.fail("mount", GUEST)
        vm.fail("eject", GUEST)
        with pytest.raises(DiskError):
            manager.acquire(make_disk(name), holder="c", mount=PLAIN)
    assert manager.snapshot().free_slots == 0
    if request_it:
        manager.reclaim()
        assert vm.empty
    else:
        manager.acquire(make_disk("c"), holder="c").release()
    assert manager.snapshot().free_slots == 2


def test_a_slot_is_used_again_only_when_the_guest_has_forgotten_its_disk(
    vm: FakeScsiHost, manager: ScsiManager, make_disk: MakeDisk
) -> None:
    held = [manager.acquire(make_disk(f"{n}"), holder="c", mount=PLAIN) for n in range(3)]
    manager.release_all(held)
    assert vm.forgetting == {Slot(0, 0), Slot(0, 1), Slot(0, 2)}
    vm.calls.clear()
    manager.acquire(make_disk("next"), holder="c", mount=PLAIN)
    assert [call[0] for call in vm.calls] == ["eject", "attach", "mount"]
    assert vm.forgetting == {Slot(0, 1), Slot(0, 2)}
    assert vm.violations == []


def test_a_disk_is_not_attached_where_the_guest_does_not_forget_another(
    vm: FakeScsiHost, manager: ScsiManager, make_disk: MakeDisk
) -> None:
    manager.release_all([manager.acquire(make_disk(n), holder="c", mount=PLAIN) for n in "ab"])
    vm.calls.clear()
    for error in (GUEST, SILENCE):
        vm.fail("eject", error)
        with pytest.raises(DiskError, match="the guest does not forget the disk"):
            manager.acquire(make_disk("next"), holder="c")
        assert vm.count("attach") == 0
        assert manager.snapshot().attachments == ()
    with manager.acquire(make_disk("next"), holder="c") as share:
        assert share.slot == Slot(0, 0)


def test_reclaim_names_what_still_cannot_leave(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path
) -> None:
    vm.fail("mount", GUEST)
    for _ in range(2):
        vm.fail("detach", REFUSED)
    with pytest.raises(DiskError):
        manager.acquire(disk, holder="c", mount=PLAIN)
    with pytest.raises(DiskError, match=r"sandbox\.vhdx.*held by nobody.*sharing violation"):
        manager.reclaim()
    manager.reclaim()
    assert vm.empty


def test_a_leftover_in_the_other_mode_is_detached_first(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path
) -> None:
    vm.fail("attach", KeyboardInterrupt(), happens=True)
    for _ in range(2):
        vm.fail("attached", SILENCE)
    with pytest.raises(KeyboardInterrupt):
        manager.acquire(disk, holder="c1")
    with manager.acquire(disk, holder="c2", read_only=True) as held:
        assert vm.disks[held.slot][1]
    assert vm.empty


@pytest.mark.parametrize("operation", ["attach", "mount"])
@pytest.mark.parametrize("happens", [False, True])
def test_an_interrupt_in_an_acquire_keeps_nothing(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path, operation: str, happens: bool
) -> None:
    vm.fail(operation, KeyboardInterrupt(), happens=happens)
    with pytest.raises(KeyboardInterrupt):
        manager.acquire(disk, holder="c1", mount=PLAIN)
    assert vm.empty
    assert manager.snapshot().attachments == ()


@pytest.mark.parametrize("operation", ["unmount", "eject", "detach"])
@pytest.mark.parametrize("happens", [False, True])
def test_an_interrupted_release_can_be_repeated(
    vm: FakeScsiHost, manager: ScsiManager, make_disk: MakeDisk, operation: str, happens: bool
) -> None:
    held = [manager.acquire(make_disk(f"{n}"), holder="c", mount=PLAIN) for n in range(3)]
    vm.fail(operation, KeyboardInterrupt(), happens=happens)
    with pytest.raises(KeyboardInterrupt):
        manager.release_all(held)
    manager.release_all(held)
    assert vm.empty
    assert manager.snapshot().attachments == ()


def test_a_bug_in_an_adapter_is_not_dressed_up_as_a_disk_error(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path
) -> None:
    vm.fail("attach", TypeError("a bug"))
    with pytest.raises(TypeError):
        manager.acquire(disk, holder="c1")
    assert manager.snapshot().attachments == ()


@pytest.mark.parametrize("operation", ["attach", "mount", "attached"])
@pytest.mark.parametrize("happens", [False, True])
def test_a_vm_that_dies_in_an_acquire_ends_everything(
    vm: FakeScsiHost, manager: ScsiManager, make_disk: MakeDisk, operation: str, happens: bool
) -> None:
    held = manager.acquire(make_disk("a"), holder="c1", mount=PLAIN)
    if operation == "attached":
        vm.fail("attach", SILENCE)
    vm.die_in(operation, happens=happens)
    disk = make_disk("b")
    with pytest.raises(DiskError, match="the utility VM is gone"):
        manager.acquire(disk, holder="c2", mount=PLAIN)
    assert manager.snapshot().attachments == ()
    assert held.released
    held.release()
    with pytest.raises(DiskError, match="start a new one"):
        manager.acquire(disk, holder="c3")


@pytest.mark.parametrize("operation", ["unmount", "eject", "detach"])
def test_a_vm_that_dies_in_a_release_makes_it_a_success(
    vm: FakeScsiHost, manager: ScsiManager, make_disk: MakeDisk, operation: str
) -> None:
    held = [manager.acquire(make_disk(f"{n}"), holder="c", mount=PLAIN) for n in range(3)]
    vm.die_in(operation)
    manager.release_all(held[:2])
    assert all(each.released for each in held)
    assert manager.snapshot().attachments == ()


def test_a_closed_bridge_fails_the_release_until_the_vm_is_abandoned(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path
) -> None:
    held = manager.acquire(disk, holder="c1", mount=PLAIN)
    vm.fail("unmount", BROKEN)
    with pytest.raises(DiskError):
        held.release()
    manager.abandon("it was terminated")
    manager.abandon()
    assert held.released
    held.release()
    assert manager.snapshot().free_slots == 256
    with pytest.raises(DiskError, match=r"gone \(it was terminated\)"):
        manager.acquire(disk, holder="c2")
    vm.die()

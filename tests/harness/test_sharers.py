"""Containers of one pod that are started and released at the same time, on the model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.containers import Container, ContainerConfig
from harness.errors import GuestError
from harness.lab import Lab, LabConfig
from harness.sharers import release_sharers, start_sharers
from harness.uvm import UtilityVm
from snapshotter import Mount
from snapshotter.labels import OWNER_KEY, REUSE_SCRATCH

INIT = ContainerConfig(args=("/bin/sleep", "60"))
SHARERS = ("a", "b", "c")


@pytest.fixture(name="lab")
def fixture_lab() -> Iterator[Lab]:
    with Lab.open(LabConfig(backend="model")) as lab:
        yield lab


def prepare(lab: Lab) -> dict[str, list[Mount]]:
    top = lab.demo_image().top
    labels = {REUSE_SCRATCH: "true", OWNER_KEY: "pod"}
    return {"pod": lab.snapshotter.prepare("pod", top)} | {
        name: lab.snapshotter.prepare(name, top, labels=labels) for name in SHARERS
    }


def attached(vm: UtilityVm) -> dict[str, int]:
    """Return how many hold each attached disk."""
    return {str(each.path): len(each.holders) for each in vm.scsi.snapshot().attachments}


def test_sharers_hold_the_disks_of_the_pod_and_give_them_back(lab: Lab) -> None:
    mounts = prepare(lab)
    with lab.boot_uvm() as vm:
        owner = Container.start(vm, "pod", mounts=mounts.pop("pod"), config=INIT)
        alone = attached(vm)
        sharers = start_sharers(vm, mounts, config=INIT, pod_id="pod")
        assert tuple(sharers) == SHARERS
        assert attached(vm) == {path: 4 * count for path, count in alone.items()}
        directories = {each.scratch_directory for each in sharers.values()}
        assert len(directories) == 3
        release_sharers(list(sharers.values()))
        assert attached(vm) == alone
        owner.release()
        assert attached(vm) == {}


def test_sharers_need_no_owner_that_came_before(lab: Lab) -> None:
    mounts = prepare(lab)
    with lab.boot_uvm() as vm:
        together = start_sharers(vm, mounts, config=INIT, pod_id="pod")
        assert set(attached(vm).values()) == {4}
        release_sharers(list(together.values()))
        assert attached(vm) == {}


def test_if_one_does_not_start_none_is_left() -> None:
    config = LabConfig(backend="model", faults={"guest.create": "2*ok->1*error(0x80004005)"})
    with Lab.open(config) as lab:
        mounts = prepare(lab)
        with lab.boot_uvm() as vm:
            with pytest.raises(GuestError, match="on purpose"):
                start_sharers(vm, mounts, config=INIT, pod_id="pod")
            assert attached(vm) == {}


def test_a_release_that_failed_can_be_repeated_and_holds_up_no_other() -> None:
    faults = {"guest.delete-container-state": "1*error(0x80004005)"}
    with Lab.open(LabConfig(backend="model", faults=faults)) as lab:
        mounts = prepare(lab)
        with lab.boot_uvm() as vm:
            together = list(start_sharers(vm, mounts, config=INIT, pod_id="pod").values())
            with pytest.raises(GuestError, match="on purpose"):
                release_sharers(together)
            release_sharers(together)
            assert attached(vm) == {}


BUSY = "1*error(0x80004005)"


def test_a_start_whose_way_back_fails_too_is_finished_by_the_next_one() -> None:
    faults = {"guest.create": BUSY, "guest.remove-combined-layers": BUSY}
    with Lab.open(LabConfig(backend="model", faults=faults)) as lab:
        mounts = prepare(lab)
        with lab.boot_uvm() as vm:
            with pytest.raises(GuestError, match=r"guest\.create") as failed:
                Container.start(vm, "pod", mounts=mounts["pod"], config=INIT)
            assert any("on the way back" in note for note in failed.value.__notes__)
            assert set(attached(vm).values()) == {1}, "its root is still mounted on them"
            again = Container.start(vm, "pod", mounts=mounts["pod"], config=INIT)
            assert set(attached(vm).values()) == {1}
            again.release()
            assert attached(vm) == {}


def test_what_a_failed_way_back_left_is_finished_on_request() -> None:
    faults = {"guest.create": BUSY, "guest.remove-combined-layers": f"{BUSY}->{BUSY}"}
    with Lab.open(LabConfig(backend="model", faults=faults)) as lab:
        mounts = prepare(lab)
        with lab.boot_uvm() as vm:
            with pytest.raises(GuestError):
                Container.start(vm, "pod", mounts=mounts["pod"], config=INIT)
            with pytest.raises(GuestError, match="remove-combined-layers"):
                vm.reclaim()
            assert attached(vm) != {}
            vm.reclaim()
            assert attached(vm) == {}
            vm.reclaim()


def test_sharers_whose_way_back_fails_are_finished_on_request() -> None:
    faults = {"guest.create": f"2*ok->{BUSY}", "guest.delete-container-state": BUSY}
    with Lab.open(LabConfig(backend="model", faults=faults)) as lab:
        mounts = prepare(lab)
        with lab.boot_uvm() as vm:
            with pytest.raises(GuestError, match=r"guest\.create"):
                start_sharers(vm, mounts, config=INIT, pod_id="pod")
            vm.reclaim()
            assert attached(vm) == {}
            with Container.start(vm, "pod", mounts=mounts["pod"], config=INIT) as pod:
                assert pod.run(["/bin/ls", "/"]).exit_code == 0


def test_what_ran_in_a_machine_that_is_gone_counts_as_released(lab: Lab) -> None:
    mounts = prepare(lab)
    with lab.boot_uvm() as vm:
        held = Container.start(vm, "pod", mounts=mounts["pod"], config=INIT)
        vm.kill()
        held.release()
        held.release()
        assert (held.rootfs, held.scratch, held.scratch_directory) == ("", None, "")

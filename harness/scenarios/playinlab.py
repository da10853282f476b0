"""Plays on the utility VMs of a lab, of whatever backend."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from harness.audit import guest_mounts
from harness.containers import disks_of
from harness.lab import Lab
from harness.scenarios.play import PodPlay
from harness.scenarios.scenario import ScenarioContext
from harness.scenarios.stage import PlaySetting
from harness.uvm import UtilityVm


class LabVm:
    """Implements PlayedVm on a utility VM."""

    def __init__(self, vm: UtilityVm) -> None:
        self.name = f"utility VM {vm.system_id}"
        self.scsi = vm.scsi
        self.guest = vm.guest
        self._vm = vm

    def disks(self) -> Collection[Path]:
        """Return what the compute service says."""
        properties = self._vm.service.properties(self._vm.system_id)
        return [Path(disk.path) for disk in properties.disks]

    def alive(self) -> bool:
        """Whether it runs and can be talked to."""
        return self._vm.running and not self._vm.guest.bridge.closed

    def mounts(self) -> Collection[str]:
        """Return what the guest's kernel says."""
        return guest_mounts(self._vm)

    def violations(self) -> Sequence[str]:
        """Return nothing: a real machine refuses instead."""
        return ()

    def remove_directory(self, path: str) -> None:
        """Leave it: a process in the guest costs more than all the rest, and the disk goes soon."""

    def kill(self) -> None:
        """Pull the plug, and forget the machine."""
        if self._vm.running:
            self._vm.kill()
        self._vm.close()

    def close(self) -> None:
        """Power it off."""
        self._vm.close()


def open_play(lab: Lab, *, pods: int, machines: int) -> PodPlay:
    """Return a play on snapshots and utility VMs of a lab; `close` takes both down."""
    image = lab.demo_image()
    keys = [f"play-pod{number}" for number in range(pods)]
    disks = [disks_of(lab.snapshotter.prepare(key, image.top)) for key in keys]

    def remove_snapshots() -> None:
        for key in keys:
            lab.snapshotter.remove(key)
        lab.snapshotter.cleanup()

    return PodPlay(
        PlaySetting(
            boot=lambda _: LabVm(lab.boot_uvm()),
            faults=lab.faults,
            layers=disks[0].layers[:1],  # one is as good as three for counting, and faster
            scratches=tuple(each.scratch for each in disks if each.scratch is not None),
            machines=machines,
            verbs_per_look=10,
            on_close=remove_snapshots,
        )
    )


def play_in_lab(context: ScenarioContext, *, pods: int, machines: int) -> PodPlay:
    """Return a play for a scenario, whose body calls its verbs and then `close`."""
    return open_play(context.lab, pods=pods, machines=machines)

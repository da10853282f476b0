"""A machine for plays without bridge and threads: the guest's own code, called directly.

The host's half is a table of slots that keeps every broken rule; the guest's half is the agent's
`Disks` and `Layers` over the model's operating system. Faults are met as on a real machine.
"""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import (
    ComputeServiceError,
    ComputeTimeoutError,
    GuestError,
    SystemExitedError,
)
from harness.faults import Action, FaultPlan
from harness.faults.service import service_error
from harness.gcs.prot import CombinedLayers, ScsiDevice
from harness.guest.disks import Disks
from harness.guest.errors import GuestFailure
from harness.guest.layers import Layers
from harness.guest.mounts import MountTable
from harness.guest.system import Connection
from harness.hcs.document import Attachment, AttachmentType
from harness.model.disks import DiskStore, ModelDisk
from harness.model.guestos import ModelGuestOs
from harness.scsi import DiskClaims, MountConfig, ScsiManager, Slot
from harness.scsi.machine import eject_each
from harness.uvmdisks import mapped_disk

E_FAIL = 0x80004005


@dataclass
class Hold:
    """Holds one call."""

    entered: threading.Event = field(default_factory=threading.Event)
    resume: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> bool:
        return self.entered.wait(1)

    def let_go(self) -> None:
        self.resume.set()


@dataclass
class Holds:
    """The next call of a boundary that is to be held, of any machine."""

    waiting: dict[str, Hold] = field(default_factory=dict)

    def hold(self, boundary: str) -> Hold:
        self.waiting[boundary] = Hold()
        return self.waiting[boundary]

    def meet(self, boundary: str) -> None:
        hold = self.waiting.pop(boundary, None)
        if hold is not None:
            hold.entered.set()
            assert hold.resume.wait(30), "a test never let its hold go"


def _no_dial(port: int) -> Connection:
    raise ConnectionRefusedError(f"nobody listens on {port}")


class DirectVm:
    """Implements PlayedVm, ScsiHost, ScsiGuest and LayerGuest."""

    def __init__(
        self, name: str, *, store: DiskStore, faults: FaultPlan, claims: DiskClaims, holds: Holds
    ) -> None:
        self.name = name
        self._store = store
        self._faults = faults
        self._holds = holds
        self._broken: list[str] = []
        self._disks: dict[Slot, ModelDisk] = {}
        self._ejected: set[Slot] = set()
        self._dead = False
        self._lock = threading.Lock()
        self.os = ModelGuestOs(dial=_no_dial, power_off=lambda: None)
        mounts = MountTable()
        self._guest_disks = Disks(self.os, mounts)
        self._guest_layers = Layers(self.os, mounts)
        self.scsi = ScsiManager(self, self, claims=claims, machine=name)
        self.guest = self

    # -- PlayedVm --------------------------------------------------------------------------------

    def disks(self) -> list[Path]:
        with self._lock:
            return [Path(disk.path) for disk in self._disks.values()]

    def alive(self) -> bool:
        return not self._dead

    def mounts(self) -> Collection[str]:
        return {mount.target for mount in self.os.namespace.mounts[1:]}

    def violations(self) -> Sequence[str]:
        return self._broken

    def remove_directory(self, path: str) -> None:
        self._call_guest("guest.delete-container-state", lambda: self.os.remove_tree(path))

    def kill(self) -> None:
        self._die()
        self.scsi.abandon("the play killed it")

    def close(self) -> None:
        self._die()

    def _die(self) -> None:
        with self._lock:
            self._dead = True
            for disk in self._disks.values():
                disk.close()
            self._disks.clear()

    # -- ScsiHost --------------------------------------------------------------------------------

    def attach(self, slot: Slot, path: Path, *, read_only: bool) -> None:
        def attach() -> None:
            with self._lock:
                if slot in self._disks:
                    self._broken.append(f"attach to {slot}, which is taken")
                if any(path == Path(disk.path) for disk in self._disks.values()):
                    self._broken.append(f"{path} attached twice")
                kind = AttachmentType.VIRTUAL_DISK
                disk = self._store.open(Attachment(kind, str(path), read_only=read_only))
                self._disks[slot] = disk
                self._ejected.discard(slot)
                self.os.plug(slot.controller, slot.lun, disk)

        self._call_host("service.attach", attach)

    def detach(self, slots: Sequence[Slot]) -> None:
        def detach() -> None:
            for slot in slots:
                self._take_out(slot)

        self._call_host("service.detach", detach)

    def _take_out(self, slot: Slot) -> None:
        with self._lock:
            disk = self._disks.pop(slot, None)
            if disk is None:
                self._broken.append(f"detach of {slot}, which is empty")
                raise ComputeServiceError(f"{slot} is empty")
            if slot not in self._ejected:
                self._broken.append(f"detach of {slot} without an eject")
            if disk.files is not None and any(
                mount.tree is disk.files for mount in self.os.namespace.mounts
            ):
                self._broken.append(f"detach of {slot} while it is mounted")
            self.os.unplug(slot.controller, slot.lun)
            disk.close()

    def attached(self) -> Collection[Slot]:
        found: list[Slot] = []
        self._call_host("service.properties", lambda: found.extend(self._disks))
        return found

    # -- ScsiGuest -------------------------------------------------------------------------------

    def mount(self, slot: Slot, config: MountConfig, guest_path: str) -> None:
        disk = mapped_disk(slot, config, guest_path)
        self._call_guest("guest.add-mapped-virtual-disk", lambda: self._guest_disks.add(disk))

    def unmount(self, slot: Slot, config: MountConfig, guest_path: str) -> None:
        disk = mapped_disk(slot, config, guest_path)
        self._call_guest("guest.remove-mapped-virtual-disk", lambda: self._guest_disks.remove(disk))

    def eject(self, slot: Slot) -> None:
        def eject() -> None:
            self._guest_disks.eject(ScsiDevice(controller=slot.controller, lun=slot.lun))
            self._ejected.add(slot)

        self._call_guest("guest.remove-scsi-device", eject)

    def eject_all(self, slots: Sequence[Slot]) -> Mapping[Slot, BaseException]:
        return eject_each(self.eject, slots)

    # -- LayerGuest ------------------------------------------------------------------------------

    def add_combined_layers(self, layers: CombinedLayers) -> None:
        self._call_guest("guest.add-combined-layers", lambda: self._guest_layers.add(layers))

    def remove_combined_layers(self, layers: CombinedLayers) -> None:
        self._call_guest("guest.remove-combined-layers", lambda: self._guest_layers.remove(layers))

    # -- faults ----------------------------------------------------------------------------------

    def _call_host(self, boundary: str, call: Callable[[], None]) -> None:
        self._holds.meet(boundary)
        fault = self._faults.next(boundary)
        self._check_alive()
        match fault.action:
            case Action.ERROR:
                raise service_error(boundary, fault.hresult)
            case Action.TIMEOUT:
                raise ComputeTimeoutError(f"{boundary}: silence")
            case Action.DIE:
                self._die()
                raise SystemExitedError("the machine died")
        call()
        if fault.action is Action.LOST:
            raise ComputeTimeoutError(f"{boundary}: the answer was lost")

    def _call_guest(self, boundary: str, call: Callable[[], object]) -> None:
        self._holds.meet(boundary)
        fault = self._faults.next(boundary)
        self._check_alive()
        match fault.action:
            case Action.ERROR:
                raise GuestError("on purpose", hresult=fault.hresult, request=boundary)
            case Action.TIMEOUT:
                raise ComputeTimeoutError(f"{boundary}: silence")
            case Action.DIE:
                self._die()
                raise SystemExitedError("the machine died")
        try:
            call()
        except GuestFailure as failure:
            raise GuestError(str(failure), hresult=failure.result, request=boundary) from failure
        except OSError as error:
            raise GuestError(str(error), hresult=E_FAIL, request=boundary) from error
        if fault.action is Action.LOST:
            raise ComputeTimeoutError(f"{boundary}: the answer was lost")

    def _check_alive(self) -> None:
        if self._dead:
            raise SystemExitedError("the machine is dead")

"""The SCSI slots of one machine: attaches and detaches disks through QMP.

State of a slot; an error that names no other state leaves it free::

    free ──Add──> ATTACHING ──> ATTACHED ──Remove──> DETACHING ──> free
                      └─timeout─> UNCERTAIN <─failure──┘
                                      └────Remove (may be repeated)──> free

Counting holders is not done here: a slot in use is refused.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from harness.errors import ComputeServiceError, ComputeTimeoutError, SystemExitedError
from harness.hcs.service import AttachedDisk
from harness.qemu.disks import DiskImage, explain_refusal, inspect_disk
from harness.qemu.qmp import QmpClient, QmpCommand, QmpError, QmpEvent
from harness.qemu.translate import (
    AttachDisk,
    DetachDisk,
    attach_commands,
    detach_commands,
    device_name,
    node_name,
)

SLOT_IN_USE: Final = 0x800700B7  # ERROR_ALREADY_EXISTS
SLOT_EMPTY: Final = 0x80070490  # ERROR_NOT_FOUND
INVALID_STATE: Final = 0x80370105  # HCS_E_INVALID_STATE


class SlotState(enum.Enum):
    """What is known of a slot that is not free."""

    ATTACHING = "being attached"
    ATTACHED = "attached"
    DETACHING = "being detached"
    UNCERTAIN = "of unknown outcome"


@dataclass(slots=True)
class _Slot:
    disk: DiskImage
    state: SlotState


class SlotTable:
    """Slots of one machine; every method may be called from any thread.

    Changes of different slots run at the same time, changes of one slot are refused meanwhile.
    """

    def __init__(self, qmp: QmpClient, *, controllers: int) -> None:
        self._qmp = qmp
        self._controllers = controllers
        self._lock = threading.Lock()
        self._slots: dict[tuple[int, int], _Slot] = {}

    def disks(self) -> tuple[AttachedDisk, ...]:
        """Return the disks that the machine sees or may see, by slot."""
        with self._lock:
            return tuple(
                AttachedDisk(controller, lun, slot.disk.path, slot.disk.read_only)
                for (controller, lun), slot in sorted(self._slots.items())
                if slot.state is not SlotState.ATTACHING
            )

    def path_of(self, node: str) -> str:
        """Return the file behind one of QEMU's block nodes; "" for one that is no slot's."""
        with self._lock:
            paths = [slot.disk.path for key, slot in self._slots.items() if node_name(*key) == node]
        return paths[0] if paths else ""

    def clear(self) -> None:
        """Forget every slot: the machine is gone."""
        with self._lock:
            self._slots.clear()

    def attach(self, change: AttachDisk, *, deadline: float) -> None:
        """Attach a disk; on failure nothing is attached, save after a ComputeTimeoutError.

        Raises ComputeServiceError with the HRESULT of the cause: slot in use 0x800700b7, the file
        in use elsewhere 0x80070020, missing 0x80070002, unreadable 0x80070005, damaged 0x80070570.
        """
        disk = inspect_disk(change.attachment)
        key = change.controller, change.lun
        self._reserve(key, disk)
        add_node, add_device = attach_commands(*key, disk)
        _, delete_node = detach_commands(*key)
        try:
            self._execute_add(add_node, disk, deadline)
            try:
                self._execute_add(add_device, disk, deadline)
            except QmpError:
                self._qmp.execute(delete_node, deadline=deadline)
                raise
        except ComputeTimeoutError:
            self._set(key, SlotState.UNCERTAIN)
            raise
        except ComputeServiceError as error:
            self._free(key)
            if isinstance(error, QmpError):
                raise explain_refusal(disk.path, error.description) from error
            raise
        self._set(key, SlotState.ATTACHED)

    def detach(self, changes: Sequence[DetachDisk], *, deadline: float) -> None:
        """Detach disks, waiting once for all of them (QEMU takes 51 ms, for one or for many).

        A disk that could not be detached, or whose outcome is unknown, can be detached again. Stops
        before the first slot that is empty (0x80070490) or being changed (0x80370105), and raises
        that after the ones before it were detached.
        """
        keys, refusal = self._claim(changes)
        try:
            self._detach(keys, deadline)
        finally:
            with self._lock:  # what was not freed
                for key in keys:
                    if key in self._slots:
                        self._slots[key].state = SlotState.UNCERTAIN
        if refusal is not None:
            raise refusal

    def _detach(self, keys: Sequence[tuple[int, int]], deadline: float) -> None:
        after = self._qmp.event_cursor
        commands = [detach_commands(*key) for key in keys]
        answers = self._qmp.execute_all([unplug for unplug, _ in commands], deadline=deadline)
        awaited = {
            device_name(*key) for key, answer in zip(keys, answers, strict=True) if _leaves(answer)
        }

        def matches(event: QmpEvent) -> bool:
            return event.name == "DEVICE_DELETED" and event.data.get("device") in awaited

        while awaited:
            event = self._qmp.wait_event(matches, after=after, deadline=deadline)
            awaited.remove(event.data["device"])
        answers = self._qmp.execute_all([delete for _, delete in commands], deadline=deadline)
        failure: QmpError | None = None
        for key, answer in zip(keys, answers, strict=True):
            if isinstance(answer, QmpError) and "Failed to find node" not in answer.description:
                failure = answer
            else:
                self._free(key)
        if failure is not None:
            raise failure

    def _execute_add(self, command: QmpCommand, disk: DiskImage, deadline: float) -> None:
        try:
            self._qmp.execute(command, deadline=deadline)
        except SystemExitedError as error:
            raise SystemExitedError(f"the system ended while {disk.path} was attached") from error

    def _reserve(self, key: tuple[int, int], disk: DiskImage) -> None:
        controller, lun = key
        if controller >= self._controllers:
            raise ComputeServiceError(
                f"the system has {self._controllers} SCSI controllers, no number {controller}",
                hresult=SLOT_EMPTY,
            )
        with self._lock:
            held = self._slots.get(key)
            if held is not None:
                raise ComputeServiceError(
                    f"SCSI slot {controller}:{lun} is taken: {held.disk.path} is "
                    f"{held.state.value}",
                    hresult=SLOT_IN_USE,
                )
            self._slots[key] = _Slot(disk, SlotState.ATTACHING)

    def _claim(
        self, changes: Sequence[DetachDisk]
    ) -> tuple[list[tuple[int, int]], ComputeServiceError | None]:
        keys: list[tuple[int, int]] = []
        with self._lock:
            for change in changes:
                key = change.controller, change.lun
                slot = self._slots.get(key)
                if slot is None:
                    return keys, ComputeServiceError(
                        f"SCSI slot {change.controller}:{change.lun} is empty", hresult=SLOT_EMPTY
                    )
                if slot.state not in (SlotState.ATTACHED, SlotState.UNCERTAIN):
                    return keys, ComputeServiceError(
                        f"SCSI slot {change.controller}:{change.lun}: {slot.disk.path} is "
                        f"{slot.state.value}",
                        hresult=INVALID_STATE,
                    )
                slot.state = SlotState.DETACHING
                keys.append(key)
        return keys, None

    def _set(self, key: tuple[int, int], state: SlotState) -> None:
        with self._lock:
            if key in self._slots:  # cleared when the machine ended
                self._slots[key].state = state

    def _free(self, key: tuple[int, int]) -> None:
        with self._lock:
            self._slots.pop(key, None)


def _leaves(answer: object) -> bool:
    """Whether a device whose removal was asked for will report its end. Raises QmpError."""
    if isinstance(answer, QmpError):
        if answer.error_class == "DeviceNotFound":
            return False  # an earlier attempt got this far
        if "in the process of unplug" not in answer.description:
            raise answer
    return True

"""The hardware of one machine of the model: disks in SCSI slots, below the operating system."""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import threading
from collections.abc import Callable, Sequence
from typing import Final

from harness.errors import ComputeServiceError
from harness.guest.system import Connection
from harness.hcs.document import Attachment
from harness.model.disks import DiskStore, ModelDisk
from harness.model.guestos import ModelGuestOs

SLOT_EMPTY: Final = 0x80070490
SLOT_IN_USE: Final = 0x800700AA


class ModelMachine:
    """One machine; may be used from any thread."""

    def __init__(
        self,
        store: DiskStore,
        *,
        controllers: int,
        dial: Callable[[int], Connection],
        power_off: Callable[[], None],
    ) -> None:
        self._store = store
        self._controllers = controllers
        self._lock = threading.RLock()
        self._disks: dict[tuple[int, int], ModelDisk] = {}
        self.os = ModelGuestOs(dial=dial, power_off=power_off)

    def disks(self) -> Sequence[tuple[tuple[int, int], ModelDisk]]:
        """Return ((controller, LUN), disk), in the order of the slots."""
        with self._lock:
            return sorted(self._disks.items(), key=lambda each: each[0])

    def attach(self, controller: int, lun: int, attachment: Attachment) -> None:
        """Give the machine a disk. Raises ComputeServiceError."""
        with self._lock:
            if controller >= self._controllers:
                raise ComputeServiceError(
                    f"the system has {self._controllers} SCSI controllers, no number {controller}",
                    hresult=SLOT_EMPTY,
                )
            if (controller, lun) in self._disks:
                held = self._disks[controller, lun]
                raise ComputeServiceError(
                    f"SCSI slot {controller}:{lun} is taken by {held.path}", hresult=SLOT_IN_USE
                )
            disk = self._store.open(attachment)
            self._disks[controller, lun] = disk
            self.os.plug(controller, lun, disk)

    def detach(self, controller: int, lun: int) -> None:
        """Take a disk away. Raises ComputeServiceError for an empty slot."""
        with self._lock:
            disk = self._disks.pop((controller, lun), None)
            if disk is None:
                raise ComputeServiceError(
                    f"SCSI slot {controller}:{lun} is empty", hresult=SLOT_EMPTY
                )
            self.os.unplug(controller, lun)
            disk.close()

    def stop(self, *, flushed: bool) -> None:
        """End it; unless it was `flushed`, what was not synced is lost."""
        with self._lock:
            self.os.crash()
            for disk in self._disks.values():
                if not flushed and not disk.read_only and disk.files:
                    disk.files.crash()
                disk.close()
            self._disks.clear()

"""What the SCSI manager asks of a utility VM: one protocol for its host side, one for its guest.

Both may be called from several threads at once, each call for another disk. Outcomes are told
apart by the type of the error:

- `SystemExitedError`, `SystemNotFoundError`: the VM is gone, and all its disks with it;
- `ComputeTimeoutError`, or anything that is no `HarnessError`: unknown whether it happened;
- from `ScsiHost.attach` any other `ComputeServiceError`, from `ScsiGuest.mount` a `GuestError`:
  refused, nothing has changed.

Every call must end by itself (the adapters carry the deadlines).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

from harness.scsi.mountconfig import MountConfig
from harness.scsi.slots import Slot


class ScsiHost(Protocol):
    """The host's side: what the virtual machine is given."""

    def attach(self, slot: Slot, path: Path, *, read_only: bool) -> None:
        """Put a disk into an empty slot; returns once the virtual machine has it."""
        ...

    def detach(self, slots: Sequence[Slot]) -> None:
        """Take disks out, waiting once for all where that can be done.

        After an error any part of them may be gone: the manager asks `attached`.
        """
        ...

    def attached(self) -> Collection[Slot]:
        """Return every slot that really has a disk now, reserved ones included."""
        ...


class ScsiGuest(Protocol):
    """The guest's side: what is done with a disk inside."""

    def mount(self, slot: Slot, config: MountConfig, guest_path: str) -> None:
        """Mount a partition at `guest_path`. After a GuestError nothing is mounted there."""
        ...

    def unmount(self, slot: Slot, config: MountConfig, guest_path: str) -> None:
        """Undo `mount`, with the very same arguments; not mounted (any more) is success."""
        ...

    def eject(self, slot: Slot) -> None:
        """Make the guest's kernel let the disk go, before the host takes it; gone is success."""
        ...

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

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from harness.errors import SystemExitedError, SystemNotFoundError
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

    def eject_all(self, slots: Sequence[Slot]) -> Mapping[Slot, BaseException]:
        """Have disks let go together; return which the guest did not let go, and why.

        The others take no I/O any more. The guest may forget them later: only `eject` waits for it.

        After an error of the call itself any part of them may be gone.
        """
        ...


def eject_each(
    eject: Callable[[Slot], None], slots: Sequence[Slot]
) -> Mapping[Slot, BaseException]:
    """Return what `ScsiGuest.eject_all` does, for a guest that takes one after the other."""
    failures: dict[Slot, BaseException] = {}
    for slot in slots:
        try:
            eject(slot)
        except (SystemExitedError, SystemNotFoundError):
            raise
        except Exception as error:  # noqa: BLE001 - handed to the caller as it is
            failures[slot] = error
    return failures

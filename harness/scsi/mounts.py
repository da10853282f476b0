"""Mounts: partitions of attached disks at paths in the guest, one record a slot and `MountKey`.

State of a mount. One in brackets means "asked, no answer yet", as for attachments::

    reserved ──> [mounting] ──> mounted ──> [unmounting] ──> unmounted
     │    ^──────────┤ refused               ^   │   ^            ^
     │               └───── in doubt ────────┘   └───┘ repeated   │
     └────────────────── nobody wants it any more ────────────────┘

Only `mounted` can be joined. Unmounting may be repeated, for the guest takes "not mounted" as
success; it is sent exactly what the mount was sent.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import ClassVar

from harness.errors import GuestError
from harness.scsi.machine import ScsiGuest
from harness.scsi.mountconfig import MountConfig, MountKey
from harness.scsi.sharing import Member, Monitor, Operation, Work, describe_holders
from harness.scsi.slots import LowestFree, Slot

DEFAULT_GUEST_PATH = "/run/mounts/scsi/m{}"  # hcsshim internal/uvm/scsi


class MountState(enum.StrEnum):
    """Drawn in the module's docstring."""

    RESERVED = "reserved"
    MOUNTING = "mounting"
    MOUNTED = "mounted"
    UNMOUNTING = "unmounting"
    UNMOUNTED = "unmounted"


@dataclass(slots=True, eq=False)
class Mount:
    """One mount in the guest, and who shares it; `number` is that of a default path."""

    slot: Slot
    config: MountConfig
    guest_path: str
    number: int | None
    state: MountState = MountState.RESERVED
    members: dict[Member, None] = field(default_factory=dict)
    operation: Operation | None = None

    _NEXT: ClassVar = {
        MountState.RESERVED: (MountState.MOUNTING, MountState.UNMOUNTED),
        MountState.MOUNTING: (MountState.MOUNTED, MountState.RESERVED, MountState.UNMOUNTING),
        MountState.MOUNTED: (MountState.UNMOUNTING,),
        MountState.UNMOUNTING: (MountState.UNMOUNTED,),
        MountState.UNMOUNTED: (),
    }

    def advance(self, state: MountState) -> None:
        """Change the state along an arrow of the drawing; anything else is a bug here."""
        assert state in self._NEXT[self.state], f"{self.state} -> {state}"
        self.state = state

    def __str__(self) -> str:
        return f"{self.slot} at {self.guest_path} ({describe_holders(self.members)})"


class MountTable:
    """The mounts of one guest, and the I/O that changes them.

    Every method is called with the monitor's lock held, and gives it up around I/O.
    """

    def __init__(self, monitor: Monitor, guest: ScsiGuest) -> None:
        self._monitor = monitor
        self._guest = guest
        self._by_slot: dict[Slot, dict[MountKey, Mount]] = {}
        self._by_path: dict[str, Mount] = {}
        self._numbers = LowestFree(limit=None)

    def on(self, slot: Slot) -> list[Mount]:
        """Return the mounts of the disk in a slot."""
        return list(self._by_slot.get(slot, {}).values())

    def find(self, slot: Slot, config: MountConfig) -> Mount | None:
        """Return the mount that a wish shares, in whatever state it is."""
        return self._by_slot.get(slot, {}).get(config.key)

    def at(self, guest_path: str) -> Mount | None:
        """Return the mount that has a clean guest path."""
        return self._by_path.get(guest_path)

    def clashing(self, slot: Slot, config: MountConfig) -> Mount | None:
        """Return a mount of the same partition that `config` must not stand beside.

        A second wish about the content of a partition (file system, encryption) could format it
        under the first; an encrypted partition is formatted at every mount.
        """
        if config.block_device:
            return None  # a link to the device changes nothing
        for mount in self.on(slot):
            other = mount.config
            if other.block_device or other.partition != config.partition:
                continue
            if other.formatting != config.formatting or (
                config.encrypted and other.key != config.key
            ):
                return mount
        return None

    def reserve(self, slot: Slot, config: MountConfig, guest_path: str | None) -> Mount:
        """Return a new mount at a free path, by default the lowest free `/run/mounts/scsi/m<N>`."""
        number = None
        if guest_path is None:
            number, guest_path = self._default_path()
        assert guest_path not in self._by_path
        mount = Mount(slot, config, guest_path, number)
        self._by_slot.setdefault(slot, {})[config.key] = mount
        self._by_path[guest_path] = mount
        return mount

    def mount(self, mount: Mount, *, by: str) -> None:
        """Mount a reserved one; joiners of the operation get the outcome too. Raises DiskError.

        The state is then `reserved` again, or `mounting` while nobody knows.
        """
        monitor = self._monitor
        doing = f"cannot mount {mount}"
        mount.advance(MountState.MOUNTING)
        operation = monitor.begin(mount, Work.MOUNT, by=by)
        error = monitor.attempt(
            lambda: self._guest.mount(mount.slot, mount.config, mount.guest_path)
        )
        if not monitor.is_gone():
            if error is None:
                mount.advance(MountState.MOUNTED)
            elif isinstance(error, GuestError):
                mount.advance(MountState.RESERVED)
        monitor.conclude(mount, operation, error, doing=doing)

    def unmount(self, mount: Mount, *, by: str) -> None:
        """Unmount what nobody needs, and free its path. Raises DiskError; may be repeated."""
        monitor = self._monitor
        doing = f"cannot unmount {mount}"
        operation = monitor.begin(mount, Work.UNMOUNT, by=by)
        error: BaseException | None = None
        if mount.state is MountState.RESERVED:
            mount.advance(MountState.UNMOUNTED)
        else:
            if mount.state is not MountState.UNMOUNTING:
                mount.advance(MountState.UNMOUNTING)
            error = monitor.attempt(
                lambda: self._guest.unmount(mount.slot, mount.config, mount.guest_path)
            )
            if error is None and not monitor.is_gone():
                mount.advance(MountState.UNMOUNTED)
        if mount.state is MountState.UNMOUNTED:
            self._forget(mount)
        monitor.conclude(mount, operation, error, doing=doing)

    def unmount_all(self, slot: Slot, *, by: str) -> BaseException | None:
        """Unmount what failures left mounted on a disk that is about to go; return the error."""
        for mount in self.on(slot):
            while mount.operation is not None:  # someone wants its path
                mount.operation.wait(None)
            if mount.state is not MountState.UNMOUNTED and not self._monitor.is_gone():
                try:
                    self.unmount(mount, by=by)
                except BaseException as error:  # noqa: BLE001 -- the caller raises it again
                    return error
        return None

    def clear(self) -> None:
        """Forget everything: the guest is gone, and every mount with it."""
        for mount in self._by_path.values():
            mount.state = MountState.UNMOUNTED
            mount.members.clear()
            if mount.operation is not None:
                mount.operation.finish(None)
                mount.operation = None
        self._by_path.clear()
        self._by_slot.clear()

    def _default_path(self) -> tuple[int, str]:
        """Return a number in use now and its path, passing over paths that were asked for."""
        passed_over = []
        while True:
            number = self._numbers.take()
            assert number is not None
            path = DEFAULT_GUEST_PATH.format(number)
            if path not in self._by_path:
                break
            passed_over.append(number)
        for each in passed_over:
            self._numbers.give_back(each)
        return number, path

    def _forget(self, mount: Mount) -> None:
        if self._by_path.get(mount.guest_path) is not mount:
            return
        del self._by_path[mount.guest_path]
        on_slot = self._by_slot[mount.slot]
        del on_slot[mount.config.key]
        if not on_slot:
            del self._by_slot[mount.slot]
        if mount.number is not None:
            self._numbers.give_back(mount.number)

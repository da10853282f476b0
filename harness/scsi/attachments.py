"""Attachments: disks that the virtual machine sees, one record a file identity.

State of an attachment. One in brackets means "asked, no answer yet": in flight while an operation
is on the record, in doubt after it ended without an answer::

    reserved ──> [attaching] ──> attached ──> [ejecting] ──> ejected ──> [detaching] ──> detached
     │    ^───────────┤ refused                │    ^            ^────────────┤ refused       ^
     │                └ in doubt: ask the host └────┘ repeated                └ in doubt: ask │
     └───────────────────────────── nobody wants it any more ─────────────────────────────────┘

- Only `attached` can be joined. From `ejecting` on the guest may have let the disk go: whoever
  needs the disk then finishes the detach and attaches it afresh.
- A slot is given back at `detached`, never while it is unknown whether the VM has the disk.
- The guest may still remember a disk that is `detached`. Before the next disk comes into such a
  slot the guest is made to forget the old one, or the attach fails.
- Every failure leaves a state from which `detach` can be repeated; what was done is not redone.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from harness.errors import ComputeServiceError, ComputeTimeoutError
from harness.scsi.identity import Disk, DiskIdentity
from harness.scsi.machine import ScsiGuest, ScsiHost
from harness.scsi.mounts import MountTable
from harness.scsi.sharing import Member, Monitor, Operation, Standing, Work, describe_holders
from harness.scsi.slots import Slot, SlotTable


class AttachmentState(enum.StrEnum):
    """Drawn in the module's docstring."""

    RESERVED = "reserved"
    ATTACHING = "attaching"
    ATTACHED = "attached"
    EJECTING = "ejecting"
    EJECTED = "ejected"
    DETACHING = "detaching"
    DETACHED = "detached"


@dataclass(slots=True, eq=False)
class Attachment:
    """One disk in one slot, and who shares it."""

    disk: Disk
    slot: Slot
    read_only: bool
    state: AttachmentState = AttachmentState.RESERVED
    members: dict[Member, None] = field(default_factory=dict)
    operation: Operation | None = None
    seen: bool = False
    """Whether the guest has used it, and so has certainly discovered it."""
    lingers: bool = False
    """Whether the guest may still remember it when it is gone."""

    _NEXT: ClassVar = {
        AttachmentState.RESERVED: (AttachmentState.ATTACHING, AttachmentState.DETACHED),
        AttachmentState.ATTACHING: (AttachmentState.ATTACHED, AttachmentState.RESERVED),
        AttachmentState.ATTACHED: (AttachmentState.EJECTING,),
        AttachmentState.EJECTING: (AttachmentState.EJECTED,),
        AttachmentState.EJECTED: (AttachmentState.DETACHING,),
        AttachmentState.DETACHING: (AttachmentState.DETACHED, AttachmentState.EJECTED),
        AttachmentState.DETACHED: (),
    }

    @property
    def path(self) -> Path:
        """The canonical path of the disk."""
        return self.disk.path

    def advance(self, state: AttachmentState) -> None:
        """Change the state along an arrow of the drawing; anything else is a bug here."""
        assert state in self._NEXT[self.state], f"{self.state} -> {state}"
        self.state = state

    def __str__(self) -> str:
        mode = "read-only" if self.read_only else "read-write"
        return f"{self.path} ({mode}, {self.slot}, {describe_holders(self.members)})"


class AttachmentTable:
    """The attachments of one virtual machine, and the I/O that changes them.

    Every method is called with the monitor's lock held, and gives it up around I/O.
    """

    def __init__(
        self,
        monitor: Monitor,
        host: ScsiHost,
        guest: ScsiGuest,
        slots: SlotTable,
        mounts: MountTable,
        *,
        on_forgotten: Callable[[Disk], None],
    ) -> None:
        self._on_forgotten = on_forgotten
        self._monitor = monitor
        self._host = host
        self._guest = guest
        self._slots = slots
        self._mounts = mounts
        self._by_identity: dict[DiskIdentity, Attachment] = {}
        self._remembered: set[Slot] = set()  # free or reserved, with a disk the guest may remember

    def __iter__(self) -> Iterator[Attachment]:
        return iter(sorted(self._by_identity.values(), key=lambda each: each.slot))

    def __len__(self) -> int:
        return len(self._by_identity)

    def find(self, disk: Disk) -> Attachment | None:
        """Return the attachment of a disk, in whatever state it is."""
        return self._by_identity.get(disk.identity)

    def reserve(self, disk: Disk, *, read_only: bool) -> Attachment | None:
        """Return a new attachment in the lowest free slot, or None when there is none."""
        slot = self._slots.take()
        if slot is None:
            return None
        attachment = Attachment(disk, slot, read_only)
        self._by_identity[disk.identity] = attachment
        return attachment

    def attach(self, attachment: Attachment, *, by: str) -> None:
        """Attach a reserved disk; joiners of the operation get the outcome too.

        Raises DiskError; the state is then `reserved` again, or `attaching` while nobody knows.
        """
        monitor = self._monitor
        doing = f"cannot attach {attachment}"
        attachment.advance(AttachmentState.ATTACHING)
        operation = monitor.begin(attachment, Work.ATTACH, by=by)
        error = self._settle_slot(attachment.slot)
        if error is not None or monitor.is_gone():
            if not monitor.is_gone():
                attachment.advance(AttachmentState.RESERVED)
            doing += ": the guest does not forget the disk that was there before"
            monitor.conclude(attachment, operation, error, doing=doing)
            return
        error = monitor.attempt(
            lambda: self._host.attach(
                attachment.slot, attachment.path, read_only=attachment.read_only
            )
        )
        if not monitor.is_gone():
            if error is None:
                attachment.advance(AttachmentState.ATTACHED)
            elif isinstance(error, ComputeServiceError) and not _is_silence(error):
                attachment.advance(AttachmentState.RESERVED)
            else:
                doubt = self._ask([attachment])
                if doubt is not None:
                    doing += f" (nor ask the host about it: {doubt})"
                elif attachment.state is AttachmentState.ATTACHED and _is_silence(error):
                    error = None  # it came through after all
        monitor.conclude(attachment, operation, error, doing=doing)

    def settle(self, attachment: Attachment, *, by: str) -> None:
        """Find out by asking the host whether a disk in doubt is attached. Raises DiskError."""
        monitor = self._monitor
        doing = f"cannot tell whether the virtual machine has {attachment}"
        operation = monitor.begin(attachment, Work.SETTLE, by=by)
        doubt = self._ask([attachment])
        monitor.conclude(attachment, operation, doubt, doing=doing)

    def detach(
        self, attachments: Sequence[Attachment], *, by: str
    ) -> dict[Attachment, BaseException]:
        """Take disks out that nobody needs, waiting for the host once; return what failed.

        Mounts that a failure left behind go first, then the guest ejects each disk. Each succeeds
        or fails by itself: what succeeded is `detached` and its slot free, what failed is in a
        state from which this can be repeated.
        """
        monitor = self._monitor
        operations = [(each, monitor.begin(each, Work.DETACH, by=by)) for each in attachments]
        failures: dict[Attachment, BaseException] = {}
        doubtful = [each for each in attachments if each.state in _ASK_HOST]
        if doubtful and (doubt := self._ask(doubtful)) is not None:
            failures.update(dict.fromkeys(doubtful, doubt))
        for each in attachments:
            if each not in failures and not monitor.is_gone():
                error = self._prepare_eject(each, by=by)
                if error is not None:
                    failures[each] = error
                    if not isinstance(error, Exception):
                        break  # interrupted: leave the rest as it is
        else:
            failures.update(self._eject([each for each in attachments if each not in failures]))
            if all(isinstance(error, Exception) for error in failures.values()):
                leaving = [each for each in attachments if each not in failures]
                failures.update(self._take_out(leaving))
        for each, operation in operations:
            if each.state is AttachmentState.DETACHED:
                self._forget(each)
            failure = failures.get(each)
            if failure is not None:
                failures[each] = monitor.explain(f"cannot detach {each}", failure)
            monitor.finish(each, operation, failures.get(each))
        return failures

    def clear(self) -> None:
        """Forget everything: the virtual machine is gone, and every disk with it."""
        for attachment in self._by_identity.values():
            attachment.state = AttachmentState.DETACHED
            for member in attachment.members:
                member.standing = Standing.RELEASED
            attachment.members.clear()
            if attachment.operation is not None:
                attachment.operation.finish(None)
                attachment.operation = None
            self._on_forgotten(attachment.disk)
        self._by_identity.clear()

    def _prepare_eject(self, attachment: Attachment, *, by: str) -> BaseException | None:
        """Bring one attachment to `ejecting` with nothing mounted, or from `reserved` to its end.

        Return what kept it from that.
        """
        match attachment.state:
            case AttachmentState.RESERVED:
                attachment.advance(AttachmentState.DETACHED)
            case AttachmentState.ATTACHED:
                error = self._mounts.unmount_all(attachment.slot, by=by)
                if error is not None or self._monitor.is_gone():
                    return error
                attachment.advance(AttachmentState.EJECTING)
        return None

    def _eject(self, attachments: Sequence[Attachment]) -> dict[Attachment, BaseException]:
        """Bring those of `attachments` that are `ejecting` to `ejected`; return what failed."""
        leaving = [each for each in attachments if each.state is AttachmentState.EJECTING]
        if not leaving or self._monitor.is_gone():
            return {}
        refused: Mapping[Slot, BaseException] = {}

        def eject() -> None:
            nonlocal refused
            if len(leaving) == 1:
                self._guest.eject(leaving[0].slot)
            else:
                refused = self._guest.eject_all([each.slot for each in leaving])

        error = self._monitor.attempt(eject)
        if self._monitor.is_gone():
            return {}
        if error is not None:
            return dict.fromkeys(leaving, error)
        for each in leaving:
            if each.slot not in refused:
                each.advance(AttachmentState.EJECTED)
                # Several are forgotten behind the answer, and what was not used is found late.
                each.lingers = len(leaving) > 1 or not each.seen
        return {each: refused[each.slot] for each in leaving if each.slot in refused}

    def _take_out(self, attachments: Sequence[Attachment]) -> dict[Attachment, BaseException]:
        """Detach every ejected one of `attachments` in one request; return what failed."""
        leaving = [each for each in attachments if each.state is AttachmentState.EJECTED]
        if not leaving or self._monitor.is_gone():
            return {}
        for each in leaving:
            each.advance(AttachmentState.DETACHING)
        error = self._monitor.attempt(lambda: self._host.detach([each.slot for each in leaving]))
        if self._monitor.is_gone():
            return {}
        if error is None:
            for each in leaving:
                each.advance(AttachmentState.DETACHED)
            self._forget_late([each.slot for each in leaving if not each.seen])
            return {}
        # A batch stops somewhere, and silence says nothing: ask which of them are gone.
        doubt = self._ask(leaving)
        if doubt is not None and isinstance(error, Exception):
            error.add_note(f"the host could not be asked either: {doubt}")
        return {each: error for each in leaving if each.state is not AttachmentState.DETACHED}

    def _forget_late(self, slots: Sequence[Slot]) -> None:
        """Have the guest drop what it discovered between the eject and the detach.

        A guest is told of disks in a queue that overflows (virtio-scsi has 8 places): after many
        attaches it may find a disk after it was to forget it, and not hear that it went. The next
        disk in that slot would be taken for it. What fails here is met by who uses the slot next.
        """

        def forget() -> None:
            self._guest.eject_all(slots)

        if slots:
            self._monitor.attempt(forget)

    def _settle_slot(self, slot: Slot) -> BaseException | None:
        """Wait until the guest has forgotten what was in a slot; return why it has not."""
        if slot not in self._remembered:
            return None
        error = self._monitor.attempt(lambda: self._guest.eject(slot))
        if error is None:
            self._remembered.discard(slot)
        return error

    def _ask(self, attachments: Sequence[Attachment]) -> BaseException | None:
        """Settle `attaching` and `detaching` by what the host says; return why it did not."""
        slots: Collection[Slot] = ()

        def ask() -> None:
            nonlocal slots
            slots = self._host.attached()

        error = self._monitor.attempt(ask)
        if error is None and not self._monitor.is_gone():
            for each in attachments:
                present, absent = _ASK_HOST[each.state]
                each.advance(present if each.slot in slots else absent)
        return error

    def _forget(self, attachment: Attachment) -> None:
        """Free the slot; whoever was left (a release that had failed half-way) is released."""
        for member in attachment.members:
            member.standing = Standing.RELEASED
        attachment.members.clear()
        if self._by_identity.get(attachment.disk.identity) is attachment:
            del self._by_identity[attachment.disk.identity]
            self._on_forgotten(attachment.disk)
            if attachment.lingers:
                self._remembered.add(attachment.slot)
            self._slots.give_back(attachment.slot)


# State in doubt: what it becomes when the host has the disk, and when it has not.
_ASK_HOST = {
    AttachmentState.ATTACHING: (AttachmentState.ATTACHED, AttachmentState.RESERVED),
    AttachmentState.DETACHING: (AttachmentState.EJECTED, AttachmentState.DETACHED),
}


def _is_silence(error: BaseException | None) -> bool:
    """No answer came: the outcome is unknown, and nothing says that it failed."""
    return isinstance(error, ComputeTimeoutError)

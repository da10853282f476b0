"""The SCSI manager: disks of one utility VM, attached and mounted once and shared by count.

An acquire reserves (slot, guest path, a place among the members), then maps (attach, mount); a
release unmaps what nobody else needs (unmount, eject, detach). The states are drawn in
`harness.scsi.attachments` and `harness.scsi.mounts`::

    acquire ──> reserve ──> attach ──> mount ──> held ──> unmount ──> eject ──> detach ──> released
                   │ joins what is there or in flight       │ only by the last member
                   └──── any failure: the same way back ────┘

What callers may rely on:

- One disk is one attachment, whatever its path was; one (slot, partition, options) is one mount.
- A count changes when the I/O has succeeded, not before. Who joins I/O in flight waits for it and
  shares its outcome. Who meets a detach in flight waits for its end and attaches afresh.
- A failed acquire keeps nothing. Should its way back fail too, the disk stays known without a
  holder: the next acquire or release of that disk, `reclaim`, or the lack of a free slot
  finishes the job.
- A failed release leaves its holder counted; it may be repeated and goes on where it stopped.
- A disk is never detached while a mount of it may exist, and a slot never reused while the
  virtual machine may have the disk.
- No lock is held during I/O. `timeout_s` bounds the wait for other people's I/O; one's own is
  bounded by the adapters (`harness.scsi.machine`).
- When the VM is gone everything counts as released, and everybody who waits is told.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from harness.errors import DiskError, NoSlotError, UsageError
from harness.scsi.attachments import Attachment, AttachmentState, AttachmentTable
from harness.scsi.claims import DiskClaims
from harness.scsi.identity import Disk, identify
from harness.scsi.machine import ScsiGuest, ScsiHost
from harness.scsi.mountconfig import MountConfig, clean_guest_path
from harness.scsi.mounts import Mount, MountState, MountTable
from harness.scsi.sharing import (
    Member,
    Monitor,
    Operation,
    Standing,
    Work,
    describe_holders,
    holders_of,
)
from harness.scsi.slots import MAX_CONTROLLERS, Slot, SlotTable
from harness.scsi.snapshot import ScsiSnapshot, take_snapshot


class ScsiMount:
    """One holder's share of a disk; a context manager that releases at its end.

    Made by `ScsiManager.acquire`. `release` may be repeated after a failure, and is a no-op after
    a success or the VM's death.
    """

    def __init__(self, manager: ScsiManager, member: Member) -> None:
        self._manager = manager
        self._member = member
        self._attachment: Attachment | None = None
        self._mount: Mount | None = None

    @property
    def holder(self) -> str:
        """Who acquired it, in words."""
        return self._member.holder

    @property
    def slot(self) -> Slot:
        """Where the disk is attached."""
        assert self._attachment is not None
        return self._attachment.slot

    @property
    def path(self) -> Path:
        """The canonical path of the disk on the host."""
        assert self._attachment is not None
        return self._attachment.path

    @property
    def read_only(self) -> bool:
        """Whether the disk is attached read-only."""
        assert self._attachment is not None
        return self._attachment.read_only

    @property
    def guest_path(self) -> str:
        """Where it is mounted. Raises UsageError for a disk that was only attached."""
        if self._mount is None:
            raise UsageError(f"{self.path} was acquired without a mount: it has no guest path")
        return self._mount.guest_path

    @property
    def released(self) -> bool:
        """Whether the share was given back."""
        return self._member.standing is Standing.RELEASED

    def release(self) -> None:
        """Give the share back; the last one unmounts and detaches. Raises DiskError; repeatable."""
        self._manager.release_all([self])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<ScsiMount of {self._attachment} for {self.holder}: {self._member.standing}>"


class ScsiManager:
    """Attaches, mounts, shares and releases the disks of one virtual machine; thread-safe."""

    def __init__(
        self,
        host: ScsiHost,
        guest: ScsiGuest,
        *,
        controllers: int = MAX_CONTROLLERS,
        reserved: Collection[Slot] = (),
        claims: DiskClaims | None = None,
        machine: str = "",
    ) -> None:
        """`claims` are those of every machine that may meet this one's disks, by name."""
        self._claims = DiskClaims() if claims is None else claims
        self._machine = machine
        self._monitor = Monitor()
        self._slots = SlotTable(controllers=controllers, reserved=reserved)
        self._mounts = MountTable(self._monitor, guest)
        self._attachments = AttachmentTable(
            self._monitor, host, guest, self._slots, self._mounts, on_forgotten=self._give_back
        )

    def acquire(
        self,
        path: str | os.PathLike[str],
        *,
        holder: str,
        read_only: bool = False,
        mount: MountConfig | None = None,
        guest_path: str | None = None,
        timeout_s: float | None = None,
    ) -> ScsiMount:
        """Return a share of a disk that is attached and, if `mount` is given, mounted.

        A sharer gets the guest path that is there, whatever it asked for. Without a path the
        lowest free `/run/mounts/scsi/m<N>` is taken. Raises DiskError (NoSlotError when every
        slot is taken), naming who holds the disk or path; then nothing is held.
        """
        if guest_path is not None:
            if mount is None:
                raise UsageError("a guest path without a mount")
            guest_path = clean_guest_path(guest_path)
        if mount is not None and read_only:
            mount = replace(mount, read_only=True)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        disk = identify(path)
        held = ScsiMount(self, Member(holder))
        try:
            with self._monitor.lock:
                self._join_attachment(held, disk, read_only=read_only, deadline=deadline)
                if mount is not None:
                    self._join_mount(held, mount, guest_path, deadline=deadline)
                self._monitor.check_alive(f"cannot use {disk.path} for {holder}")
                held._member.standing = Standing.HOLDING
        except BaseException as error:
            self._roll_back(held, error)
            raise
        return held

    def release_all(self, shares: Iterable[ScsiMount]) -> None:
        """Give shares back in order, waiting for the host's detaches once.

        Every one is attempted. Raises DiskError when some failed: those are still held, and this
        may be called again with the same shares.
        """
        pending = list(dict.fromkeys(shares))
        failures: dict[ScsiMount, BaseException] = {}
        with self._monitor.lock:
            for share in pending:
                try:
                    self._leave_mount(share)
                except DiskError as error:
                    failures[share] = error
            self._leave_attachments([each for each in pending if each not in failures], failures)
            self._bury_if_gone()
            failures = {share: error for share, error in failures.items() if not share.released}
        _raise_failures(list(failures.values()))

    def holders(self, path: str | os.PathLike[str]) -> tuple[str, ...]:
        """Return who holds the disk that `path` names, oldest first. Raises DiskError."""
        disk = identify(path)
        with self._monitor.lock:
            attachment = self._attachments.find(disk)
            return () if attachment is None else holders_of(attachment.members)

    def snapshot(self) -> ScsiSnapshot:
        """Return every attachment and mount with its state and holders, at one moment."""
        with self._monitor.lock:
            return take_snapshot(self._attachments, self._mounts, capacity=self._slots.capacity)

    def reclaim(self) -> None:
        """Take out every disk that nobody holds (left by a failed way back). Raises DiskError."""
        with self._monitor.lock:
            failures = self._reclaim(by="reclaim")
            self._bury_if_gone()
        _raise_failures(failures)

    def abandon(self, reason: str = "it was stopped") -> None:
        """Release everything without I/O: the VM is gone. Whoever waits is told; repeatable."""
        with self._monitor.lock:
            if not self._monitor.is_gone():
                self._monitor.gone = reason
            self._bury_if_gone()

    # The rest is called with the lock held, except _roll_back.

    def _join_attachment(
        self, held: ScsiMount, disk: Disk, *, read_only: bool, deadline: float | None
    ) -> None:
        """Make `held` a member of the disk's attachment, attached by whoever came first."""
        member = held._member
        doing = f"cannot attach {disk.path} for {member.holder}"
        while True:
            self._monitor.check_alive(doing)
            attachment = self._attachments.find(disk)
            if attachment is None:
                attachment = self._reserve_slot(disk, read_only=read_only, doing=doing)
            operation = attachment.operation
            if operation is not None and operation.work is not Work.ATTACH:
                self._monitor.await_outcome(operation, deadline, doing=doing)
                continue
            if operation is None and attachment.state in _LEAVING:
                self._take_out(attachment, by=member.holder)
                continue
            if operation is None and attachment.state is AttachmentState.ATTACHING:
                self._attachments.settle(attachment, by=member.holder)
                continue
            if attachment.read_only != read_only:
                if attachment.members:
                    wanted = "read-only" if read_only else "read-write"
                    raise DiskError(
                        f"{doing} {wanted}: the disk is {attachment}; release it there first"
                    )
                self._take_out(attachment, by=member.holder)
                continue
            attachment.members[member] = None
            held._attachment = attachment
            if operation is not None:
                self._share(operation, deadline, doing=doing)
            elif attachment.state is AttachmentState.RESERVED:
                self._attachments.attach(attachment, by=member.holder)
            if attachment.state is AttachmentState.ATTACHED:
                return

    def _give_back(self, disk: Disk) -> None:
        self._claims.give_back(disk, machine=self._machine)

    def _describe(self, disk: Disk) -> str:
        """Return who holds a disk here, for another machine's refusal.

        Without the lock: the other machine has its own, and two would be taken in either order.
        """
        attachment = self._attachments.find(disk)
        return "held by nobody" if attachment is None else describe_holders(attachment.members)

    def _reserve_slot(self, disk: Disk, *, read_only: bool, doing: str) -> Attachment:
        self._claims.take(disk, machine=self._machine, read_only=read_only, holders=self._describe)
        try:
            return self._reserve_free_slot(disk, read_only=read_only, doing=doing)
        except BaseException:
            if self._attachments.find(disk) is None:
                self._give_back(disk)
            raise

    def _reserve_free_slot(self, disk: Disk, *, read_only: bool, doing: str) -> Attachment:
        attachment = self._attachments.reserve(disk, read_only=read_only)
        if attachment is None:
            self._reclaim(by="an acquire that needs a slot")
            self._monitor.check_alive(doing)
            attachment = self._attachments.find(disk) or self._attachments.reserve(
                disk, read_only=read_only
            )
        if attachment is None:
            names = list(dict.fromkeys(n for each in self._attachments for n in each.members))
            raise NoSlotError(
                f"{doing}: all {self._slots.capacity} SCSI slots are taken "
                f"({len(self._slots.reserved)} more reserved); release a disk first. "
                f"They are {describe_holders(names[:8])}{', …' if len(names) > 8 else ''}"
            )
        return attachment

    def _join_mount(
        self,
        held: ScsiMount,
        config: MountConfig,
        guest_path: str | None,
        *,
        deadline: float | None,
    ) -> None:
        """Make `held` a member of the mount it asks for, mounted by whoever came first."""
        attachment, member = held._attachment, held._member
        assert attachment is not None
        doing = f"cannot mount {attachment.path} for {member.holder}"
        while True:
            self._monitor.check_alive(doing)
            mount = self._mounts.find(attachment.slot, config)
            obstacle = mount
            if obstacle is None and guest_path is not None:
                obstacle = self._mounts.at(guest_path)
            if obstacle is None:
                obstacle = self._mounts.clashing(attachment.slot, config)
            operation = None if obstacle is None else obstacle.operation
            if operation is not None and operation.work is Work.UNMOUNT:
                self._monitor.await_outcome(operation, deadline, doing=doing)
                continue
            if obstacle is not None and operation is None and _is_leftover(obstacle):
                self._mounts.unmount(obstacle, by=member.holder)
                continue
            clash = self._mounts.clashing(attachment.slot, config)
            if clash is not None:
                raise DiskError(
                    f"{doing}: the partition is mounted with {clash.config} and would be changed "
                    f"under {clash}; ask for the same file system and encryption"
                )
            if mount is None and obstacle is not None:
                raise DiskError(f"{doing} at {guest_path}: the path has {obstacle}")
            if mount is None:
                mount = self._mounts.reserve(attachment.slot, config, guest_path)
            mount.members[member] = None
            held._mount = mount
            if operation is not None:
                self._share(operation, deadline, doing=doing)
            elif mount.state is MountState.RESERVED:
                self._mounts.mount(mount, by=member.holder)
                attachment.seen = True
            if mount.state is MountState.MOUNTED:
                return

    def _share(self, operation: Operation, deadline: float | None, *, doing: str) -> None:
        """Wait for someone's attach or mount as its joiner; its failure is ours."""
        self._monitor.await_outcome(operation, deadline, doing=doing)
        if isinstance(operation.error, Exception):
            raise DiskError(f"{doing}: {operation.error}") from operation.error
        # Success, or the one at work was interrupted: that says nothing about the disk.

    def _leave_mount(self, share: ScsiMount) -> None:
        """Give up the share of a mount; the last member unmounts. Raises DiskError."""
        mount, member = share._mount, share._member
        while not self._monitor.is_gone() and mount is not None and member in mount.members:
            if mount.state is MountState.UNMOUNTED:
                return  # someone who needed the path finished a failed release of ours
            if len(mount.members) > 1:
                del mount.members[member]
            elif mount.operation is not None:
                mount.operation.wait(None)
            else:
                self._mounts.unmount(mount, by=member.holder)
                mount.members.clear()

    def _leave_attachments(
        self, shares: Sequence[ScsiMount], failures: dict[ScsiMount, BaseException]
    ) -> None:
        """Give up shares of attachments; the last member detaches, in one batch with others."""
        pending = [share for share in shares if not share.released]
        while pending and not self._monitor.is_gone():
            blocked: Operation | None = None
            last: dict[Attachment, ScsiMount] = {}
            for share in list(pending):
                attachment, member = share._attachment, share._member
                if (
                    attachment is None
                    or attachment.state is AttachmentState.DETACHED
                    or member not in attachment.members
                ):
                    pending.remove(share)
                    member.standing = Standing.RELEASED
                elif attachment.operation is not None and len(attachment.members) == 1:
                    blocked = attachment.operation
                elif len(attachment.members) > 1:
                    del attachment.members[member]
                else:
                    last[attachment] = share
            if last:
                failed = self._attachments.detach(list(last), by=next(iter(last.values())).holder)
                for attachment, error in failed.items():
                    failures[last[attachment]] = error
                    pending.remove(last[attachment])
                    if not isinstance(error, Exception):
                        return  # interrupted: the rest stays held
            elif blocked is not None:
                blocked.wait(None)

    def _take_out(self, attachment: Attachment, *, by: str) -> None:
        """Detach a disk that nobody holds, or that a failed release left half-way."""
        _raise_failures(list(self._attachments.detach([attachment], by=by).values()))

    def _reclaim(self, *, by: str) -> list[BaseException]:
        unheld = [each for each in self._attachments if not each.members and each.operation is None]
        return list(self._attachments.detach(unheld, by=by).values()) if unheld else []

    def _roll_back(self, held: ScsiMount, error: BaseException) -> None:
        """Give up what a failed acquire had reserved; a failure is noted on its error."""
        try:
            self.release_all([held])
        except DiskError as failure:
            error.add_note(f"and on the way back: {failure}")
        finally:
            with self._monitor.lock:
                for record in (held._mount, held._attachment):
                    if record is not None:
                        record.members.pop(held._member, None)
                held._member.standing = Standing.RELEASED

    def _bury_if_gone(self) -> None:
        """Once the VM is gone: nothing is attached, mounted or held, and nobody waits."""
        if self._monitor.is_gone():
            self._mounts.clear()
            self._attachments.clear()


_LEAVING = (AttachmentState.EJECTING, AttachmentState.EJECTED, AttachmentState.DETACHING)


def _is_leftover(mount: Mount) -> bool:
    """Nobody holds it, or the guest was asked for a change and did not confirm it."""
    return mount.state in (MountState.MOUNTING, MountState.UNMOUNTING) or (
        mount.state is MountState.MOUNTED and not mount.members
    )


def _raise_failures(failures: Sequence[BaseException]) -> None:
    """Raise the one failure, or a DiskError that names all; an interrupt goes first."""
    for failure in failures:
        if not isinstance(failure, Exception) or len(failures) == 1:
            raise failure
    if failures:
        reasons = "; ".join(str(failure) for failure in failures)
        raise DiskError(f"{len(failures)} disks failed, this may be repeated: {reasons}")

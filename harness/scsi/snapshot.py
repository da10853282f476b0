"""What is attached, mounted and held at one moment, as plain values for checks and messages."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.scsi.attachments import Attachment, AttachmentState
from harness.scsi.identity import DiskIdentity, identify
from harness.scsi.mountconfig import MountConfig
from harness.scsi.mounts import Mount, MountState, MountTable
from harness.scsi.sharing import Member, Standing, holders_of
from harness.scsi.slots import Slot


@dataclass(frozen=True, slots=True)
class MountInfo:
    """One mount; `waiting` counts acquires under way that share it."""

    guest_path: str
    config: MountConfig
    state: MountState
    holders: tuple[str, ...]
    waiting: int

    @property
    def refcount(self) -> int:
        """How many hold it."""
        return len(self.holders)


@dataclass(frozen=True, slots=True)
class AttachmentInfo:
    """One attachment and its mounts; `waiting` counts acquires under way that share it."""

    slot: Slot
    identity: DiskIdentity
    path: Path
    read_only: bool
    state: AttachmentState
    holders: tuple[str, ...]
    waiting: int
    mounts: tuple[MountInfo, ...]

    @property
    def refcount(self) -> int:
        """How many hold it, mounted or not."""
        return len(self.holders)


@dataclass(frozen=True, slots=True)
class ScsiSnapshot:
    """Every attachment, by slot; `free_slots` leaves reserved ones out."""

    attachments: tuple[AttachmentInfo, ...]
    free_slots: int

    @property
    def mounts(self) -> tuple[MountInfo, ...]:
        """Every mount, by slot."""
        return tuple(mount for each in self.attachments for mount in each.mounts)

    def of(self, path: str | os.PathLike[str]) -> AttachmentInfo | None:
        """Return the attachment of the disk that `path` names. Raises DiskError."""
        identity = identify(path).identity
        return next((each for each in self.attachments if each.identity == identity), None)


def take_snapshot(
    attachments: Iterable[Attachment], mounts: MountTable, *, capacity: int
) -> ScsiSnapshot:
    """Return the state of both tables. Their lock is held."""
    infos = tuple(
        AttachmentInfo(
            slot=each.slot,
            identity=each.disk.identity,
            path=each.path,
            read_only=each.read_only,
            state=each.state,
            holders=holders_of(each.members),
            waiting=_waiting(each.members),
            mounts=tuple(_describe(mount) for mount in mounts.on(each.slot)),
        )
        for each in attachments
    )
    return ScsiSnapshot(infos, capacity - len(infos))


def _describe(mount: Mount) -> MountInfo:
    return MountInfo(
        guest_path=mount.guest_path,
        config=mount.config,
        state=mount.state,
        holders=holders_of(mount.members),
        waiting=_waiting(mount.members),
    )


def _waiting(members: Iterable[Member]) -> int:
    return sum(member.standing is Standing.WAITING for member in members)

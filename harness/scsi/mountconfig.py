"""How a partition of a disk is mounted in the guest, and when two such wishes are one mount."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import NamedTuple

from harness.errors import UsageError
from harness.gcs.prot import DeviceVerityInfo


class MountKey(NamedTuple):
    """What tells the mounts of one disk apart. The guest path is no part of it."""

    partition: int
    read_only: bool
    block_device: bool
    options: tuple[str, ...]


class Formatting(NamedTuple):
    """What is done to the partition before the mount; all mounts of a partition must agree."""

    filesystem: str
    ensure_filesystem: bool
    encrypted: bool
    verity: DeviceVerityInfo | None


@dataclass(frozen=True, slots=True)
class MountConfig:
    """One wish for a mount (GCS `MappedVirtualDisk`, without slot and path).

    `partition` 0 is the whole disk. `block_device` makes the guest path a link to the device
    instead of a mount. `ensure_filesystem` formats with `filesystem` unless it is there already.
    `encrypted` formats at every mount: such a partition is mounted once and shared, never twice.
    With `verity` the guest checks every block that it reads of a read-only partition.
    """

    partition: int = 0
    read_only: bool = False
    options: tuple[str, ...] = ()
    filesystem: str = ""
    ensure_filesystem: bool = False
    encrypted: bool = False
    block_device: bool = False
    verity: DeviceVerityInfo | None = None

    def __post_init__(self) -> None:
        if self.partition < 0:
            raise UsageError(f"partition {self.partition}: partitions start at 1, 0 is the disk")
        if self.ensure_filesystem and not self.filesystem:
            raise UsageError("ensure_filesystem needs the name of a file system")
        if self.verity is not None and not self.read_only:
            raise UsageError("verity is for read-only mounts: nothing may change the blocks")

    @property
    def key(self) -> MountKey:
        """What a sharer must agree in: options are compared regardless of order and case.

        Source: hcsshim internal/controller/device/scsi compares them so.
        """
        options = {option.strip().lower() for option in self.options} - {""}
        return MountKey(self.partition, self.read_only, self.block_device, tuple(sorted(options)))

    @property
    def formatting(self) -> Formatting:
        """What this mount may do to the content of the partition."""
        return Formatting(self.filesystem, self.ensure_filesystem, self.encrypted, self.verity)


def clean_guest_path(path: str) -> str:
    """Return an absolute guest path in its one clean spelling. Raises UsageError."""
    if not path.startswith("/"):
        raise UsageError(f"guest path {path!r} is not absolute")
    return "/" + posixpath.normpath(path).lstrip("/")

"""What the metastore holds: snapshots, scratch disks, and who uses which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from typing import NewType, Self

SnapshotId = NewType("SnapshotId", int)
"""Number of a snapshot and name of its directory; kept by Commit, never given out twice."""

ScratchId = NewType("ScratchId", int)
"""Number of a scratch disk and name of its directory; never given out twice."""


class Kind(IntEnum):
    """What a snapshot is; the numbers of containerd.services.snapshots.v1.Kind."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3

    @property
    def word(self) -> str:
        """The kind as filters and people write it: `view`, `active` or `committed`."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Info:
    """A snapshot as Stat and Walk give it; times are nanoseconds since the Unix epoch."""

    name: str
    kind: Kind = Kind.ACTIVE
    parent: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    created_ns: int = 0
    updated_ns: int = 0

    @property
    def created(self) -> datetime:
        """When it was prepared, or committed for a committed one; UTC."""
        return datetime.fromtimestamp(self.created_ns / 1e9, UTC)

    @property
    def updated(self) -> datetime:
        """When it was last prepared, committed or updated; UTC."""
        return datetime.fromtimestamp(self.updated_ns / 1e9, UTC)


@dataclass(frozen=True, slots=True)
class Usage:
    """Disk space in bytes and number of inodes."""

    size: int = 0
    inodes: int = 0

    def __add__(self, other: Self) -> Usage:
        return Usage(self.size + other.size, self.inodes + other.inodes)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What mounts are made of: a snapshot's number and its parents', nearest first."""

    id: SnapshotId
    kind: Kind
    parent_ids: tuple[SnapshotId, ...]


@dataclass(frozen=True, slots=True)
class Scratch:
    """A scratch disk: virtual size in bytes, and its place ("" is the store's own directory)."""

    id: ScratchId
    size: int
    location: str


@dataclass(frozen=True, slots=True)
class Holder:
    """A snapshot that uses a scratch disk; `owner` marks the one that it was made for."""

    id: SnapshotId
    key: str
    kind: Kind
    owner: bool

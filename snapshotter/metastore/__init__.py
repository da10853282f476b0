"""Snapshot metadata in SQLite; all SQL of the package lives here and in `filters`."""

from snapshotter.metastore.model import (
    Holder,
    Info,
    Kind,
    Scratch,
    ScratchId,
    Snapshot,
    SnapshotId,
    Usage,
)

__all__ = [
    "Holder",
    "Info",
    "Kind",
    "Scratch",
    "ScratchId",
    "Snapshot",
    "SnapshotId",
    "Usage",
]

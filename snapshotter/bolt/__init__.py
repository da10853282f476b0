"""bbolt files, read only: what containerd keeps its snapshots' metadata in."""

from snapshotter.bolt.file import BoltFile, Bucket

__all__ = ["BoltFile", "Bucket"]

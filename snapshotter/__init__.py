"""An LCOW snapshotter: snapshots, shared scratch disks, and the disk formats they need."""

from snapshotter.image import ImportedImage, ImportedLayer, ImportProgress, import_image
from snapshotter.metastore.model import Info, Kind, Usage
from snapshotter.mounts import Mount
from snapshotter.snapshotter import SharedDisk, Snapshotter

__all__ = [
    "ImportProgress",
    "ImportedImage",
    "ImportedLayer",
    "Info",
    "Kind",
    "Mount",
    "SharedDisk",
    "Snapshotter",
    "Usage",
    "import_image",
]

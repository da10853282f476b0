"""Reference-counted SCSI disks of a utility VM: start at `harness.scsi.manager`."""

from harness.scsi.attachments import AttachmentState
from harness.scsi.claims import DiskClaims
from harness.scsi.identity import Disk, DiskIdentity, identify
from harness.scsi.machine import ScsiGuest, ScsiHost
from harness.scsi.manager import ScsiManager, ScsiMount
from harness.scsi.mountconfig import MountConfig
from harness.scsi.mounts import MountState
from harness.scsi.slots import Slot
from harness.scsi.snapshot import AttachmentInfo, MountInfo, ScsiSnapshot

__all__ = [
    "AttachmentInfo",
    "AttachmentState",
    "Disk",
    "DiskClaims",
    "DiskIdentity",
    "MountConfig",
    "MountInfo",
    "MountState",
    "ScsiGuest",
    "ScsiHost",
    "ScsiManager",
    "ScsiMount",
    "ScsiSnapshot",
    "Slot",
    "identify",
]

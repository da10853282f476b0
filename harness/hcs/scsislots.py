"""SCSI slots of a compute system: its controllers' GUIDs, and the resource path of each LUN."""

from __future__ import annotations

import re
import uuid
from typing import Final

from harness.errors import UsageError

# hcsshim addresses SCSI controllers by fixed GUIDs, because a guest enumerates them in any order:
# UUIDv5 of this namespace and the names "0" to "3" (hcsshim internal/protocol/guestrequest).
_SCSI_NAMESPACE: Final = uuid.UUID("d422512d-2bf2-4752-809d-7b82b5fcb1b4")
MAX_SCSI_CONTROLLERS: Final = 4
LUNS_PER_CONTROLLER: Final = 64
SCSI_CONTROLLER_GUIDS: Final = tuple(
    str(uuid.uuid5(_SCSI_NAMESPACE, str(index))) for index in range(MAX_SCSI_CONTROLLERS)
)
_PATH: Final = re.compile(r"VirtualMachine/Devices/Scsi/([^/]+)/Attachments/(\d+)", re.IGNORECASE)


def controller_number(key: str) -> int:
    """Return 0 to 3 for the GUID of a SCSI controller. Raises UsageError for any other key."""
    try:
        return SCSI_CONTROLLER_GUIDS.index(key.lower())
    except ValueError:
        known = ", ".join(SCSI_CONTROLLER_GUIDS)
        raise UsageError(f"unknown SCSI controller {key!r}; the controllers are {known}") from None


def lun_number(text: str) -> int:
    """Return 0 to 63. Raises UsageError for anything else."""
    if not (text.isascii() and text.isdecimal() and int(text) < LUNS_PER_CONTROLLER):
        raise UsageError(f"LUN {text!r} is not one of 0 to {LUNS_PER_CONTROLLER - 1}")
    return int(text)


def scsi_attachment_path(controller: int, lun: int) -> str:
    """Return the resource path of a SCSI slot. Raises UsageError for a slot that does not exist."""
    if not 0 <= controller < MAX_SCSI_CONTROLLERS:
        raise UsageError(f"SCSI controller {controller} is not one of 0 to 3")
    guid = SCSI_CONTROLLER_GUIDS[controller]
    return f"VirtualMachine/Devices/Scsi/{guid}/Attachments/{lun_number(str(lun))}"


def is_scsi_attachment_path(path: str) -> bool:
    """Whether a resource path is that of a SCSI slot, of whatever controller."""
    return _PATH.fullmatch(path) is not None


def parse_scsi_attachment_path(path: str) -> tuple[int, int]:
    """Return (controller, LUN) of a resource path. Raises UsageError for any other path."""
    match = _PATH.fullmatch(path)
    if match is None:
        raise UsageError(f"{path!r} is not the resource path of a SCSI slot")
    return controller_number(match[1]), lun_number(match[2])

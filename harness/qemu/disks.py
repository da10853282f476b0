"""Disk files as QEMU opens them: which driver a file needs, and what its refusals mean.

A layer's fixed VHD is opened as raw without its footer: hcsshim's tar2ext4 leaves creator and
geometry empty, for which QEMU's own `vpc` driver shows a disk of 0 bytes.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Final

from harness.errors import ComputeServiceError
from harness.hcs.document import Attachment, AttachmentType

E_NOTIMPL: Final = 0x80004001
FILE_NOT_FOUND: Final = 0x80070002
ACCESS_DENIED: Final = 0x80070005
SHARING_VIOLATION: Final = 0x80070020
FILE_CORRUPT: Final = 0x80070570

_VHDX_SIGNATURE: Final = b"vhdxfile"  # [MS-VHDX] 2.2.1
_VHD_COOKIE: Final = b"conectix"
_VHD_FOOTER_SIZE: Final = 512
_VHD_TYPE_AT: Final = 60  # u32, big-endian: 2 is fixed
_VHD_FIXED: Final = 2


@dataclass(frozen=True, slots=True)
class DiskImage:
    """A disk file and how QEMU opens it; `size` is set where the file holds more than the disk."""

    path: str
    driver: str
    read_only: bool
    size: int | None = None
    ignore_flushes: bool = False


def inspect_disk(attachment: Attachment) -> DiskImage:
    """Return how to open an attachment's file.

    Raises ComputeServiceError naming the file: it cannot be read (0x80070002, 0x80070005), it is no
    VHDX and no fixed VHD (0x80070570), or its attachment type exists on Hyper-V alone (0x80004001).
    """
    if attachment.type is not AttachmentType.VIRTUAL_DISK:
        raise ComputeServiceError(
            f"attachment type {attachment.type or '(none)'} of {attachment.path}: the QEMU service "
            f"attaches {AttachmentType.VIRTUAL_DISK} only",
            hresult=E_NOTIMPL,
        )
    path = os.path.abspath(attachment.path)  # noqa: PTH100 - links stay: the file is named as asked
    try:
        with open(path, "rb") as file:
            head = file.read(len(_VHDX_SIGNATURE))
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _VHD_FOOTER_SIZE))
            footer = file.read(_VHD_FOOTER_SIZE)
    except OSError as error:
        hresults = {errno.ENOENT: FILE_NOT_FOUND, errno.EACCES: ACCESS_DENIED}
        raise ComputeServiceError(
            f"disk {path}: {error.strerror}", hresult=hresults.get(error.errno or 0)
        ) from error
    if head == _VHDX_SIGNATURE:
        return DiskImage(
            path, "vhdx", attachment.read_only, ignore_flushes=attachment.ignore_flushes
        )
    kind = int.from_bytes(footer[_VHD_TYPE_AT : _VHD_TYPE_AT + 4], "big")
    if footer.startswith(_VHD_COOKIE) and kind == _VHD_FIXED:
        payload = size - _VHD_FOOTER_SIZE
        return DiskImage(
            path, "raw", attachment.read_only, payload, ignore_flushes=attachment.ignore_flushes
        )
    raise ComputeServiceError(
        f"disk {path} is neither a VHDX nor a fixed VHD", hresult=FILE_CORRUPT
    )


def explain_refusal(path: str, description: str) -> ComputeServiceError:
    """Return the error for a file that QEMU did not open, with the HRESULT Windows gives for it."""
    if '" lock' in description or "another process using the image" in description:
        return ComputeServiceError(
            f"disk {path} is in use by another virtual machine or attached twice: {description}",
            hresult=SHARING_VIOLATION,
        )
    if "Permission denied" in description:
        return ComputeServiceError(f"disk {path}: {description}", hresult=ACCESS_DENIED)
    if "No such file" in description:
        return ComputeServiceError(f"disk {path}: {description}", hresult=FILE_NOT_FOUND)
    if "log that needs to be replayed" in description:
        return ComputeServiceError(
            f"disk {path} was not closed cleanly and its log must be replayed before it is opened "
            f"read-only: attach it writable once, or `qemu-img check -r all` it: {description}",
            hresult=FILE_CORRUPT,
        )
    return ComputeServiceError(f"disk {path}: {description}")

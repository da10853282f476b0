"""`ModifySettingRequest`: one change of a running compute system (HcsModifyComputeSystem)."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from harness.errors import UsageError
from harness.hcs.devices import Attachment, AttachmentType
from harness.hcs.schema import decode
from harness.hcs.scsislots import is_scsi_attachment_path, scsi_attachment_path


class RequestType(enum.StrEnum):
    """What a ModifySettingRequest does to its resource."""

    ADD = "Add"
    REMOVE = "Remove"
    PRE_ADD = "PreAdd"
    UPDATE = "Update"


@dataclass(frozen=True, slots=True)
class ModifySettingRequest:
    """One change of a running system (HcsModifyComputeSystem)."""

    resource_path: str = ""
    request_type: RequestType = RequestType.ADD
    settings: Attachment | Mapping[str, Any] | None = None
    guest_request: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that HCS takes."""
        out: dict[str, Any] = {
            "ResourcePath": self.resource_path,
            "RequestType": str(self.request_type),
        }
        if isinstance(self.settings, Attachment):
            out["Settings"] = self.settings.to_json()
        elif self.settings is not None:
            out["Settings"] = dict(self.settings)
        if self.guest_request is not None:
            out["GuestRequest"] = dict(self.guest_request)
        return out

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Return the request of a JSON object; settings of a SCSI path become an Attachment.

        Raises UsageError for an unknown field or request type, naming it.
        """
        unknown = set(raw) - {"ResourcePath", "RequestType", "Settings", "GuestRequest"}
        if unknown:
            raise UsageError(f"ModifySettingRequest: unknown field {min(unknown)}")
        path = raw.get("ResourcePath", "")
        try:
            kind = RequestType(raw.get("RequestType") or RequestType.ADD)
        except ValueError:
            raise UsageError(f"ModifySettingRequest: unknown type {raw['RequestType']!r}") from None
        settings = raw.get("Settings")
        if settings is not None and is_scsi_attachment_path(path):
            settings = decode(Attachment, settings, at="Settings")
        return cls(path, kind, settings, raw.get("GuestRequest"))


def attach_request(
    controller: int, lun: int, path: str, *, read_only: bool = False
) -> ModifySettingRequest:
    """Return the request that attaches a virtual disk to a SCSI slot."""
    return ModifySettingRequest(
        scsi_attachment_path(controller, lun),
        RequestType.ADD,
        Attachment(AttachmentType.VIRTUAL_DISK, path, read_only=read_only),
    )


def detach_request(controller: int, lun: int) -> ModifySettingRequest:
    """Return the request that detaches the disk of a SCSI slot."""
    return ModifySettingRequest(scsi_attachment_path(controller, lun), RequestType.REMOVE)

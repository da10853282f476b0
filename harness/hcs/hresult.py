"""What HCS says when it refuses: HRESULTs, result documents, and the errors that they become.

A failure has two parts: the HRESULT of the call or of its operation, and a document with the events
that led to it. The code alone is often useless (`0xC03A001A` for a sparse file), so both are told.
Source: MicrosoftDocs `virtualization/api/hcs/Reference/HCSHResult` and `SchemaReference`
(ResultError, ErrorEvent).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from harness.errors import (
    ComputeServiceError,
    ComputeTimeoutError,
    HcsCallError,
    SystemExitedError,
    SystemNotFoundError,
)

INVALID_STATE: Final = 0x80370105
SYSTEM_NOT_FOUND: Final = 0x8037010E
ALREADY_EXISTS: Final = 0x8037010F
ALREADY_STOPPED: Final = 0x80370110
OPERATION_PENDING: Final = 0x80370117
OPERATION_TIMEOUT: Final = 0x80370118
ACCESS_DENIED: Final = 0x80070005
ELEMENT_NOT_FOUND: Final = 0x80070490
"""What the system has not, or has no more, such as the disk of an empty slot."""

# HCS_E_*: the service and vmcompute.dll spell them 0xC037xxxx, computecore.dll 0x8037xxxx.
_FACILITY: Final = frozenset({0x8037, 0xC037})
_NAMES: Final = {
    0x0100: "HCS_E_TERMINATED_DURING_START",
    0x0101: "HCS_E_IMAGE_MISMATCH",
    0x0102: "HCS_E_HYPERV_NOT_INSTALLED",
    0x0105: "HCS_E_INVALID_STATE",
    0x0106: "HCS_E_UNEXPECTED_EXIT",
    0x0107: "HCS_E_TERMINATED",
    0x0108: "HCS_E_CONNECT_FAILED",
    0x0109: "HCS_E_CONNECTION_TIMEOUT",
    0x010A: "HCS_E_CONNECTION_CLOSED",
    0x010B: "HCS_E_UNKNOWN_MESSAGE",
    0x010C: "HCS_E_UNSUPPORTED_PROTOCOL_VERSION",
    0x010D: "HCS_E_INVALID_JSON",
    0x010E: "HCS_E_SYSTEM_NOT_FOUND",
    0x010F: "HCS_E_SYSTEM_ALREADY_EXISTS",
    0x0110: "HCS_E_SYSTEM_ALREADY_STOPPED",
    0x0111: "HCS_E_PROTOCOL_ERROR",
    0x0112: "HCS_E_INVALID_LAYER",
    0x0113: "HCS_E_WINDOWS_INSIDER_REQUIRED",
    0x0114: "HCS_E_SERVICE_NOT_AVAILABLE",
    0x0115: "HCS_E_OPERATION_NOT_STARTED",
    0x0116: "HCS_E_OPERATION_ALREADY_STARTED",
    0x0117: "HCS_E_OPERATION_PENDING",
    0x0118: "HCS_E_OPERATION_TIMEOUT",
    0x0119: "HCS_E_OPERATION_SYSTEM_CALLBACK_ALREADY_SET",
    0x011A: "HCS_E_OPERATION_RESULT_ALLOCATION_FAILED",
    0x011B: "HCS_E_ACCESS_DENIED",
    0x011C: "HCS_E_GUEST_CRITICAL_ERROR",
    0x011D: "HCS_E_PROCESS_INFO_NOT_AVAILABLE",
    0x011E: "HCS_E_SERVICE_DISCONNECT",
    0x011F: "HCS_E_PROCESS_ALREADY_STOPPED",
}
_NOT_FOUND: Final = frozenset({0x010E})
_EXITED: Final = frozenset({0x0100, 0x0106, 0x0107, 0x0110, 0x011C})
_TIMED_OUT: Final = frozenset({0x0109, 0x0118})

_NO_HYPERV: Final = "enable Hyper-V and its hypervisor (lcowlab provision does), then restart"
_WHO: Final = "run it as SYSTEM, an administrator, or a member of Hyper-V Administrators"
_MENDS: Final = {
    0x80370102: _NO_HYPERV,
    0x80370114: _NO_HYPERV,
    0x8037011B: _WHO,
    0x8037011E: "the service vmcompute ended: look at Get-Service vmcompute, then run it again",
    ACCESS_DENIED: f"{_WHO}; a disk must be readable by the virtual machine's own account",
    0x80070020: "another program or virtual machine has the file open",
    0xC03A001A: "the file is sparse, compressed or encrypted on its volume: copy it whole "
    "(compact /u, fsutil sparse setflag FILE 0)",
}


def unsigned(hresult: int) -> int:
    """Return an HRESULT as a number of 32 bits, as it is written."""
    return hresult & 0xFFFFFFFF


def failed(hresult: int) -> bool:
    """Whether an HRESULT, signed or not, is a failure."""
    return bool(hresult & 0x80000000)


def normal(hresult: int) -> int:
    """Return an HRESULT in the spelling of computecore.dll, unsigned."""
    code = unsigned(hresult)
    return 0x80370000 | code & 0xFFFF if code >> 16 in _FACILITY else code


def name_of(hresult: int) -> str:
    """Return the name of an HCS HRESULT; "" for one of somebody else."""
    code = unsigned(hresult)
    return _NAMES.get(code & 0xFFFF, "") if code >> 16 in _FACILITY else ""


def hcs_error(call: str, hresult: int, document: str) -> ComputeServiceError:
    """Return the error for a failed call, from its HRESULT and its result document ("" for none).

    SystemNotFoundError, SystemExitedError, ComputeTimeoutError (of the service, not of the caller),
    else HcsCallError; `hresult` is in computecore.dll's spelling, unsigned.
    """
    code = normal(hresult)
    events = _events(document)
    said = ": ".join(part for part in (call, name_of(code), " | ".join(events)) if part)
    if mend := _MENDS.get(code, ""):
        said = f"{said}; {mend}"
    low = code & 0xFFFF if code >> 16 in _FACILITY else -1
    if low in _NOT_FOUND:
        return SystemNotFoundError(said, hresult=code)
    if low in _EXITED:
        return SystemExitedError(said, hresult=code)
    if low in _TIMED_OUT:
        return ComputeTimeoutError(said, hresult=code)
    return HcsCallError(said, hresult=code, call=call, events=events)


def parse_document(document: str) -> Mapping[str, Any]:
    """Return the object of a result document; an empty one for what is none."""
    try:
        found = json.loads(document) if document else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _events(document: str) -> tuple[str, ...]:
    """Return what a ResultError says, its events before its own message, nothing twice."""
    error = parse_document(document)
    if not error:
        return (document.strip(),) if document.strip() else ()
    told = [event.get("Message") for event in _objects(error.get("ErrorEvents"))]
    told.append(error.get("ErrorMessage"))
    return tuple(dict.fromkeys(" ".join(str(text).split()) for text in told if text))


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []

"""What HCS tells of a system's end: SystemExitStatus and CrashReport, in our words.

Source: MicrosoftDocs `virtualization/api/hcs/SchemaReference`. Linux guests fill `CrashLog`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.hcs.hresult import name_of, unsigned
from harness.hcs.panic import PanicScanner
from harness.hcs.service import ExitType


def exit_type_of(told: object) -> ExitType:
    """Return HCS' NotificationType as ours; `None` and `Unknown` are nothing that was asked for."""
    try:
        return ExitType(str(told))
    except ValueError:
        return ExitType.UNEXPECTED


def exit_reason_of(document: Mapping[str, Any]) -> str:
    """Return why a system ended, from its SystemExitStatus."""
    status = unsigned(int(document.get("Status") or 0))
    told = f"{document.get('ExitType', 'no exit type')}, status {status:#010x}"
    return f"{told} {name_of(status)}".strip()


def crash_message_of(document: Mapping[str, Any]) -> str:
    """Return a kernel's last words from a CrashReport, else its crash parameters."""
    log = str(document.get("CrashLog") or "").replace("\r\n", "\n").strip()
    scanner = PanicScanner()
    if (found := scanner.feed(log.encode() + b"\n")) is not None:
        return found
    if log:
        return log.splitlines()[-1][-500:]
    parameters = document.get("CrashParameters") or []
    return "the guest crashed: " + " ".join(f"{int(each):#x}" for each in parameters)

"""What a host's WinRM lets through: asked once, before anything depends on it."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from harness.errors import AuthError, RemoteCommandError
from harness.remote.deadline import Deadline
from harness.remote.hostpython import load_script, python_argv, script_input
from harness.remote.shells import UTF8_CODE_PAGE
from harness.remote.transport import Transport
from harness.remote.winrm import WinRM
from harness.remote.wire import DEFAULT_ENVELOPE_KIB

EVERY_BYTE: Final = bytes(range(256)) + b"\r\n\n\r\x1a\x00" + bytes(reversed(range(256)))
"""All values, and the sequences that text modes are known to change (CR LF, Ctrl-Z)."""

_DEVICE_GUARD: Final = "root/Microsoft/Windows/DeviceGuard"
_MOST_SKEW_S: Final = 300.0  # Kerberos refuses more
_FEW_SHELLS: Final = 5


class CodeIntegrity(enum.Enum):
    """Whether a policy (WDAC) decides which programs run (Win32_DeviceGuard)."""

    OFF = 0
    AUDIT = 1
    ENFORCED = 2


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found; None where the host did not let us see, or nothing there could tell.

    `quotas` are winrm/config's numbers by their names there, such as `Winrs/MaxShellsPerUser`.
    """

    envelope_kib: int
    quotas: Mapping[str, int]
    code_page: int | None
    transparent: bool | None
    language_mode: str | None
    code_integrity: CodeIntegrity | None
    clock_skew_s: float | None

    @property
    def problems(self) -> tuple[str, ...]:
        """What to mend, a sentence each, with how."""
        found = []
        if self.clock_skew_s is not None and abs(self.clock_skew_s) > _MOST_SKEW_S:
            found.append(
                f"its clock is {self.clock_skew_s:+.0f} s off: Kerberos refuses over "
                f"{_MOST_SKEW_S:.0f} s; w32tm /resync"
            )
        if self.code_page not in (None, UTF8_CODE_PAGE):
            found.append(f"its shells stay in code page {self.code_page}: output may be garbled")
        if self.transparent is False:
            found.append("streams do not pass every byte: files go as base64, a third slower")
        if self.language_mode == "NoLanguage":
            found.append("PowerShell runs no scripts for us: use another session configuration")
        if self.code_integrity is CodeIntegrity.ENFORCED:
            found.append("a code integrity policy is enforced: it must allow our Python")
        shells = self.quotas.get("Winrs/MaxShellsPerUser")
        if shells is not None and shells < _FEW_SHELLS:
            found.append(f"only {shells} shells for a user: provisioning raises it to 30")
        return tuple(found)


def probe(transport: WinRM, *, deadline: Deadline, python: str | None = None) -> Probe:
    """Return what a host's WinRM lets through.

    `python` is an interpreter there, if one is known: only it can say whether bytes pass
    unchanged. Raises RemoteError when the host cannot be reached or does not let us in.
    """
    try:
        config = transport.config(deadline=deadline)
    except (AuthError, RemoteCommandError) as error:
        if error.code in (None, 401):
            raise
        config = {}  # only administrators may read it
    return Probe(
        envelope_kib=int(config.get("MaxEnvelopeSizekb") or DEFAULT_ENVELOPE_KIB),
        quotas={name: int(text) for name, text in config.items() if text.isdecimal()},
        code_page=_code_page(transport, deadline),
        transparent=passes_every_byte(transport, python, deadline=deadline) if python else None,
        language_mode=_language_mode(transport, deadline),
        code_integrity=_code_integrity(transport, deadline),
        clock_skew_s=transport.clock_skew_s,
    )


def _code_page(transport: WinRM, deadline: Deadline) -> int | None:
    done = transport.run(["chcp"], deadline=deadline, idempotent=True)
    number = re.search(r"\d+", done.text)  # the words around it are in the host's language
    return int(number[0]) if number else None


def passes_every_byte(transport: Transport, python: str, *, deadline: Deadline) -> bool | None:
    """Return whether the streams of a process on the host pass all bytes both ways.

    `python` is an interpreter there; None where it does not run. Raises RemoteError.
    """
    done = transport.run(
        python_argv(python),
        stdin=script_input(load_script("echo"), {"length": len(EVERY_BYTE)}) + EVERY_BYTE,
        deadline=deadline,
        idempotent=True,
    )
    return done.stdout == EVERY_BYTE if done.exit_code == 0 else None


def _language_mode(transport: WinRM, deadline: Deadline) -> str | None:
    try:
        return transport.language_mode(deadline=deadline)
    except (AuthError, RemoteCommandError):
        return None  # no PowerShell remoting here, or not for us


def _code_integrity(transport: WinRM, deadline: Deadline) -> CodeIntegrity | None:
    try:
        instances = transport.cim("Win32_DeviceGuard", namespace=_DEVICE_GUARD, deadline=deadline)
    except (AuthError, RemoteCommandError):
        return None
    levels = [each.get("UsermodeCodeIntegrityPolicyEnforcementStatus") for each in instances]
    known = [int(level) for level in levels if isinstance(level, str) and level in ("0", "1", "2")]
    return CodeIntegrity(max(known)) if known else None

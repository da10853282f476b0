r"""Which user rights the accounts of virtual machines have: said, with the mend, never changed.

The worker process of each virtual machine logs on as a service, as a member of NT VIRTUAL
MACHINE\Virtual Machines (S-1-5-83-0), and needs the right to make symbolic links. Installing
Hyper-V grants both; a group policy that sets the lists takes them away, and every start then fails
with 0x80070569. Source: Microsoft's "Logon Failures Involving Virtual Machines in Windows Server
2012", and `secedit /export`.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from harness.hosts.steps import Assessment, Look, State
from harness.remote.deadline import Deadline
from harness.remote.winrm import WinRM

VIRTUAL_MACHINES: Final = "S-1-5-83-0"
_EVERYONE: Final = "S-1-1-0"
_RIGHT: Final = re.compile(r"\s*(Se\w+)\s*=\s*(.*?)\s*")
_NEEDED: Final = {
    "SeServiceLogonRight": "Log on as a service",
    "SeCreateSymbolicLinkPrivilege": "Create symbolic links",
}
_DENIED: Final = {
    "SeDenyServiceLogonRight": "Deny log on as a service",
    "SeDenyBatchLogonRight": "Deny log on as a batch job",
}
_BATCH: Final = "SeBatchLogonRight"
_MEND: Final = (
    "in secpol.msc, Local Policies, User Rights Assignment; where a group policy sets the list, "
    "do it there and run gpupdate /force"
)


def read_user_rights(winrm: WinRM, *, deadline: Deadline) -> Mapping[str, frozenset[str]] | None:
    """Return who has each user right, SIDs where Windows knows them; None where it cannot be read.

    Rights that nobody has are left out.
    """
    # It names no secret, and our folder may not be there yet.
    file = rf"C:\Windows\Temp\lcowlab-rights-{uuid.uuid4().hex}.inf"
    # One command: it ends on the host whatever becomes of us.
    line = (
        f"secedit /export /cfg {file} /areas USER_RIGHTS /quiet >nul & type {file} & "
        f"del /f /q {file}"
    )
    done = winrm.run(("cmd", "/d", "/c", line), deadline=deadline, idempotent=True)
    return parse_user_rights(done.stdout)


def parse_user_rights(exported: bytes) -> Mapping[str, frozenset[str]] | None:
    """Return the rights in what secedit exported: UTF-16, or what `type` made of it.

    None where that is no export.
    """
    if exported[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = exported.decode("utf-16", errors="replace")
    else:
        text = exported.decode(errors="replace")
    _, found, rest = text.partition("[Privilege Rights]")
    if not found:
        return None
    section = rest.partition("\n[")[0]
    rights = {}
    for line in section.splitlines():
        if match := _RIGHT.fullmatch(line):
            names = (each.strip().lstrip("*") for each in match[2].split(","))
            rights[match[1]] = frozenset(
                VIRTUAL_MACHINES if name.lower().endswith("\\virtual machines") else name
                for name in names
                if name
            )
    return rights


@dataclass(frozen=True, slots=True)
class Rights:
    """The accounts of virtual machines may log on and make links."""

    name: str = "user-rights"
    elevated: bool = False

    def assess(self, look: Look) -> Assessment:
        """See `Step.assess`."""
        rights = read_user_rights(look.winrm, deadline=look.deadline)
        if rights is None:
            return Assessment(State.NOTE, "secedit does not export them: they are not known")
        denied = [
            f'"{title}" ({right}) names them: take S-1-5-83-0 out {_MEND}'
            for right, title in _DENIED.items()
            if rights.get(right, frozenset()) & {VIRTUAL_MACHINES, _EVERYONE}
        ]
        lacking = [
            f'"{title}" ({right}) is not theirs: add NT VIRTUAL MACHINE\\Virtual Machines '
            f"(S-1-5-83-0) {_MEND}"
            for right, title in _NEEDED.items()
            if not rights.get(right, frozenset()) & {VIRTUAL_MACHINES, _EVERYONE}
        ]
        if denied or (lacking and look.facts.features.get("Microsoft-Hyper-V") == "enabled"):
            found = "; ".join(denied + lacking)
            return Assessment(State.BLOCKED, f"virtual machines cannot start (0x80070569): {found}")
        if lacking:
            return Assessment(
                State.NOTE, f"Hyper-V grants it when it is installed; until then {lacking[0]}"
            )
        batch = "has" if VIRTUAL_MACHINES in rights.get(_BATCH, frozenset()) else "does not have"
        return Assessment(
            State.FINE,
            f"service and links are theirs; it {batch} batch, which nothing of ours asks",
        )

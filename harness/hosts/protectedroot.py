r"""The one folder on a host where anything of ours lives: SYSTEM's and Administrators' alone.

::

    missing ── New-Item ──► inherited ── icacls ──► locked ── New-Item folders ──► ready
                               │ holds our folders already: somebody else made them
                               └──► UnprotectedRootError

Everybody may make folders in `C:\ProgramData`: one that waits there under our name, or was opened
up since, is not trusted. Owner and DACL are read from the host before every elevated step.
Source: [MS-DTYP] 2.5.1 (SDDL).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from harness.errors import RemoteCommandError, UnprotectedRootError
from harness.hosts.actions import Action, powershell, program
from harness.remote.deadline import Deadline
from harness.remote.powershell import Command
from harness.remote.psrp import Plain
from harness.remote.winrm import WinRM

FOLDERS: Final = ("journal", "lease", "cache", "agent", "bundle", "deploy", "python")
_SYSTEM: Final = "S-1-5-18"
_ADMINISTRATORS: Final = "S-1-5-32-544"
_TRUSTED: Final = {"SY": _SYSTEM, "BA": _ADMINISTRATORS}
_SDDL: Final = re.compile(r"O:(?P<owner>S-[\d-]+|[A-Z]{2})(?:G:(?:S-[\d-]+|[A-Z]{2}))?D:(?P<d>.*)")
_ACE: Final = re.compile(r"\(([^()]*)\)")
_FULL: Final = frozenset({"FA", "0x1f01ff", "GA"})


@dataclass(frozen=True, slots=True)
class RootState:
    """What was found: whether it exists, which of our folders do, and what is wrong with its DACL.

    `wrong` is empty for a protected root.
    """

    exists: bool
    folders: frozenset[str]
    wrong: str
    owned: bool


@dataclass(frozen=True, slots=True)
class ProtectedRoot:
    """The root of one host; `path` is absolute."""

    path: str

    def inside(self, *names: str) -> str:
        """Return a path below the root."""
        return "\\".join([self.path, *names])

    def read(self, winrm: WinRM, *, deadline: Deadline) -> RootState:
        """Return what is there now. Raises RemoteError."""
        try:
            # As a rule all is there: then one command says all.
            lists = self._lists(winrm, (self.path, *map(self.inside, FOLDERS)), deadline)
        except RemoteCommandError:
            return self._search(winrm, deadline)
        return self._judge(frozenset(FOLDERS), lists)

    def _search(self, winrm: WinRM, deadline: Deadline) -> RootState:
        paths = (self.path, *map(self.inside, FOLDERS))
        there = winrm.powershell(
            Command.build("Test-Path", {"LiteralPath": paths}), deadline=deadline
        )
        exists, *folders = (each is True for each in there)
        found = frozenset(name for name, each in zip(FOLDERS, folders, strict=True) if each)
        if not exists:
            return RootState(
                exists=False, folders=found, wrong="there is no such folder", owned=False
            )
        ours = (self.path, *(self.inside(name) for name in FOLDERS if name in found))
        try:
            lists = self._lists(winrm, ours, deadline)
        except RemoteCommandError as error:
            return RootState(exists=True, folders=found, wrong=str(error), owned=False)
        return self._judge(found, lists)

    def _lists(self, winrm: WinRM, paths: tuple[str, ...], deadline: Deadline) -> tuple[Plain, ...]:
        return winrm.powershell(Command.build("Get-Acl", {"LiteralPath": paths}), deadline=deadline)

    def _judge(self, found: frozenset[str], lists: tuple[Plain, ...]) -> RootState:
        """Judge the lists of the root and of those of our folders that were found, in order."""
        owner, wrong = judge_sddl(_sddl(lists[0]))
        owned = owner in _TRUSTED.values()
        names = (name for name in FOLDERS if name in found)
        for name, each in zip(names, lists[1:], strict=True):
            # Made before the root was locked, it would still belong to whoever made it.
            inner, what = judge_sddl(_sddl(each), inherits=True)
            if inner not in _TRUSTED.values() or (what and not wrong):
                wrong, owned = f"{self.inside(name)}: {what}", False
        return RootState(exists=True, folders=found, wrong=wrong, owned=owned)

    def verify(self, winrm: WinRM, *, deadline: Deadline) -> None:
        """Return if the root is ours alone. Raises UnprotectedRootError saying what is wrong."""
        state = self.read(winrm, deadline=deadline)
        if state.wrong:
            raise UnprotectedRootError(
                f"{self.path} cannot be trusted: {state.wrong}; look at what is in it, remove it, "
                "and run lcowlab provision again",
                host=winrm.host,
            )

    def mend(self, state: RootState, *, host: str) -> tuple[Action, ...]:
        """Return what makes the root ready; nothing where it is.

        Raises UnprotectedRootError for a folder that others may have filled.
        """
        if state.exists and state.wrong and (state.folders or not state.owned):
            raise UnprotectedRootError(
                f"{self.path} exists and cannot be trusted: {state.wrong}; look at what is in it, "
                "remove it, and run lcowlab provision again",
                host=host,
            )
        actions: list[Action] = []
        if not state.exists:
            actions.append(_directory(self.path))
        if state.wrong:
            # By SID: the names are translated on a Windows in another language.
            actions.append(program("icacls", self.path, "/setowner", f"*{_ADMINISTRATORS}"))
            actions.append(
                program(
                    "icacls",
                    self.path,
                    "/inheritance:r",
                    "/grant:r",
                    f"*{_SYSTEM}:(OI)(CI)F",
                    f"*{_ADMINISTRATORS}:(OI)(CI)F",
                )
            )
        actions.extend(
            _directory(self.inside(name)) for name in FOLDERS if name not in state.folders
        )
        return tuple(actions)


def _directory(path: str) -> Action:
    return powershell("New-Item", {"Path": (path,), "ItemType": "Directory"})


def _sddl(acl: Plain) -> str:
    return str(acl.get("Sddl", "")) if isinstance(acl, dict) else ""


def judge_sddl(sddl: str, *, inherits: bool = False) -> tuple[str, str]:
    """Return the owner's SID, and what is wrong with an SDDL text (empty if it is as it must be).

    It must belong to SYSTEM or Administrators, and let exactly these two in, fully and for all
    that is made below. `inherits` allows that it got these entries from its parent.
    """
    match = _SDDL.fullmatch(sddl.partition("S:(")[0])
    if match is None:
        return "", f"its security descriptor is unreadable: {sddl!r}"
    owner = _TRUSTED.get(match["owner"], match["owner"])
    if owner not in _TRUSTED.values():
        return owner, f"it belongs to {owner}"
    flags = match["d"].partition("(")[0]
    if "P" not in flags and not inherits:
        return owner, "it inherits from its parent"
    full: set[str] = set()
    for text in _ACE.findall(match["d"]):
        kind, inherit, rights, _, _, sid, *_ = text.split(";")
        sid = _TRUSTED.get(sid, sid)
        if kind != "A" or sid not in _TRUSTED.values():
            return owner, f"its list has an entry {text}"
        if rights.lower() in {each.lower() for each in _FULL} and {"OI", "CI"} <= _pairs(inherit):
            full.add(sid)
    if lacking := sorted(set(_TRUSTED.values()) - full):
        return owner, f"full access is lacking for {', '.join(lacking)}"
    return owner, ""


def _pairs(flags: str) -> set[str]:
    return {flags[at : at + 2] for at in range(0, len(flags), 2)}

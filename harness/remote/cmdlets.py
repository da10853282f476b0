"""Every PowerShell command that is ever sent to a host, with its parameters and what comes back.

The list is short on purpose: what Python on the host can do, Python does; what a native program
does (`icacls`, `schtasks`, `powercfg`, `bcdedit`, `secedit`, `wevtutil`, `shutdown`) is an argv.
Nothing here needs a pipeline, a .NET method or a script block, so that all of it works in
Constrained Language Mode. A pretend host implements exactly these.

Sources: the reference pages of the Microsoft modules Dism, ScheduledTasks, NetSecurity, Defender,
BitLocker and Microsoft.PowerShell.{Core,Management,Security,Utility,Archive,Diagnostics}.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


class Kind(enum.Enum):
    """What a parameter takes, and what stands for it in Python."""

    TEXT = "str"
    TEXTS = "tuple[str, ...]"
    INTEGER = "int"
    SWITCH = "bool"
    BYTES = "bytes"
    SCALAR = "str | int | tuple[str, ...]"
    TABLE = "dict[str, str | int | tuple[str, ...]]"


@dataclass(frozen=True, slots=True)
class Cmdlet:
    """One command: parameters by name, the required ones, and the properties of its results.

    `repeatable` says that running it twice leaves what running it once leaves: only such a command
    is sent again when the connection dropped and nobody knows whether it ran.
    """

    name: str
    parameters: Mapping[str, Kind]
    required: frozenset[str]
    returns: tuple[str, ...]
    repeatable: bool


def _cmdlet(
    name: str,
    required: Mapping[str, Kind],
    optional: Mapping[str, Kind],
    *,
    returns: str,
    once: str = "",
) -> tuple[str, Cmdlet]:
    """Return a row; `once` says why the command must not run a second time, where that is so."""
    return name, Cmdlet(
        name=name,
        parameters=MappingProxyType({**required, **optional}),
        required=frozenset(required),
        returns=tuple(returns.split()),
        repeatable=once == "",
    )


_TEXT, _TEXTS, _SWITCH = Kind.TEXT, Kind.TEXTS, Kind.SWITCH

CMDLETS: Final[Mapping[str, Cmdlet]] = MappingProxyType(
    dict(
        (
            # Features: the optional-feature commands work on Windows Server and client alike.
            _cmdlet(
                "Get-WindowsOptionalFeature",
                {"Online": _SWITCH, "FeatureName": _TEXT},
                {},
                # State: Enabled, Disabled, EnablePending, DisablePending, or payload removed
                returns="FeatureName State RestartRequired",
            ),
            _cmdlet(
                "Enable-WindowsOptionalFeature",
                {"Online": _SWITCH, "FeatureName": _TEXTS, "NoRestart": _SWITCH},
                {"All": _SWITCH, "Source": _TEXTS, "LimitAccess": _SWITCH},
                returns="Online RestartNeeded",
            ),
            # Registry and files, by the item commands; registry paths start with HKLM:\.
            _cmdlet("Test-Path", {"LiteralPath": _TEXTS}, {}, returns=""),  # bools
            _cmdlet(
                "Get-ItemProperty",
                {"LiteralPath": _TEXTS},
                {"Name": _TEXTS},
                returns="PSPath",  # and a property for every value
            ),
            _cmdlet(
                "Set-ItemProperty",
                {"LiteralPath": _TEXTS, "Name": _TEXT, "Value": Kind.SCALAR},
                {"Type": _TEXT},  # String, DWord, QWord, MultiString, ExpandString
                returns="",
            ),
            _cmdlet(
                "Remove-ItemProperty",
                {"LiteralPath": _TEXTS, "Name": _TEXTS},
                {},
                returns="",
                once="a second time there is no such value",
            ),
            _cmdlet(
                "New-Item",
                {"Path": _TEXTS},
                {"ItemType": _TEXT, "Force": _SWITCH},  # Directory; none for a registry key
                returns="PSPath",
                once="a second time the item exists",
            ),
            _cmdlet(
                "Set-Item",  # WSMan:\localhost\Shell\MaxShellsPerUser and its neighbours
                {"LiteralPath": _TEXTS, "Value": Kind.SCALAR},
                {"Force": _SWITCH},
                returns="",
            ),
            _cmdlet("Get-Acl", {"LiteralPath": _TEXTS}, {}, returns="Path Owner Sddl"),
            # The way to bring a file to a host that has neither Python nor a route back to us.
            _cmdlet(
                "Add-Content",
                {"LiteralPath": _TEXTS, "Value": Kind.BYTES, "Encoding": _TEXT},  # Byte
                {},
                returns="",
                once="appends",
            ),
            _cmdlet(
                "Get-FileHash",
                {"LiteralPath": _TEXTS, "Algorithm": _TEXT},
                {},
                returns="Algorithm Hash Path",  # Hash: upper-case hexadecimal
            ),
            _cmdlet(
                "Expand-Archive",
                {"LiteralPath": _TEXT, "DestinationPath": _TEXT},
                {"Force": _SWITCH},
                returns="",
            ),
            _cmdlet("Get-Service", {"Name": _TEXTS}, {}, returns="Name Status StartType"),
            # Scheduled tasks: the XML carries principal, settings and action.
            _cmdlet(
                "Register-ScheduledTask",
                {"TaskName": _TEXT, "TaskPath": _TEXT, "Xml": _TEXT},
                {"User": _TEXT, "Force": _SWITCH},
                returns="TaskName TaskPath State",
            ),
            _cmdlet(
                "Get-ScheduledTask",
                {"TaskName": _TEXTS, "TaskPath": _TEXTS},
                {},
                returns="TaskName TaskPath State",  # State: Ready, Running, Disabled, Queued
            ),
            _cmdlet(
                "Get-ScheduledTaskInfo",
                {"TaskName": _TEXT, "TaskPath": _TEXT},
                {},
                returns="TaskName TaskPath LastRunTime LastTaskResult",
            ),
            _cmdlet(
                "Start-ScheduledTask",
                {"TaskName": _TEXT, "TaskPath": _TEXT},
                {},
                returns="",
                once="starts a task",
            ),
            _cmdlet(
                "Unregister-ScheduledTask",
                {"TaskName": _TEXTS, "TaskPath": _TEXTS, "Confirm": _SWITCH},
                {},
                returns="",
                once="a second time there is no such task",
            ),
            _cmdlet(
                "Get-NetFirewallRule",
                {"Name": _TEXTS},
                {},
                returns="Name DisplayName Enabled Direction Action",
            ),
            _cmdlet(
                "New-NetFirewallRule",
                {"Name": _TEXT, "DisplayName": _TEXT, "Direction": _TEXT, "Action": _TEXT},
                {
                    "Protocol": _TEXT,
                    "LocalPort": _TEXTS,
                    "RemoteAddress": _TEXTS,
                    "Profile": _TEXTS,
                    "Program": _TEXT,
                },
                returns="Name DisplayName Enabled Direction Action",
                once="a second time the rule exists",
            ),
            _cmdlet(
                "Get-MpComputerStatus",
                {},
                {},
                returns="AMServiceEnabled RealTimeProtectionEnabled IsTamperProtected",
            ),
            _cmdlet("Get-MpPreference", {}, {}, returns="ExclusionPath ExclusionProcess"),
            _cmdlet(
                "Add-MpPreference",
                {},
                {"ExclusionPath": _TEXTS, "ExclusionProcess": _TEXTS},
                returns="",
            ),
            _cmdlet(
                "Get-BitLockerVolume",
                {"MountPoint": _TEXTS},
                {},
                returns="MountPoint VolumeStatus ProtectionStatus",
            ),
            _cmdlet(
                "Get-WinEvent",
                {"FilterHashtable": Kind.TABLE},
                {"MaxEvents": Kind.INTEGER},
                returns="TimeCreated Id LevelDisplayName ProviderName LogName Message",
            ),
        )
    )
)

LANGUAGE_MODE_SCRIPT: Final = "$ExecutionContext.SessionState.LanguageMode"
"""The one script: prints FullLanguage, ConstrainedLanguage or RestrictedLanguage.

No command shows it: serialising `ExecutionContext` stops before its depth. A NoLanguage endpoint
refuses it, which is an answer as well.
"""

"""Steps that change settings: firewall, scanner, power, dumps, logs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from harness.errors import RemoteCommandError
from harness.hosts.actions import Action, powershell, program
from harness.hosts.facts import registry_values
from harness.hosts.steps import Assessment, Look, State
from harness.remote.powershell import Command

_CRASH_CONTROL: Final = r"HKLM:\SYSTEM\CurrentControlSet\Control\CrashControl"
_HIGH_PERFORMANCE: Final = "8c5e7fda-e8bf-4a96-9a85-a6e23a8c635c"


@dataclass(frozen=True, slots=True)
class Firewall:
    """WinRM stays reachable on the port that the inventory names, from the local subnet."""

    name: str = "firewall"
    elevated: bool = True

    def assess(self, look: Look) -> Assessment:
        """See `Step.assess`."""
        rule = f"lcowlab-winrm-{look.options.port}"
        try:
            look.winrm.powershell(
                Command.build("Get-NetFirewallRule", {"Name": (rule,)}), deadline=look.deadline
            )
        except RemoteCommandError as error:
            if "NotFound" not in error.error_id:
                raise
            action = powershell(
                "New-NetFirewallRule",
                {
                    "Name": rule,
                    "DisplayName": f"lcowlab: WinRM on port {look.options.port}",
                    "Direction": "Inbound",
                    "Action": "Allow",
                    "Protocol": "TCP",
                    "LocalPort": (str(look.options.port),),
                    "RemoteAddress": ("LocalSubnet",),
                },
            )
            return Assessment(State.CHANGE, f"no rule {rule}", (action,))
        return Assessment(State.FINE, rule)


@dataclass(frozen=True, slots=True)
class Defender:
    """Our folder is excluded from scans where that is allowed; protection is never fought."""

    name: str = "defender"
    elevated: bool = True

    def assess(self, look: Look) -> Assessment:
        """See `Step.assess`."""
        path = look.options.root.path
        try:
            (status,) = look.winrm.powershell(
                Command.build("Get-MpComputerStatus"), deadline=look.deadline
            )
            (preference,) = look.winrm.powershell(
                Command.build("Get-MpPreference"), deadline=look.deadline
            )
        except (RemoteCommandError, ValueError) as error:
            return Assessment(State.NOTE, f"Defender does not answer, another product may: {error}")
        listed = preference.get("ExclusionPath") if isinstance(preference, dict) else None
        excluded = listed if isinstance(listed, list) else [listed]
        if path.lower() in {str(each).lower() for each in excluded}:
            return Assessment(State.FINE, path)
        if isinstance(status, dict) and status.get("IsTamperProtected") is True:
            return Assessment(
                State.NOTE, f"tamper protection is on: let its owner exclude {path}, disks are slow"
            )
        action = powershell("Add-MpPreference", {"ExclusionPath": (path,)})
        return Assessment(State.CHANGE, f"{path} is scanned", (action,))


@dataclass(frozen=True, slots=True)
class PowerPlan:
    """High performance: a processor that is woken from saving makes timings lie."""

    name: str = "power-plan"
    elevated: bool = True

    def assess(self, look: Look) -> Assessment:
        """See `Step.assess`."""
        plans = look.winrm.cim(
            "Win32_PowerPlan", namespace="root/cimv2/power", deadline=look.deadline
        )
        active = [each for each in plans if str(each.get("IsActive")).lower() == "true"]
        if any(_HIGH_PERFORMANCE in str(each.get("InstanceID")).lower() for each in active):
            return Assessment(State.FINE)
        name = str(active[0].get("ElementName")) if active else "unknown"
        return Assessment(
            State.CHANGE, name, (program("powercfg", "/setactive", _HIGH_PERFORMANCE),)
        )


@dataclass(frozen=True, slots=True)
class CrashDumps:
    """A kernel dump is written and kept."""

    name: str = "crash-dumps"
    elevated: bool = True

    def assess(self, look: Look) -> Assessment:
        """See `Step.assess`."""
        values = registry_values(look.winrm, _CRASH_CONTROL, deadline=look.deadline)
        wanted = {"CrashDumpEnabled": 2, "AlwaysKeepMemoryDump": 1}
        lacking = {name: value for name, value in wanted.items() if values.get(name) != value}
        actions = tuple(
            _registry(_CRASH_CONTROL, name, value, "DWord") for name, value in lacking.items()
        )
        if actions:
            return Assessment(State.CHANGE, ", ".join(lacking), actions)
        return Assessment(State.FINE)


@dataclass(frozen=True, slots=True)
class EventLogs:
    """Event logs hold what a night of tests writes."""

    name: str = "event-logs"
    elevated: bool = True

    def assess(self, look: Look) -> Assessment:
        """See `Step.assess`."""
        actions: list[Action] = []
        for log, size in look.options.event_logs.items():
            done = look.winrm.run(("wevtutil", "gl", log), deadline=look.deadline, idempotent=True)
            match = re.search(r"maxSize:\s*(\d+)", done.text)
            if match is None or int(match[1]) < size:
                actions.append(program("wevtutil", "sl", log, f"/ms:{size}"))
        if actions:
            return Assessment(State.CHANGE, f"{len(actions)} logs are too small", tuple(actions))
        return Assessment(State.FINE)


def _registry(key: str, name: str, value: str | int, kind: str) -> Action:
    return powershell(
        "Set-ItemProperty",
        {"LiteralPath": (key,), "Name": name, "Value": value, "Type": kind},
    )

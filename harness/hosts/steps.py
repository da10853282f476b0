"""What provisioning looks at and changes: small steps, each reads the host and says what to run.

A step keeps nothing between two looks: what it finds is the host's own state, so that a second
apply, or one after a controller that died, does exactly what is still lacking.
"""

from __future__ import annotations

import datetime
import enum
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from harness.errors import RemoteCommandError, UnprotectedRootError
from harness.hosts.actions import Action, powershell, program
from harness.hosts.facts import HostFacts, registry_values
from harness.hosts.hostagent import FOLDER, SYSTEM, TASK, HostAgent
from harness.hosts.hostscripts import script_source
from harness.hosts.protectedroot import ProtectedRoot
from harness.remote.deadline import Deadline
from harness.remote.powershell import Command, Value
from harness.remote.winrm import WinRM

GIB: Final = 1 << 30
MIB: Final = 1 << 20
_LEAST_BUILD: Final = 17763  # Windows Server 2019: the first whose HCS takes LCOW utility VMs
_UPDATE_SETTINGS: Final = r"HKLM:\SOFTWARE\Microsoft\WindowsUpdate\UX\Settings"
_CRASH_CONTROL: Final = r"HKLM:\SYSTEM\CurrentControlSet\Control\CrashControl"
_HIGH_PERFORMANCE: Final = "8c5e7fda-e8bf-4a96-9a85-a6e23a8c635c"


class State(enum.Enum):
    """What a step found."""

    FINE = "fine"
    CHANGE = "change"  # its actions are to run
    RESTART = "restart"  # what is lacking comes with the next restart
    BLOCKED = "blocked"  # nobody but the owner of the host can mend it
    NOTE = "note"  # not as we would like it, and not ours to change


@dataclass(frozen=True, slots=True)
class Assessment:
    """What a step found and what it would run.

    `in_force_after_restart` says that its actions show only after a restart.
    """

    state: State
    detail: str = ""
    actions: tuple[Action, ...] = ()
    in_force_after_restart: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """What a host shall be; sizes in bytes. `feature_source` is a path on the host."""

    root: ProtectedRoot
    port: int
    python: str = "python"
    least_python: tuple[int, int] = (3, 12)
    feature_source: str = ""
    least_memory: int = 8 * GIB
    least_disk: int = 40 * GIB
    quotas: Mapping[str, int] = field(
        default_factory=lambda: {
            r"MaxEnvelopeSizekb": 8192,
            r"Shell\MaxMemoryPerShellMB": 4096,
            r"Shell\MaxProcessesPerShell": 100,
            r"Shell\MaxShellsPerUser": 100,
            r"Service\MaxConcurrentOperationsPerUser": 4000,
        }
    )
    event_logs: Mapping[str, int] = field(
        default_factory=lambda: {"System": 64 * MIB, "Application": 64 * MIB}
    )


@dataclass(frozen=True, slots=True)
class Look:
    """What every step gets: the way to the host, what it is, what it shall be."""

    winrm: WinRM
    facts: HostFacts
    options: Options
    deadline: Deadline


class Step(Protocol):
    """One thing that a provisioned host has."""

    @property
    def name(self) -> str:
        """Its name in plans and journals."""
        ...

    @property
    def elevated(self) -> bool:
        """Whether the protected root must stand before it."""
        ...

    def assess(self, look: Look) -> Assessment:
        """Return what there is and what is to be done. Raises RemoteError."""
        ...


@dataclass(frozen=True, slots=True)
class Preflight:
    """What no command can mend: build, virtualisation, memory, disk."""

    name: str = "preflight"
    elevated: bool = False

    def assess(self, look: Look) -> Assessment:
        """See `Step.assess`."""
        facts, options = look.facts, look.options
        wrong = []
        if facts.build < _LEAST_BUILD:
            wrong.append(f"build {facts.build} is older than {_LEAST_BUILD} (Server 2019)")
        if not facts.virtualization:
            wrong.append("no virtualisation: enable it in the firmware, or expose it to this VM")
        if facts.memory < options.least_memory:
            wrong.append(
                f"{facts.memory // GIB} GiB of memory, {options.least_memory // GIB} needed"
            )
        drive = options.root.path[:2].upper()
        disk = facts.disks.get(drive)
        if disk is None:
            wrong.append(f"there is no drive {drive}")
        elif disk.free < options.least_disk:
            wrong.append(
                f"{disk.free // GIB} GiB free on {drive}, {options.least_disk // GIB} needed"
            )
        if facts.code_integrity == "enforced":
            wrong.append("a code-integrity policy is enforced: allow our Python in it")
        if wrong:
            return Assessment(State.BLOCKED, "; ".join(wrong))
        return Assessment(State.FINE, f"build {facts.build}, {facts.memory // GIB} GiB")


@dataclass(frozen=True, slots=True)
class BitLocker:
    """A volume that asks for a key at boot stays down after a restart: said, not changed."""

    name: str = "bitlocker"
    elevated: bool = False

    def assess(self, look: Look) -> Assessment:
        """See `Step.assess`."""
        drive = look.options.root.path[:2]
        try:
            (volume,) = look.winrm.powershell(
                Command.build("Get-BitLockerVolume", {"MountPoint": (drive,)}),
                deadline=look.deadline,
            )
        except (RemoteCommandError, ValueError):
            return Assessment(State.FINE, "not installed")
        status = str(volume.get("ProtectionStatus")) if isinstance(volume, dict) else ""
        if status in ("On", "1"):
            return Assessment(
                State.NOTE, f"{drive} is protected: a restart must not ask for a PIN or key"
            )
        return Assessment(State.FINE, "off")


@dataclass(frozen=True, slots=True)
class PendingRestart:
    """Windows waits for a restart: features are not installed on top of that."""

    name: str = "pending-restart"
    elevated: bool = False

    def assess(self, look: Look) -> Assessment:
        """See `Step.assess`."""
        reasons = look.facts.pending_restart
        if reasons:
            return Assessment(State.RESTART, ", ".join(reasons))
        return Assessment(State.FINE)


@dataclass(frozen=True, slots=True)
class Root:
    """The protected root."""

    name: str = "protected-root"
    elevated: bool = False

    def assess(self, look: Look) -> Assessment:
        """See `Step.assess`."""
        root = look.options.root
        state = root.read(look.winrm, deadline=look.deadline)
        try:
            actions = root.mend(state, host=look.winrm.host)
        except UnprotectedRootError as error:
            return Assessment(State.BLOCKED, str(error))
        if actions:
            return Assessment(State.CHANGE, state.wrong or "folders are missing", actions)
        return Assessment(State.FINE, root.path)


@dataclass(frozen=True, slots=True)
class Quotas:
    """WinRM's quotas, at least as wanted; they hold from the next start of WinRM on."""

    name: str = "winrm-quotas"
    elevated: bool = True

    def assess(self, look: Look) -> Assessment:
        """See `Step.assess`."""
        config = look.winrm.config(deadline=look.deadline)
        actions: list[Action] = []
        found = []
        for key, wanted in look.options.quotas.items():
            text = config.get(key.replace("Shell\\", "Winrs\\").replace("\\", "/"), "")
            if text.isdigit() and int(text) >= wanted:
                continue
            found.append(f"{key} {text or 'unknown'} < {wanted}")
            actions.append(
                powershell(
                    "Set-Item",
                    {
                        "LiteralPath": (rf"WSMan:\localhost\{key}",),
                        "Value": wanted,
                        "Force": True,
                    },
                )
            )
        if actions:
            detail = ", ".join(found)
            return Assessment(State.CHANGE, detail, tuple(actions), in_force_after_restart=True)
        return Assessment(State.FINE)


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
class UpdatePause:
    """Windows Update pauses for a week: it must not restart the host under a test."""

    name: str = "update-pause"
    elevated: bool = True

    def assess(self, look: Look) -> Assessment:
        """See `Step.assess`."""
        now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        values = registry_values(look.winrm, _UPDATE_SETTINGS, deadline=look.deadline)
        until = str(values.get("PauseUpdatesExpiryTime", ""))
        least = _zulu(now + datetime.timedelta(days=2))
        if until >= least:  # both are ISO 8601 in UTC, which sorts as text
            return Assessment(State.FINE, f"until {until}")
        start, end = _zulu(now), _zulu(now + datetime.timedelta(days=7))
        actions = [
            _registry(_UPDATE_SETTINGS, f"Pause{kind}StartTime", start, "String")
            for kind in ("FeatureUpdates", "QualityUpdates", "Updates")
        ]
        actions += [
            _registry(_UPDATE_SETTINGS, f"Pause{kind}", end, "String")
            for kind in ("FeatureUpdatesEndTime", "QualityUpdatesEndTime", "UpdatesExpiryTime")
        ]
        return Assessment(State.CHANGE, f"paused until {until or 'never'}", tuple(actions))


@dataclass(frozen=True, slots=True)
class Features:
    """Hyper-V and Containers, with what they need."""

    name: str = "features"
    elevated: bool = True
    wanted: tuple[str, ...] = ("Microsoft-Hyper-V", "Containers")

    def assess(self, look: Look) -> Assessment:
        """See `Step.assess`."""
        states = {name: self._state(look, name) for name in self.wanted}
        lacking = tuple(
            name for name, state in states.items() if state not in ("Enabled", "EnablePending")
        )
        detail = ", ".join(f"{name} {state}" for name, state in states.items())
        if not lacking:
            pending = "EnablePending" in states.values()
            return Assessment(State.RESTART if pending else State.FINE, detail)
        removed = any("Payload" in states[name] for name in lacking)
        if removed and not look.options.feature_source:
            return Assessment(State.BLOCKED, f"{detail}: give its files with --feature-source")
        source: dict[str, Value] = (
            {"Source": (look.options.feature_source,), "LimitAccess": True}
            if look.options.feature_source
            else {}
        )
        action = powershell(
            "Enable-WindowsOptionalFeature",
            {"Online": True, "FeatureName": lacking, "All": True, "NoRestart": True, **source},
        )
        return Assessment(State.CHANGE, detail, (action,))

    def _state(self, look: Look, name: str) -> str:
        (found,) = look.winrm.powershell(
            Command.build("Get-WindowsOptionalFeature", {"Online": True, "FeatureName": name}),
            deadline=look.deadline,
        )
        return str(found.get("State")) if isinstance(found, dict) else "unknown"


@dataclass(frozen=True, slots=True)
class HypervisorLaunch:
    """The boot loader starts the hypervisor, and it runs."""

    name: str = "hypervisor"
    elevated: bool = True

    def assess(self, look: Look) -> Assessment:
        """See `Step.assess`."""
        done = look.winrm.run(
            ("bcdedit", "/enum", "{current}"), deadline=look.deadline, idempotent=True
        )
        match = re.search(r"hypervisorlaunchtype\s+(\w+)", done.text)
        if match is not None and match[1].lower() == "off":
            action = program("bcdedit", "/set", "{current}", "hypervisorlaunchtype", "auto")
            return Assessment(State.CHANGE, "launch type off", (action,))
        if not look.facts.hypervisor_present:
            return Assessment(State.RESTART, "it does not run yet")
        return Assessment(State.FINE, "runs")


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


@dataclass(frozen=True, slots=True)
class Python:
    """CPython that runs isolated: what agent, leases and deployments are made of."""

    name: str = "python"
    elevated: bool = True

    def assess(self, look: Look) -> Assessment:
        """See `Step.assess`."""
        options = look.options
        done = look.winrm.run(
            (options.python, "-I", "-c", "import sys;print(*sys.version_info[:2])"),
            deadline=look.deadline,
            idempotent=True,
        )
        words = done.text.split()
        least = ".".join(map(str, options.least_python))
        if done.exit_code != 0 or len(words) != 2:
            return Assessment(
                State.BLOCKED,
                f"{options.python} does not run: install CPython {least} (the full installer, "
                "not the embeddable zip), or name one with --python",
            )
        if (int(words[0]), int(words[1])) < options.least_python:
            return Assessment(State.BLOCKED, f"Python {'.'.join(words)}, {least} needed")
        return Assessment(State.FINE, f"{options.python}, {'.'.join(words)}")


@dataclass(frozen=True, slots=True)
class InstallAgent:
    """Puts the host agent in its place and starts it; an `Action`."""

    root: ProtectedRoot
    python: str

    @property
    def text(self) -> str:
        """See `Action.text`."""
        script = self.root.inside("agent", "agent.py")
        return (
            f"copy agent.py to {script}; register and start {FOLDER}{TASK} as {SYSTEM}: "
            f'{self.python} -I -u -X utf8 "{script}" "{self.root.inside("agent")}"'
        )

    def run(self, winrm: WinRM, *, deadline: Deadline) -> None:
        """See `Action.run`."""
        HostAgent(winrm, self.root, self.python).install(deadline=deadline)


@dataclass(frozen=True, slots=True)
class Agent:
    """The host agent is there, is ours to the byte, and answers as SYSTEM."""

    name: str = "agent"
    elevated: bool = True

    def assess(self, look: Look) -> Assessment:
        """See `Step.assess`."""
        root, options = look.options.root, look.options
        action = InstallAgent(root, options.python)
        script = root.inside("agent", "agent.py")
        there = look.winrm.powershell(
            Command.build("Test-Path", {"LiteralPath": (script,)}), deadline=look.deadline
        )
        if there != (True,):
            return Assessment(State.CHANGE, "not installed", (action,))
        (found,) = look.winrm.powershell(
            Command.build("Get-FileHash", {"LiteralPath": (script,), "Algorithm": "SHA256"}),
            deadline=look.deadline,
        )
        ours = hashlib.sha256(script_source("agent").encode()).hexdigest()
        if not isinstance(found, dict) or str(found.get("Hash")).lower() != ours:
            return Assessment(State.CHANGE, "another version", (action,))
        try:
            (task,) = look.winrm.powershell(
                Command.build("Get-ScheduledTask", {"TaskName": (TASK,), "TaskPath": (FOLDER,)}),
                deadline=look.deadline,
            )
        except RemoteCommandError:
            return Assessment(State.CHANGE, "no task", (action,))
        if not isinstance(task, dict) or task.get("State") != "Running":
            return Assessment(State.CHANGE, "the task does not run", (action,))
        identity = HostAgent(look.winrm, root, options.python).identity(deadline=look.deadline)
        return Assessment(State.FINE, f"runs as {identity['user']}")


def standard_steps() -> tuple[Step, ...]:
    """Return the steps in the order in which they are taken."""
    return (
        Preflight(),
        BitLocker(),
        PendingRestart(),
        Root(),
        Quotas(),
        Firewall(),
        Defender(),
        PowerPlan(),
        UpdatePause(),
        Features(),
        HypervisorLaunch(),
        CrashDumps(),
        EventLogs(),
        Python(),
        Agent(),
    )


def _zulu(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _registry(key: str, name: str, value: str | int, kind: str) -> Action:
    return powershell(
        "Set-ItemProperty",
        {"LiteralPath": (key,), "Name": name, "Value": value, "Type": kind},
    )

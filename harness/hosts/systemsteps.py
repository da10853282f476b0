"""Steps that make the system: what it must have, our folder, features, Python."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from harness.errors import RemoteCommandError, UnprotectedRootError
from harness.hosts.actions import powershell, program
from harness.hosts.steps import GIB, Assessment, Look, State
from harness.remote.powershell import Command, Value

_EXPOSE: Final = (
    "switch it on outside, the machine being off: Set-VMProcessor -ExposeVirtualizationExtensions "
    "$true (Hyper-V), cpu mode host-passthrough with nested=1 (libvirt), vhv.enable (VMware)"
)
_LEAST_BUILD: Final = 17763  # Windows Server 2019: the first whose HCS takes LCOW utility VMs


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
        if not facts.virtualization and facts.virtual_machine:
            wrong.append(f"no nested virtualisation in this {facts.virtual_machine}: {_EXPOSE}")
        elif not facts.virtualization:
            wrong.append("no virtualisation: enable VT-x or AMD-V in the firmware")
        if not facts.second_level_translation:
            wrong.append("the processor has no second-level address translation (EPT, NPT)")
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

"""What a host is: read over CIM, winrm/config and the registry, kept, and compared.

Nothing is changed on the host. The last probe of each host lies in the cache directory, so that
the next one shows what drifted; what always moves (free space, uptime) is no drift.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Mapping
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.cachedir import cache_directory
from harness.errors import RemoteCommandError
from harness.remote.cim import Instance
from harness.remote.deadline import Deadline
from harness.remote.powershell import Command
from harness.remote.winrm import WinRM
from harness.scrubber import scrub

SCHEMA: Final = "lcowlab.hostfacts/1"
HOSTS: Final = "hosts"
CURRENT_VERSION: Final = r"HKLM:\SOFTWARE\Microsoft\Windows NT\CurrentVersion"
_SESSION_MANAGER: Final = r"HKLM:\SYSTEM\CurrentControlSet\Control\Session Manager"
_PREFETCH: Final = _SESSION_MANAGER + r"\Memory Management\PrefetchParameters"
_WINDOWS: Final = r"HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion"
# Keys whose mere existence says that a restart is waited for.
_PENDING: Final = {
    "servicing": _WINDOWS + r"\Component Based Servicing\RebootPending",
    "windows update": _WINDOWS + r"\WindowsUpdate\Auto Update\RebootRequired",
}
_FEATURES: Final = ("Microsoft-Hyper-V", "Containers", "VirtualMachinePlatform")
_SERVICES: Final = ("WinRM", "Schedule", "vmms", "vmcompute", "hns", "WinDefend")
_FEATURE_STATES: Final = {"1": "enabled", "2": "disabled", "3": "payload removed"}
_QUOTAS: Final = (
    "MaxEnvelopeSizekb",
    "MaxTimeoutms",
    "Winrs/MaxMemoryPerShellMB",
    "Winrs/MaxProcessesPerShell",
    "Winrs/MaxShellsPerUser",
    "Winrs/MaxConcurrentUsers",
    "Service/MaxConcurrentOperationsPerUser",
)
# What virtual machines call themselves, in manufacturer and model.
_VIRTUAL: Final = (
    "virtual machine",  # Hyper-V, Azure
    "vmware",
    "virtualbox",
    "qemu",
    "kvm",
    "xen",
    "google compute engine",
    "amazon ec2",
)
_VOLATILE: Final = frozenset({"probed", "clock_skew_s", "memory_free", "boot", "pending_restart"})
_KIB: Final = 1024


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BootIdentity(_Frozen):
    """Which boot of a host runs: Windows' own count of boots, and when this one began."""

    boot_id: int | None
    began: str

    def same(self, other: BootIdentity) -> bool:
        """Whether both are one boot. The count decides: the time moves when a clock is set."""
        if self.boot_id is not None and other.boot_id is not None:
            return self.boot_id == other.boot_id
        return self.began == other.began


class DiskFacts(_Frozen):
    """A fixed volume; bytes."""

    size: int
    free: int
    file_system: str


class HostFacts(_Frozen):
    """One probe of a host; sizes in bytes, `probed` in ISO 8601 and UTC."""

    probed: str
    computer: str
    caption: str
    edition: str
    version: str
    build: int
    revision: int | None
    memory: int
    memory_free: int
    logical_processors: int
    virtualization: bool = Field(
        description="A hypervisor may run: the firmware lets it, or the outer hypervisor does."
    )
    virtual_machine: str = Field("", description="Maker and model, where it is a virtual machine.")
    second_level_translation: bool = Field(True, description="Hyper-V asks for it (SLAT).")
    hypervisor_present: bool
    disks: Mapping[str, DiskFacts]
    features: Mapping[str, str]
    services: Mapping[str, str]
    quotas: Mapping[str, str]
    pending_restart: tuple[str, ...]
    language_mode: str
    code_integrity: str
    clock_skew_s: float | None
    boot: BootIdentity


class Green(_Frozen):
    """What a host was in a run that ended well."""

    what: str
    facts: HostFacts


class Change(_Frozen):
    """One thing that is not as it was; None where there was, or is, nothing."""

    what: str
    before: str | None
    after: str | None


def read_boot(winrm: WinRM, *, deadline: Deadline) -> BootIdentity:
    """Return which boot runs. Raises RemoteError."""
    # The count first: a restart between the two readings then looks like the boot before it.
    boot_id = registry_values(winrm, _PREFETCH, deadline=deadline).get("BootId")
    (system,) = winrm.cim("Win32_OperatingSystem", deadline=deadline)
    return BootIdentity(
        boot_id=boot_id if isinstance(boot_id, int) else None,
        began=_text(system, "LastBootUpTime"),
    )


def registry_values(winrm: WinRM, key: str, *, deadline: Deadline) -> Mapping[str, object]:
    """Return the values of a registry key; none where there is no such key."""
    try:
        (found,) = winrm.powershell(
            Command.build("Get-ItemProperty", {"LiteralPath": (key,)}), deadline=deadline
        )
    except RemoteCommandError as error:
        if "PathNotFound" in error.error_id:
            return {}
        raise
    except ValueError:
        return {}  # a key without values puts out nothing
    return found if isinstance(found, dict) else {}


def pending_restarts(winrm: WinRM, *, deadline: Deadline) -> tuple[str, ...]:
    """Return why Windows waits for a restart; nothing where it does not."""
    there = winrm.powershell(
        Command.build("Test-Path", {"LiteralPath": tuple(_PENDING.values())}), deadline=deadline
    )
    reasons = [name for name, found in zip(_PENDING, there, strict=True) if found is True]
    manager = registry_values(winrm, _SESSION_MANAGER, deadline=deadline)
    if manager.get("PendingFileRenameOperations"):
        reasons.append("file renames")
    return tuple(reasons)


def probe_host(winrm: WinRM, *, deadline: Deadline) -> HostFacts:
    """Return what a host is now. Raises RemoteError."""
    (system,) = winrm.cim("Win32_OperatingSystem", deadline=deadline)
    (computer,) = winrm.cim("Win32_ComputerSystem", deadline=deadline)
    processors = winrm.cim("Win32_Processor", deadline=deadline)
    disks = winrm.cim("Win32_LogicalDisk", deadline=deadline)
    features = winrm.cim("Win32_OptionalFeature", deadline=deadline)
    services = winrm.cim("Win32_Service", deadline=deadline)
    config = winrm.config(deadline=deadline)
    version = registry_values(winrm, CURRENT_VERSION, deadline=deadline)
    hypervisor = _text(computer, "HypervisorPresent").lower() == "true"
    firmware = any(
        _text(each, "VirtualizationFirmwareEnabled").lower() == "true" for each in processors
    )
    slat = any(
        _text(each, "SecondLevelAddressTranslationExtensions").lower() == "true"
        for each in processors
    )
    named = {
        _text(each, "Name"): _FEATURE_STATES.get(_text(each, "InstallState"), "unknown")
        for each in features
        if _text(each, "Name") in _FEATURES
    }
    machine = f"{_text(computer, 'Manufacturer')} {_text(computer, 'Model')}".strip()
    virtual = machine if any(word in machine.lower() for word in _VIRTUAL) else ""
    # Under our own hypervisor Windows is a partition and reports the processor's features as
    # absent. A virtual machine sees a hypervisor in any case: the outer one.
    ours = hypervisor and (not virtual or named.get("Microsoft-Hyper-V") == "enabled")
    revision = version.get("UBR")
    return HostFacts(
        probed=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        computer=_text(system, "CSName"),
        caption=_text(system, "Caption"),
        edition=str(version.get("EditionID", "")),
        version=_text(system, "Version"),
        build=int(_text(system, "BuildNumber") or 0),
        revision=revision if isinstance(revision, int) else None,
        memory=int(_text(computer, "TotalPhysicalMemory") or 0),
        memory_free=int(_text(system, "FreePhysicalMemory") or 0) * _KIB,
        logical_processors=int(_text(computer, "NumberOfLogicalProcessors") or 0),
        virtualization=firmware or ours,
        virtual_machine=virtual,
        second_level_translation=slat or ours,
        hypervisor_present=hypervisor,
        disks={
            _text(each, "DeviceID"): DiskFacts(
                size=int(_text(each, "Size") or 0),
                free=int(_text(each, "FreeSpace") or 0),
                file_system=_text(each, "FileSystem"),
            )
            for each in disks
            if _text(each, "DriveType") == "3"
        },
        features=named,
        services={
            _text(each, "Name"): f"{_text(each, 'State')}, {_text(each, 'StartMode')}".lower()
            for each in services
            if _text(each, "Name") in _SERVICES
        },
        quotas={name: config[name] for name in _QUOTAS if name in config},
        pending_restart=pending_restarts(winrm, deadline=deadline),
        language_mode=winrm.language_mode(deadline=deadline),
        code_integrity=_code_integrity(winrm, deadline),
        clock_skew_s=winrm.clock_skew_s,
        boot=read_boot(winrm, deadline=deadline),
    )


def _code_integrity(winrm: WinRM, deadline: Deadline) -> str:
    try:
        found = winrm.cim(
            "Win32_DeviceGuard", namespace="root/Microsoft/Windows/DeviceGuard", deadline=deadline
        )
    except RemoteCommandError:
        return "unknown"  # a Windows without the class
    levels = {"0": "off", "1": "audit", "2": "enforced"}
    level = _text(found[0], "UsermodeCodeIntegrityPolicyEnforcementStatus") if found else ""
    return levels.get(level, "unknown")


def _text(instance: Instance, name: str) -> str:
    value = instance.get(name)
    return value if isinstance(value, str) else ""


class FactsCache:
    """The last probe of each host, as files; a damaged one counts as none."""

    def __init__(self) -> None:
        self._folder = cache_directory(HOSTS)

    @classmethod
    def open(cls) -> Self:
        """Return the cache in `cache_directory`."""
        return cls()

    def last(self, name: str) -> HostFacts | None:
        """Return the last probe of a host, or None."""
        with contextlib.suppress(OSError, ValidationError):
            return HostFacts.model_validate_json((self._folder / f"{name}.json").read_bytes())
        return None

    def green(self, name: str) -> Green | None:
        """Return what a host was in its last green run, or None."""
        with contextlib.suppress(OSError, ValidationError):
            return Green.model_validate_json((self._folder / f"{name}.green.json").read_bytes())
        return None

    def keep_green(self, name: str, facts: HostFacts, *, what: str) -> None:
        """Keep what a host was in a run, `what`, that ended well."""
        self._write(f"{name}.green.json", Green(what=what, facts=facts))

    def keep(self, name: str, facts: HostFacts) -> None:
        """Keep a probe in place of the last one, whole or not at all."""
        self._write(f"{name}.json", facts)

    def _write(self, file: str, values: BaseModel) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        beside = self._folder / f"{file}.{os.getpid()}.new"
        beside.write_text(scrub(values.model_dump_json(indent=1)), "utf-8")
        beside.replace(self._folder / file)


def drift(before: HostFacts, after: HostFacts) -> tuple[Change, ...]:
    """Return what changed between two probes, by name, without what always moves."""
    old, new = _flat(before), _flat(after)
    return tuple(
        Change(what=name, before=old.get(name), after=new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    )


def _flat(facts: HostFacts) -> dict[str, str]:
    flat: dict[str, str] = {}

    def walk(path: str, value: object) -> None:
        if isinstance(value, Mapping):
            for key, each in value.items():
                if not (path.startswith("disks.") and key == "free"):
                    walk(f"{path}.{key}" if path else str(key), each)
        else:
            flat[path] = str(value)

    walk("", facts.model_dump(exclude=set(_VOLATILE)))
    return flat

"""What a pretend Windows host is at one moment: plain data that is written to one JSON file.

`fresh()` is a Windows Server 2022 as a lab owner hands it over: no Hyper-V, no Containers, default
quotas. What a test wants otherwise it changes before the first connection.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from harness.winrmd.acl import Acl

GIB: Final = 1 << 30

FeatureState = Literal["Enabled", "Disabled", "EnablePending", "DisabledWithPayloadRemoved"]
RegistryType = Literal["String", "ExpandString", "DWord", "QWord", "MultiString", "Binary"]
# What a value of the registry is in JSON: Binary is hexadecimal text.
RegistryData: TypeAlias = "int | str | list[str]"


@dataclass(slots=True)
class Feature:
    """An optional feature; `needs` are enabled with it by -All."""

    state: FeatureState = "Disabled"
    needs: tuple[str, ...] = ()
    needs_reboot: bool = True


@dataclass(slots=True)
class Service:
    """A Windows service. Status and start type as Get-Service names them."""

    status: Literal["Running", "Stopped"]
    start_type: Literal["Automatic", "Manual", "Disabled"]
    display_name: str = ""
    with_feature: str = ""  # exists and starts once this feature is enabled


@dataclass(slots=True)
class RegistryKey:
    """The values of one key: name to (type, data)."""

    values: dict[str, tuple[RegistryType, RegistryData]] = field(default_factory=dict)


@dataclass(slots=True)
class Disk:
    """A volume with a drive letter; sizes in bytes."""

    letter: str
    size: int
    free: int
    file_system: Literal["NTFS", "ReFS"] = "NTFS"
    bitlocker: Literal["FullyDecrypted", "FullyEncrypted"] = "FullyDecrypted"
    protection: Literal["Off", "On"] = "Off"
    suspended_reboots: int = 0


@dataclass(slots=True)
class FirewallRule:
    """An inbound or outbound rule, as New-NetFirewallRule takes it."""

    name: str
    display_name: str
    direction: Literal["Inbound", "Outbound"]
    action: Literal["Allow", "Block"]
    enabled: bool = True
    protocol: str = "Any"
    local_port: tuple[str, ...] = ("Any",)
    remote_address: tuple[str, ...] = ("Any",)
    profile: tuple[str, ...] = ("Any",)
    program: str = "Any"


@dataclass(slots=True)
class Defender:
    """Microsoft Defender: what is excluded, and what forbids to exclude."""

    installed: bool = True
    real_time: bool = True
    tamper_protected: bool = False
    exclusions_locked: bool = False  # a policy keeps local administrators out
    exclusion_path: list[str] = field(default_factory=list)
    exclusion_process: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Processor:
    """What Win32_Processor says of virtualisation."""

    name: str = "Pretend(R) Xeon(R) CPU @ 2.00GHz"
    cores: int = 8
    logical: int = 16
    manufacturer: str = "GenuineIntel"
    firmware_virtualization: bool = True
    slat: bool = True
    vm_monitor: bool = True


@dataclass(slots=True)
class Task:
    """A registered scheduled task. `last_result` 267011 is SCHED_S_TASK_HAS_NOT_RUN."""

    name: str
    path: str
    xml: str
    user: str
    command: str
    arguments: str
    directory: str
    at_boot: bool
    enabled: bool = True
    last_run: datetime.datetime | None = None
    last_result: int = 267011


@dataclass(slots=True)
class Event:
    """One record of an event log. Level 1 critical, 2 error, 3 warning, 4 information."""

    log: str
    provider: str
    id: int
    level: int
    time: datetime.datetime
    message: str


@dataclass(slots=True)
class Obstacles:
    """What the owner of a host may have decided against us.

    `language_mode` is that of every runspace. `tasks_denied` refuses to register tasks (a policy
    without the batch logon right). `feature_failures` fails that many attempts to enable features
    with 0x800f0922 first.
    `delays_s` is how long a cmdlet of that name takes before it does anything.
    """

    language_mode: Literal["FullLanguage", "ConstrainedLanguage", "NoLanguage"] = (
        "ConstrainedLanguage"
    )
    code_integrity: Literal[0, 1, 2] = 0  # off, audit, enforced
    tasks_denied: bool = False
    feature_failures: int = 0
    delays_s: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class HostState:
    """Everything. Names of registry keys and of tasks are looked up without regard to case."""

    computer_name: str
    caption: str = "Microsoft Windows Server 2022 Datacenter"
    version: str = "10.0.20348"
    build: int = 20348
    revision: int = 2700
    product_type: Literal[1, 2, 3] = 3  # workstation, domain controller, server
    memory: int = 32 * GIB
    memory_free: int = 28 * GIB
    hypervisor_present: bool = False
    # A virtual machine names its maker; it sees a hypervisor whether or not one runs in it.
    manufacturer: str = "lcowlab"
    model: str = "Pretend Host"
    inside_vm: bool = False
    hypervisor_launch: Literal["Auto", "Off"] = "Auto"
    processor: Processor = field(default_factory=Processor)
    disks: list[Disk] = field(default_factory=list)
    features: dict[str, Feature] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    registry: dict[str, RegistryKey] = field(default_factory=dict)
    wsman: dict[str, str] = field(default_factory=dict)
    # The quotas that hold: those of `wsman` when WinRM last started.
    wsman_in_force: dict[str, str] = field(default_factory=dict)
    firewall: dict[str, FirewallRule] = field(default_factory=dict)
    defender: Defender = field(default_factory=Defender)
    power_scheme: str = "381b4222-f694-41f0-9685-ff5bb260df2e"  # Balanced
    power_settings: dict[str, str] = field(default_factory=dict)
    acls: dict[str, Acl] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    event_log_sizes: dict[str, int] = field(default_factory=dict)
    user_rights: dict[str, tuple[str, ...]] = field(default_factory=dict)
    obstacles: Obstacles = field(default_factory=Obstacles)
    boots: int = 1


CURRENT_VERSION: Final = r"HKLM:\SOFTWARE\Microsoft\Windows NT\CurrentVersion"
CRASH_CONTROL: Final = r"HKLM:\SYSTEM\CurrentControlSet\Control\CrashControl"
SESSION_MANAGER: Final = r"HKLM:\SYSTEM\CurrentControlSet\Control\Session Manager"
PREFETCH: Final = SESSION_MANAGER + r"\Memory Management\PrefetchParameters"
UPDATE_SETTINGS: Final = r"HKLM:\SOFTWARE\Microsoft\WindowsUpdate\UX\Settings"
COMPONENT_SERVICING: Final = (
    r"HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Component Based Servicing"
)
# Keys whose mere existence says that a restart is waited for.
REBOOT_PENDING: Final = COMPONENT_SERVICING + r"\RebootPending"
UPDATE_REBOOT_REQUIRED: Final = (
    r"HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\WindowsUpdate\Auto Update\RebootRequired"
)
VIRTUAL_MACHINES_GROUP: Final = "S-1-5-83-0"
ADMINISTRATORS: Final = "S-1-5-32-544"


def fresh(computer_name: str) -> HostState:
    """Return the state of a new Windows Server 2022."""
    hyper_v = "Microsoft-Hyper-V"
    key = RegistryKey
    wsman = {
        r"MaxEnvelopeSizekb": "500",
        r"MaxTimeoutms": "60000",
        r"Service\AllowUnencrypted": "false",
        r"Service\MaxConcurrentOperationsPerUser": "1500",
        r"Service\MaxConnections": "300",
        r"Shell\IdleTimeout": "7200000",
        r"Shell\MaxConcurrentUsers": "10",
        r"Shell\MaxProcessesPerShell": "25",
        r"Shell\MaxMemoryPerShellMB": "1024",
        r"Shell\MaxShellsPerUser": "30",
    }
    return HostState(
        computer_name,
        disks=[Disk("C", 256 * GIB, 180 * GIB)],
        features={
            "Microsoft-Hyper-V": Feature(),
            "Microsoft-Hyper-V-Management-PowerShell": Feature(needs_reboot=False),
            "Containers": Feature(),
            "VirtualMachinePlatform": Feature(),
            "HypervisorPlatform": Feature(),
        },
        services={
            "WinRM": Service("Running", "Automatic", "Windows Remote Management (WS-Management)"),
            "Schedule": Service("Running", "Automatic", "Task Scheduler"),
            "WinDefend": Service("Running", "Automatic", "Microsoft Defender Antivirus Service"),
            "wuauserv": Service("Stopped", "Manual", "Windows Update"),
            "vmms": Service(
                "Stopped", "Automatic", "Hyper-V Virtual Machine Management", with_feature=hyper_v
            ),
            "vmcompute": Service(
                "Stopped", "Manual", "Hyper-V Host Compute Service", with_feature=hyper_v
            ),
            "hns": Service("Stopped", "Manual", "Host Network Service", with_feature=hyper_v),
        },
        registry={
            CURRENT_VERSION: key(
                {
                    "CurrentBuild": ("String", "20348"),
                    "DisplayVersion": ("String", "21H2"),
                    "EditionID": ("String", "ServerDatacenter"),
                    "InstallationType": ("String", "Server"),
                    "ProductName": ("String", "Windows Server 2022 Datacenter"),
                    "UBR": ("DWord", 2700),
                }
            ),
            CRASH_CONTROL: key(
                {"CrashDumpEnabled": ("DWord", 7), "AlwaysKeepMemoryDump": ("DWord", 0)}
            ),
            SESSION_MANAGER: key(),
            PREFETCH: key({"BootId": ("DWord", 1)}),
            UPDATE_SETTINGS: key(),
            COMPONENT_SERVICING: key(),
            r"HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Policies\System": key(
                {"EnableLUA": ("DWord", 1)}
            ),
        },
        wsman=wsman,
        wsman_in_force=dict(wsman),
        user_rights={
            "SeCreateSymbolicLinkPrivilege": (ADMINISTRATORS, VIRTUAL_MACHINES_GROUP),
            "SeServiceLogonRight": ("S-1-5-80-0", VIRTUAL_MACHINES_GROUP),
            "SeBatchLogonRight": (ADMINISTRATORS, "S-1-5-32-551"),
        },
        event_log_sizes={
            "System": 20 << 20,
            "Application": 20 << 20,
            **{
                f"Microsoft-Windows-Hyper-V-{log}": 1 << 20
                for log in (
                    "Compute-Admin",
                    "Compute-Operational",
                    "VMMS-Admin",
                    "VMMS-Operational",
                    "Worker-Admin",
                    "Worker-Operational",
                )
            },
        },
    )

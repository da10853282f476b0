"""CIM classes of the pretend host: what each instance says, computed from the host's state.

Properties have the names and types of the MOF: an integer is an integer, a datetime a datetime.
Only those that somebody here reads are given. Sources: the Win32 provider's reference pages.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from harness.winrmd.boots import Boot
from harness.winrmd.hoststate import HostState

Value: TypeAlias = "str | int | bool | datetime.datetime | tuple[str, ...] | tuple[int, ...] | None"
Instance = Mapping[str, Value]
Source: TypeAlias = Callable[[HostState, Boot], Iterable[Instance]]

_KIB: Final = 1024
# Win32_OptionalFeature.InstallState
_INSTALL_STATES: Final = {
    "Enabled": 1,
    "Disabled": 2,
    "EnablePending": 2,  # the running system does not have it yet
    "DisabledWithPayloadRemoved": 3,
}


def _operating_system(state: HostState, boot: Boot) -> Iterable[Instance]:
    yield {
        "BuildNumber": str(state.build),
        "BuildType": "Multiprocessor Free",
        "Caption": state.caption,
        "CSName": state.computer_name,
        "FreePhysicalMemory": state.memory_free // _KIB,
        "LastBootUpTime": boot.began,
        "LocalDateTime": datetime.datetime.now(datetime.UTC),
        "MUILanguages": ("en-US",),
        "OSArchitecture": "64-bit",
        "OSType": 18,
        "ProductType": state.product_type,
        "SystemDirectory": "C:\\Windows\\system32",
        "SystemDrive": "C:",
        "TotalVisibleMemorySize": state.memory // _KIB,
        "Version": state.version,
        "WindowsDirectory": "C:\\Windows",
    }


def _computer_system(state: HostState, boot: Boot) -> Iterable[Instance]:
    yield {
        "Domain": "WORKGROUP",
        "DomainRole": 2 if state.product_type == 3 else 0,
        "HypervisorPresent": state.hypervisor_present,
        "Manufacturer": state.manufacturer,
        "Model": state.model,
        "Name": state.computer_name,
        "NumberOfLogicalProcessors": state.processor.logical,
        "NumberOfProcessors": 1,
        "PartOfDomain": False,
        "SystemType": "x64-based PC",
        "TotalPhysicalMemory": state.memory,
        "Workgroup": "WORKGROUP",
    }


def _processor(state: HostState, boot: Boot) -> Iterable[Instance]:
    cpu = state.processor
    # Under a running hypervisor Windows reports the virtualisation features as absent: it is a
    # partition then. HypervisorPresent tells the two cases apart.
    shown = not state.hypervisor_present or state.inside_vm
    yield {
        "AddressWidth": 64,
        "Architecture": 9,
        "DeviceID": "CPU0",
        "Manufacturer": cpu.manufacturer,
        "Name": cpu.name,
        "NumberOfCores": cpu.cores,
        "NumberOfLogicalProcessors": cpu.logical,
        "SecondLevelAddressTranslationExtensions": cpu.slat and shown,
        "VirtualizationFirmwareEnabled": cpu.firmware_virtualization and shown,
        "VMMonitorModeExtensions": cpu.vm_monitor and shown,
    }


def _logical_disk(state: HostState, boot: Boot) -> Iterable[Instance]:
    for disk in state.disks:
        yield {
            "DeviceID": f"{disk.letter}:",
            "DriveType": 3,
            "FileSystem": disk.file_system,
            "FreeSpace": disk.free,
            "Size": disk.size,
            "VolumeName": None,
        }


def _optional_feature(state: HostState, boot: Boot) -> Iterable[Instance]:
    for name, feature in state.features.items():
        yield {"Caption": name, "InstallState": _INSTALL_STATES[feature.state], "Name": name}


def _service(state: HostState, boot: Boot) -> Iterable[Instance]:
    modes = {"Automatic": "Auto", "Manual": "Manual", "Disabled": "Disabled"}
    for name, service in state.services.items():
        needed = state.features.get(service.with_feature)
        if service.with_feature and (needed is None or needed.state != "Enabled"):
            continue
        yield {
            "DisplayName": service.display_name,
            "Name": name,
            "StartMode": modes[service.start_type],
            "Started": service.status == "Running",
            "State": service.status,
        }


def _device_guard(state: HostState, boot: Boot) -> Iterable[Instance]:
    level = state.obstacles.code_integrity
    yield {
        "CodeIntegrityPolicyEnforcementStatus": level,
        "InstanceIdentifier": "4ff40742-2649-41b8-bdd1-e80fad1cce80",
        "SecurityServicesConfigured": (0,),
        "SecurityServicesRunning": (0,),
        "UsermodeCodeIntegrityPolicyEnforcementStatus": level,
        "Version": "1.0",
        "VirtualizationBasedSecurityStatus": 0,
    }


def _defender_preference(state: HostState, boot: Boot) -> Iterable[Instance]:
    if state.defender.installed:
        yield {
            "ComputerID": "3B0D1F3C-0000-4000-8000-000000000001",
            "DisableRealtimeMonitoring": not state.defender.real_time,
            "ExclusionPath": tuple(state.defender.exclusion_path),
            "ExclusionProcess": tuple(state.defender.exclusion_process),
        }


def _defender_status(state: HostState, boot: Boot) -> Iterable[Instance]:
    if state.defender.installed:
        yield {
            "AMRunningMode": "Normal",
            "AMServiceEnabled": True,
            "ComputerID": "3B0D1F3C-0000-4000-8000-000000000001",
            "IsTamperProtected": state.defender.tamper_protected,
            "RealTimeProtectionEnabled": state.defender.real_time,
        }


def _encryptable_volume(state: HostState, boot: Boot) -> Iterable[Instance]:
    for number, disk in enumerate(state.disks):
        yield {
            "ConversionStatus": 0 if disk.bitlocker == "FullyDecrypted" else 1,
            "DeviceID": f"\\\\?\\Volume{{00000000-0000-0000-0000-{number:012x}}}\\",
            "DriveLetter": f"{disk.letter}:",
            "ProtectionStatus": 1 if disk.protection == "On" else 0,
        }


def _power_plan(state: HostState, boot: Boot) -> Iterable[Instance]:
    for name, scheme in POWER_SCHEMES.items():
        yield {
            "ElementName": name,
            "InstanceID": f"Microsoft:PowerPlan\\{{{scheme}}}",
            "IsActive": scheme == state.power_scheme,
        }


POWER_SCHEMES: Final = MappingProxyType(
    {
        "Balanced": "381b4222-f694-41f0-9685-ff5bb260df2e",
        "High performance": "8c5e7fda-e8bf-4a96-9a85-a6e23a8c635c",
        "Power saver": "a1841308-3541-4fab-bc81-f71556f20b4a",
    }
)

# Namespace and class in lower case: WMI ignores the case of both. Then the spelling.
CLASSES: Final[Mapping[tuple[str, str], tuple[str, Source]]] = MappingProxyType(
    {
        (namespace.lower(), name.lower()): (name, source)
        for namespace, name, source in (
            ("root/cimv2", "Win32_OperatingSystem", _operating_system),
            ("root/cimv2", "Win32_ComputerSystem", _computer_system),
            ("root/cimv2", "Win32_Processor", _processor),
            ("root/cimv2", "Win32_LogicalDisk", _logical_disk),
            ("root/cimv2", "Win32_OptionalFeature", _optional_feature),
            ("root/cimv2", "Win32_Service", _service),
            ("root/cimv2/power", "Win32_PowerPlan", _power_plan),
            (
                "root/cimv2/Security/MicrosoftVolumeEncryption",
                "Win32_EncryptableVolume",
                _encryptable_volume,
            ),
            ("root/Microsoft/Windows/DeviceGuard", "Win32_DeviceGuard", _device_guard),
            ("root/Microsoft/Windows/Defender", "MSFT_MpPreference", _defender_preference),
            ("root/Microsoft/Windows/Defender", "MSFT_MpComputerStatus", _defender_status),
        )
    }
)

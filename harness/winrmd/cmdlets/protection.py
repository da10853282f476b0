"""Firewall, Defender and BitLocker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Literal, cast

from harness.winrmd.cmdlets.binding import Bound, Cmdlet, CmdletError, Enumeration, Item, Output
from harness.winrmd.hoststate import FirewallRule

_SECURITY: Final = "Microsoft.PowerShell.Cmdletization.GeneratedTypes.NetSecurity."


def _rule(rule: FirewallRule) -> Item:
    return Item(
        "Microsoft.Management.Infrastructure.CimInstance#root/standardcimv2/MSFT_NetFirewallRule",
        {
            "Name": rule.name,
            "DisplayName": rule.display_name,
            "Enabled": Enumeration(_SECURITY + "Enabled", str(rule.enabled), 2 - rule.enabled),
            "Direction": Enumeration(
                _SECURITY + "Direction", rule.direction, 1 if rule.direction == "Inbound" else 2
            ),
            "Action": Enumeration(
                _SECURITY + "Action", rule.action, 2 if rule.action == "Allow" else 4
            ),
            "Profile": ", ".join(rule.profile),
        },
    )


def _get_rule(call: Bound) -> Iterator[Output]:
    state = call.host.read()
    for name in call.texts("Name"):
        rule = state.firewall.get(name.lower())
        if rule is None:
            raise CmdletError(
                "No MSFT_NetFirewallRule objects found with property 'InstanceID' equal to "
                f"'{name}'.  Verify the value of the property and retry.",
                id="CmdletizationQuery_NotFound_InstanceID,Get-NetFirewallRule",
                category="ObjectNotFound",
                reason="CimJobException",
                target=name,
            )
        yield _rule(rule)


def _new_rule(call: Bound) -> Iterator[Output]:
    name = call.text("Name")
    direction, action = call.text("Direction").title(), call.text("Action").title()
    if direction not in ("Inbound", "Outbound") or action not in ("Allow", "Block"):
        raise CmdletError(
            "Cannot process argument transformation on parameter 'Direction' or 'Action'.",
            id="ParameterArgumentTransformationError,New-NetFirewallRule",
            category="InvalidData",
            reason="ParameterBindingArgumentTransformationException",
            terminating=True,
        )
    rule = FirewallRule(
        name,
        call.text("DisplayName"),
        cast('Literal["Inbound", "Outbound"]', direction),
        cast('Literal["Allow", "Block"]', action),
        protocol=call.text("Protocol", "Any"),
        local_port=call.texts("LocalPort") if call.has("LocalPort") else ("Any",),
        remote_address=call.texts("RemoteAddress") if call.has("RemoteAddress") else ("Any",),
        profile=call.texts("Profile") if call.has("Profile") else ("Any",),
        program=call.text("Program", "Any"),
    )
    with call.host.change() as state:
        if name.lower() in state.firewall:
            raise CmdletError(
                "Cannot create a file when that file already exists.",
                id="Windows System Error 183,New-NetFirewallRule",
                category="ResourceExists",
                reason="CimException",
                target=name,
                hresult=0x800700B7,
            )
        state.firewall[name.lower()] = rule
    yield _rule(rule)


def _no_defender(command: str) -> CmdletError:
    return CmdletError(
        "Operation failed with the following error: 0x800106ba",
        id=f"HRESULT 0x800106ba,{command}",
        category="NotSpecified",
        reason="CimException",
        hresult=0x800106BA,
    )


def _get_defender_status(call: Bound) -> Iterator[Output]:
    defender = call.host.read().defender
    if not defender.installed:
        raise _no_defender("Get-MpComputerStatus")
    yield Item(
        "Microsoft.Management.Infrastructure.CimInstance"
        "#root/Microsoft/Windows/Defender/MSFT_MpComputerStatus",
        {
            "AMServiceEnabled": True,
            "AMRunningMode": "Normal",
            "RealTimeProtectionEnabled": defender.real_time,
            "IsTamperProtected": defender.tamper_protected,
        },
    )


def _get_defender_preference(call: Bound) -> Iterator[Output]:
    defender = call.host.read().defender
    if not defender.installed:
        raise _no_defender("Get-MpPreference")
    yield Item(
        "Microsoft.Management.Infrastructure.CimInstance"
        "#root/Microsoft/Windows/Defender/MSFT_MpPreference",
        {
            # Nothing excluded is null, not an empty array.
            "ExclusionPath": list(defender.exclusion_path) or None,
            "ExclusionProcess": list(defender.exclusion_process) or None,
        },
    )


def _add_defender_preference(call: Bound) -> Iterable[Output]:
    with call.host.change() as state:
        defender = state.defender
        if not defender.installed:
            raise _no_defender("Add-MpPreference")
        if defender.exclusions_locked:
            raise CmdletError(
                "You don't have enough permissions to perform the requested operation.",
                id="HRESULT 0xc0000142,Add-MpPreference",
                category="PermissionDenied",
                reason="CimException",
                hresult=0xC0000142,
            )
        for name, present in (
            ("ExclusionPath", defender.exclusion_path),
            ("ExclusionProcess", defender.exclusion_process),
        ):
            for value in call.texts(name) if call.has(name) else ():
                if value.lower() not in map(str.lower, present):
                    present.append(value)
    return ()


def _get_bitlocker(call: Bound) -> Iterator[Output]:
    disks = {f"{disk.letter}:".lower(): disk for disk in call.host.read().disks}
    for point in call.texts("MountPoint"):
        disk = disks.get(point.rstrip("\\").lower())
        if disk is None:
            raise CmdletError(
                f"{point} does not have an associated BitLocker volume.",
                id="System.Runtime.InteropServices.COMException,Get-BitLockerVolume",
                category="NotSpecified",
                reason="COMException",
                target=point,
                hresult=0x80070057,
            )
        yield Item(
            "Microsoft.BitLocker.Structures.BitLockerVolume",
            {
                "MountPoint": f"{disk.letter}:",
                "VolumeStatus": Enumeration(
                    "Microsoft.BitLocker.Structures.BitLockerVolumeStatus",
                    disk.bitlocker,
                    0 if disk.bitlocker == "FullyDecrypted" else 1,
                ),
                "ProtectionStatus": Enumeration(
                    "Microsoft.BitLocker.Structures.BitLockerVolumeProtectionStatus",
                    disk.protection,
                    1 if disk.protection == "On" else 0,
                ),
            },
        )


CMDLETS: Final = (
    Cmdlet("Get-NetFirewallRule", _get_rule, {"Name": "texts"}),
    Cmdlet(
        "New-NetFirewallRule",
        _new_rule,
        {"Name": "text", "DisplayName": "text", "Direction": "text", "Action": "text"},
        {
            "Protocol": "text",
            "LocalPort": "texts",
            "RemoteAddress": "texts",
            "Profile": "texts",
            "Program": "text",
        },
    ),
    Cmdlet("Get-MpComputerStatus", _get_defender_status),
    Cmdlet("Get-MpPreference", _get_defender_preference),
    Cmdlet(
        "Add-MpPreference",
        _add_defender_preference,
        {},
        {"ExclusionPath": "texts", "ExclusionProcess": "texts"},
    ),
    Cmdlet("Get-BitLockerVolume", _get_bitlocker, {"MountPoint": "texts"}),
)

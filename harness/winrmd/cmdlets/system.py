"""Features, services, firewall, Defender, BitLocker and event logs."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal, cast

from harness.winrmd.cmdlets.binding import Bound, Cmdlet, CmdletError, Item, Output
from harness.winrmd.host import BadPathError, find_key
from harness.winrmd.hoststate import (
    REBOOT_PENDING,
    Event,
    Feature,
    FirewallRule,
    HostState,
    RegistryKey,
    Service,
)

_DISM: Final = "Microsoft.Dism.Commands."
_LEVELS: Final = {1: "Critical", 2: "Error", 3: "Warning", 4: "Information", 5: "Verbose"}
_UNKNOWN_FEATURE: Final = 0x800F080C
_SOURCE_MISSING: Final = 0x800F081F
_INSTALL_FAILURE: Final = 0x800F0922


def _online(call: Bound) -> None:
    if not call.switch("Online"):
        raise CmdletError(
            "Parameter set cannot be resolved using the specified named parameters.",
            id="AmbiguousParameterSet",
            category="InvalidArgument",
            reason="ParameterBindingException",
            terminating=True,
        )


def _dism_error(message: str, command: str, hresult: int) -> CmdletError:
    return CmdletError(
        message,
        id=f"{_DISM}{command}",
        category="NotSpecified",
        reason="COMException",
        hresult=hresult,
    )


def _unknown_feature(name: str, command: str) -> CmdletError:
    return _dism_error(f"Feature name {name} is unknown.", command, _UNKNOWN_FEATURE)


def _feature(state: HostState, name: str) -> tuple[str, Feature] | None:
    return next(
        ((each, found) for each, found in state.features.items() if each.lower() == name.lower()),
        None,
    )


def _get_feature(call: Bound) -> Iterator[Output]:
    _online(call)
    found = _feature(call.host.read(), call.text("FeatureName"))
    if found is None:
        raise _unknown_feature(call.text("FeatureName"), "GetWindowsOptionalFeatureCommand")
    name, feature = found
    yield Item(
        "Microsoft.Dism.Commands.AdvancedFeatureObject",
        {
            "FeatureName": name,
            "State": feature.state,
            "RestartRequired": "Possible" if feature.needs_reboot else "No",
        },
    )


def _enable_feature(call: Bound) -> Iterator[Output]:
    command = "EnableWindowsOptionalFeatureCommand"
    _online(call)
    names = call.texts("FeatureName")
    with call.host.change() as state:
        failing = state.obstacles.feature_failures > 0
        state.obstacles.feature_failures = max(0, state.obstacles.feature_failures - 1)
    if failing:
        raise _dism_error("DISM failed. No operation was performed.", command, _INSTALL_FAILURE)
    with call.host.change() as state:
        for number, name in enumerate(names):
            _enable_one(call, state, name, command)
            call.streams.progress("Enable-WindowsOptionalFeature", 100 * (number + 1) // len(names))
        pending = any(feature.state == "EnablePending" for feature in state.features.values())
        if pending:
            state.registry[find_key(state, REBOOT_PENDING) or REBOOT_PENDING] = RegistryKey()
    if pending and not call.switch("NoRestart"):
        call.host.restart(after_s=0)
    yield Item(
        "Microsoft.Dism.Commands.ImageObject",
        {"Path": "", "Online": True, "RestartNeeded": pending},
    )


def _enable_one(call: Bound, state: HostState, name: str, command: str) -> None:
    found = _feature(state, name)
    if found is None:
        raise _unknown_feature(name, command)
    feature = found[1]
    for needed in feature.needs:
        other = _feature(state, needed)
        if other is None or other[1].state in ("Enabled", "EnablePending"):
            continue
        if not call.switch("All"):
            raise _dism_error(
                "One or several parent features are disabled so current feature can not be "
                "enabled. Use the -All parameter.",
                command,
                0x800F0922,
            )
        _enable_one(call, state, needed, command)
    if feature.state == "DisabledWithPayloadRemoved" and not _payload(call):
        raise _dism_error(
            'The source files could not be found. Use the "Source" option to specify the '
            "location of the files that are required to restore the feature.",
            command,
            _SOURCE_MISSING,
        )
    if feature.state in ("Disabled", "DisabledWithPayloadRemoved"):
        feature.state = "EnablePending" if feature.needs_reboot else "Enabled"


def _payload(call: Bound) -> bool:
    """Return whether a source was given that is there."""
    for source in call.texts("Source") if call.has("Source") else ():
        try:
            if any(call.host.local_path(source).iterdir()):
                return True
        except (BadPathError, OSError):
            continue
    return False


def _service(state: HostState, name: str) -> tuple[str, Service] | None:
    for each, service in state.services.items():
        if each.lower() != name.lower():
            continue
        needed = state.features.get(service.with_feature)
        if service.with_feature and (needed is None or needed.state != "Enabled"):
            return None
        return each, service
    return None


def _get_service(call: Bound) -> Iterator[Output]:
    state = call.host.read()
    for name in call.texts("Name"):
        found = _service(state, name)
        if found is None:
            raise CmdletError(
                f"Cannot find any service with service name '{name}'.",
                id="NoServiceFoundForGivenName,Microsoft.PowerShell.Commands.GetServiceCommand",
                category="ObjectNotFound",
                reason="ServiceCommandException",
                target=name,
            )
        spelled, service = found
        yield Item(
            "System.ServiceProcess.ServiceController",
            {
                "Name": spelled,
                "DisplayName": service.display_name,
                "Status": service.status,
                "StartType": service.start_type,
            },
        )


def _rule(rule: FirewallRule) -> Item:
    return Item(
        "Microsoft.Management.Infrastructure.CimInstance#root/standardcimv2/MSFT_NetFirewallRule",
        {
            "Name": rule.name,
            "DisplayName": rule.display_name,
            "Enabled": "True" if rule.enabled else "False",  # an enumeration, not a boolean
            "Direction": rule.direction,
            "Action": rule.action,
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
                "VolumeStatus": disk.bitlocker,
                "ProtectionStatus": disk.protection,
            },
        )


def _get_win_event(call: Bound) -> Iterator[Output]:
    command = "Microsoft.PowerShell.Commands.GetWinEventCommand"
    table = call.raw("FilterHashtable")
    assert isinstance(table, Mapping)
    wanted = {str(key).lower(): value for key, value in table.items()}
    unknown = wanted.keys() - {"logname", "providername", "id", "level", "starttime", "endtime"}
    if unknown:
        raise CmdletError(
            f"The parameter is incorrect: {', '.join(sorted(unknown))}",
            id=f"System.Diagnostics.Eventing.Reader.EventLogException,{command}",
            category="NotSpecified",
            reason="EventLogException",
        )
    found = [event for event in call.host.read().events if _matches(event, wanted)]
    if not found:
        raise CmdletError(
            "No events were found that match the specified selection criteria.",
            id=f"NoMatchingEventsFound,{command}",
            category="ObjectNotFound",
        )
    found.sort(key=lambda event: event.time, reverse=True)
    for event in found[: call.integer("MaxEvents", len(found))]:
        yield Item(
            "System.Diagnostics.Eventing.Reader.EventLogRecord",
            {
                "TimeCreated": event.time,
                "Id": event.id,
                "LevelDisplayName": _LEVELS.get(event.level, ""),
                "ProviderName": event.provider,
                "LogName": event.log,
                "Message": event.message,
            },
        )


def _matches(event: Event, wanted: Mapping[str, object]) -> bool:
    def among(value: object, actual: str | int) -> bool:
        each = value if isinstance(value, list | tuple) else (value,)
        return any(str(one).lower() == str(actual).lower() for one in each)

    return (
        all(
            among(wanted[name], actual)
            for name, actual in (
                ("logname", event.log),
                ("providername", event.provider),
                ("id", event.id),
                ("level", event.level),
            )
            if name in wanted
        )
        and ("starttime" not in wanted or event.time >= _moment(wanted["starttime"]))
        and ("endtime" not in wanted or event.time <= _moment(wanted["endtime"]))
    )


def _moment(value: object) -> datetime.datetime:
    try:
        moment = datetime.datetime.fromisoformat(str(value))
    except ValueError as error:
        raise CmdletError(
            f'Cannot convert value "{value}" to type "System.DateTime".',
            id="System.FormatException,Microsoft.PowerShell.Commands.GetWinEventCommand",
            category="InvalidArgument",
            reason="FormatException",
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


CMDLETS: Final = (
    Cmdlet("Get-WindowsOptionalFeature", _get_feature, {"Online": "switch", "FeatureName": "text"}),
    Cmdlet(
        "Enable-WindowsOptionalFeature",
        _enable_feature,
        {"Online": "switch", "FeatureName": "texts"},
        {"NoRestart": "switch", "All": "switch", "Source": "texts", "LimitAccess": "switch"},
    ),
    Cmdlet("Get-Service", _get_service, {"Name": "texts"}),
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
    Cmdlet("Get-WinEvent", _get_win_event, {"FilterHashtable": "table"}, {"MaxEvents": "integer"}),
)

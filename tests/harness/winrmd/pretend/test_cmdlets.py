"""The cmdlets of the pretend host: the same table as the client's, and what each does."""

from __future__ import annotations

import base64
import hashlib
import re
import zipfile
from collections.abc import Mapping

import pytest

from harness.remote import cmdlets as client
from harness.winrmd.cmdlets import CMDLETS, CmdletError, Enumeration, Item, Machine, Output, Streams
from harness.winrmd.hoststate import CURRENT_VERSION, UPDATE_SETTINGS
from tests.harness.winrmd.pretend.test_tasks import xml

QUIET = Streams(
    warning=lambda text: None,
    verbose=lambda text: None,
    progress=lambda what, percent: None,
    stopped=lambda: False,
)
_KINDS = {
    client.Kind.TEXT: "text",
    client.Kind.TEXTS: "texts",
    client.Kind.INTEGER: "integer",
    client.Kind.SWITCH: "switch",
    client.Kind.BYTES: "bytes",
    client.Kind.SCALAR: "scalar",
    client.Kind.TABLE: "table",
}


def run(machine: Machine, name: str, parameters: Mapping[str, object]) -> list[Output]:
    cmdlet = CMDLETS[name.lower()]
    call, _ = cmdlet.bind(list(parameters.items()), machine, QUIET)
    return list(cmdlet.run(call))


def one(machine: Machine, name: str, parameters: Mapping[str, object]) -> Mapping[str, object]:
    (item,) = run(machine, name, parameters)
    assert isinstance(item, Item)
    return {
        key: value.name if isinstance(value, Enumeration) else value
        for key, value in item.properties.items()
    }


def refused(machine: Machine, name: str, parameters: Mapping[str, object]) -> str:
    with pytest.raises(CmdletError) as error:
        run(machine, name, parameters)
    return error.value.id.partition(",")[0]


def test_the_host_has_exactly_the_commands_that_the_client_sends() -> None:
    assert {each.name for each in CMDLETS.values()} == set(client.CMDLETS)


@pytest.mark.parametrize("name", sorted(client.CMDLETS))
def test_both_tables_agree_on_every_parameter(name: str) -> None:
    ours, theirs = CMDLETS[name.lower()], client.CMDLETS[name]
    # The client is stricter with itself: it never leaves -NoRestart to a default.
    assert set(ours.required) <= theirs.required
    kinds = {each: _KINDS[kind] for each, kind in theirs.parameters.items()}
    assert {**ours.required, **ours.optional} == kinds


# A call of every command that puts out an object.
SHOWN: Mapping[str, Mapping[str, object]] = {
    "Get-WindowsOptionalFeature": {"Online": True, "FeatureName": "Containers"},
    "Enable-WindowsOptionalFeature": {
        "Online": True,
        "FeatureName": ["Containers"],
        "NoRestart": True,
    },
    "Get-ItemProperty": {"LiteralPath": [CURRENT_VERSION]},
    "New-Item": {"Path": ["C:\\lab"], "ItemType": "Directory"},
    "Get-Acl": {"LiteralPath": ["C:\\Windows"]},
    "Get-FileHash": {"LiteralPath": ["C:\\x"], "Algorithm": "SHA256"},
    "Get-Service": {"Name": ["WinRM"]},
    "Register-ScheduledTask": {"TaskName": "n", "TaskPath": "\\", "Xml": xml()},
    "Get-ScheduledTask": {"TaskName": ["j"], "TaskPath": ["\\"]},
    "Get-ScheduledTaskInfo": {"TaskName": "j", "TaskPath": "\\"},
    "Get-NetFirewallRule": {"Name": ["r"]},
    "New-NetFirewallRule": {
        "Name": "s",
        "DisplayName": "S",
        "Direction": "Inbound",
        "Action": "Allow",
    },
    "Get-MpComputerStatus": {},
    "Get-MpPreference": {},
    "Get-BitLockerVolume": {"MountPoint": ["C:"]},
    "Get-WinEvent": {"FilterHashtable": {"LogName": "System"}},
}


@pytest.mark.parametrize(
    "name", sorted(name for name, row in client.CMDLETS.items() if row.returns)
)
def test_results_have_the_properties_that_the_client_reads(machine: Machine, name: str) -> None:
    (machine.host.root / "x").write_bytes(b"x")
    machine.host.log("System", "p", event_id=1, level=2, message="m")
    run(machine, "Register-ScheduledTask", {"TaskName": "j", "TaskPath": "\\", "Xml": xml()})
    rule = {"Name": "r", "DisplayName": "R", "Direction": "inbound", "Action": "allow"}
    run(machine, "New-NetFirewallRule", rule)
    assert set(client.CMDLETS[name].returns) <= set(one(machine, name, SHOWN[name]))


def test_every_command_with_properties_is_looked_at() -> None:
    assert set(SHOWN) == {name for name, row in client.CMDLETS.items() if row.returns}


def test_a_feature_waits_for_the_restart(machine: Machine) -> None:
    asked = {"Online": True, "FeatureName": "microsoft-hyper-v"}
    enable = {"Online": True, "NoRestart": True, "FeatureName": ["Microsoft-Hyper-V"]}
    assert one(machine, "Enable-WindowsOptionalFeature", enable)["RestartNeeded"] is True
    assert one(machine, "Get-WindowsOptionalFeature", asked)["State"] == "EnablePending"
    pending = {
        "LiteralPath": [
            "HKLM:\\SOFTWARE\\Microsoft\\Windows\\CurrentVersion\\"
            "Component Based Servicing\\RebootPending"
        ]
    }
    assert run(machine, "Test-Path", pending) == [True]
    assert refused(machine, "Get-Service", {"Name": "vmms"}) == "NoServiceFoundForGivenName"
    machine.host.restart(after_s=0)
    assert one(machine, "Get-WindowsOptionalFeature", asked)["State"] == "Enabled"
    assert run(machine, "Test-Path", pending) == [False]
    assert one(machine, "Get-Service", {"Name": "vmms"})["Status"] == "Running"
    # What is enabled is left alone.
    assert one(machine, "Enable-WindowsOptionalFeature", enable)["RestartNeeded"] is False


def test_enabling_without_norestart_restarts(machine: Machine) -> None:
    boot = machine.host.boot
    run(
        machine,
        "Enable-WindowsOptionalFeature",
        {"Online": True, "NoRestart": False, "FeatureName": ["Containers"]},
    )
    assert machine.host.boot.number == boot.number + 1


def test_a_removed_payload_needs_a_source_that_is_there(machine: Machine) -> None:
    with machine.host.change() as state:
        state.features["Containers"].state = "DisabledWithPayloadRemoved"
    enable = {"Online": True, "NoRestart": True, "FeatureName": ["Containers"]}

    def code(**more: object) -> int:
        with pytest.raises(CmdletError) as error:
            run(machine, "Enable-WindowsOptionalFeature", {**enable, **more})
        return error.value.hresult

    assert code() == 0x800F081F
    assert code(Source=["C:\\nothing"]) == 0x800F081F
    (machine.host.root / "sxs").mkdir()
    (machine.host.root / "sxs" / "payload.cab").touch()
    run(machine, "Enable-WindowsOptionalFeature", {**enable, "Source": ["C:\\sxs"]})
    assert machine.host.read().features["Containers"].state == "EnablePending"


def test_parent_features_come_with_all(machine: Machine) -> None:
    with machine.host.change() as state:
        state.features["Containers"].needs = ("VirtualMachinePlatform",)
    enable = {"Online": True, "NoRestart": True, "FeatureName": ["Containers"]}
    with pytest.raises(CmdletError):
        run(machine, "Enable-WindowsOptionalFeature", enable)
    assert machine.host.read().features["Containers"].state == "Disabled"
    run(machine, "Enable-WindowsOptionalFeature", {**enable, "All": True})
    assert machine.host.read().features["VirtualMachinePlatform"].state == "EnablePending"


def test_an_installation_may_fail_and_then_succeed(machine: Machine) -> None:
    with machine.host.change() as state:
        state.obstacles.feature_failures = 1
    enable = {"Online": True, "NoRestart": True, "FeatureName": ["Containers"]}
    with pytest.raises(CmdletError) as error:
        run(machine, "Enable-WindowsOptionalFeature", enable)
    assert error.value.hresult == 0x800F0922
    run(machine, "Enable-WindowsOptionalFeature", enable)


@pytest.mark.parametrize(
    ("type_", "value", "read"),
    [
        ("DWord", 5, 5),
        ("DWord", -1, 0xFFFFFFFF),
        ("QWord", 1 << 40, 1 << 40),
        ("String", "x", "x"),
        ("MultiString", ["a", "b"], ["a", "b"]),
        (None, 7, 7),
        (None, "text", "text"),
    ],
)
def test_registry_values_are_read_as_they_were_set(
    machine: Machine, type_: str | None, value: object, read: object
) -> None:
    parameters = {"LiteralPath": [UPDATE_SETTINGS.upper()], "Name": "V", "Value": value}
    if type_:
        parameters["Type"] = type_
    assert run(machine, "Set-ItemProperty", parameters) == []
    asked = {"LiteralPath": [UPDATE_SETTINGS], "Name": ["v"]}
    assert one(machine, "Get-ItemProperty", asked)["V"] == read


def test_the_registry_refuses_what_is_missing_or_does_not_fit(machine: Machine) -> None:
    nothing = "HKLM:\\SOFTWARE\\Nothing"
    assert refused(machine, "Get-ItemProperty", {"LiteralPath": [nothing]}) == "PathNotFound"
    value = {"LiteralPath": [nothing], "Name": "x", "Value": 1}
    assert refused(machine, "Set-ItemProperty", value) == "PathNotFound"
    asked = {"LiteralPath": [UPDATE_SETTINGS], "Name": ["Nothing"]}
    argument = "System.Management.Automation.PSArgumentException"
    assert refused(machine, "Get-ItemProperty", asked) == argument
    for type_, bad in (("DWord", 1 << 32), ("DWord", "five"), ("Nonsense", 1)):
        wrong = {"LiteralPath": [UPDATE_SETTINGS], "Name": "x", "Value": bad, "Type": type_}
        assert refused(machine, "Set-ItemProperty", wrong) == "System.ArgumentException"
    run(machine, "New-Item", {"Path": [nothing]})
    assert run(machine, "Get-ItemProperty", {"LiteralPath": [nothing]}) == []
    assert refused(machine, "New-Item", {"Path": [nothing]}) == "System.IO.IOException"
    assert run(machine, "Set-ItemProperty", value) == []


def test_folders_are_made_once_unless_forced(machine: Machine) -> None:
    folder = {"Path": ["C:\\lab\\deep"], "ItemType": "Directory"}
    run(machine, "New-Item", folder)
    assert (machine.host.root / "lab" / "deep").is_dir()
    assert refused(machine, "New-Item", folder) == "DirectoryExist"
    run(machine, "New-Item", {**folder, "Force": True})
    assert refused(machine, "New-Item", {"Path": ["D:\\x"], "ItemType": "Directory"}) == (
        "DriveNotFound"
    )


def test_a_file_is_appended_hashed_and_unpacked(machine: Machine) -> None:
    local = machine.host.root / "x.zip"
    with zipfile.ZipFile(local, "w") as archive:
        archive.writestr("python/python.exe", b"MZ")
        archive.writestr("python/lib/a.py", b"a = 1\n")
    data = local.read_bytes()
    local.unlink()
    for part in (data[:10], data[10:]):
        run(
            machine,
            "Add-Content",
            {"LiteralPath": ["C:\\x.zip"], "Value": part, "Encoding": "Byte"},
        )
    hashed = one(machine, "Get-FileHash", {"LiteralPath": ["C:\\x.zip"], "Algorithm": "sha256"})
    assert hashed["Hash"] == hashlib.sha256(data).hexdigest().upper()
    expand = {"LiteralPath": "C:\\x.zip", "DestinationPath": "C:\\lab"}
    assert run(machine, "Expand-Archive", expand) == []
    assert (machine.host.root / "lab" / "python" / "lib" / "a.py").read_bytes() == b"a = 1\n"
    assert refused(machine, "Expand-Archive", expand) == "ExpandArchiveFileExists"
    run(machine, "Expand-Archive", {**expand, "Force": True})


@pytest.mark.parametrize("data", [b"no archive", b""])
def test_a_damaged_archive_unpacks_nothing(machine: Machine, data: bytes) -> None:
    (machine.host.root / "x.zip").write_bytes(data)
    expand = {"LiteralPath": "C:\\x.zip", "DestinationPath": "C:\\lab"}
    assert refused(machine, "Expand-Archive", expand) == "InvalidArchiveFilePath"
    assert not (machine.host.root / "lab").exists()


def test_an_archive_stays_in_its_destination(machine: Machine) -> None:
    with zipfile.ZipFile(machine.host.root / "x.zip", "w") as archive:
        archive.writestr("../Windows/evil.dll", b"x")
    expand = {"LiteralPath": "C:\\x.zip", "DestinationPath": "C:\\lab"}
    assert refused(machine, "Expand-Archive", expand) == "InvalidArchiveFilePath"
    assert not (machine.host.root / "Windows" / "evil.dll").exists()


def test_defender_takes_exclusions_unless_it_is_locked(machine: Machine) -> None:
    add = {"ExclusionPath": ["C:\\lab"], "ExclusionProcess": ["vmwp.exe"]}
    assert one(machine, "Get-MpPreference", {})["ExclusionPath"] is None
    run(machine, "Add-MpPreference", add)
    run(machine, "Add-MpPreference", {"ExclusionPath": ["c:\\LAB"]})
    assert one(machine, "Get-MpPreference", {})["ExclusionPath"] == ["C:\\lab"]
    with machine.host.change() as state:
        state.defender.exclusions_locked = True
    assert refused(machine, "Add-MpPreference", add) == "HRESULT 0xc0000142"
    with machine.host.change() as state:
        state.defender.installed = False
    assert refused(machine, "Get-MpComputerStatus", {}) == "HRESULT 0x800106ba"


def test_a_firewall_rule_is_there_once(machine: Machine) -> None:
    rule = {"Name": "lab", "DisplayName": "Lab", "Direction": "Inbound", "Action": "Allow"}
    missing = "CmdletizationQuery_NotFound_InstanceID"
    assert refused(machine, "Get-NetFirewallRule", {"Name": ["lab"]}) == missing
    run(machine, "New-NetFirewallRule", {**rule, "LocalPort": ["5986"], "Protocol": "TCP"})
    assert one(machine, "Get-NetFirewallRule", {"Name": ["LAB"]})["Enabled"] == "True"
    assert refused(machine, "New-NetFirewallRule", rule) == "Windows System Error 183"


def test_events_are_filtered_newest_first(machine: Machine) -> None:
    for number, level in enumerate((2, 4, 2)):
        machine.host.log("System", "p", event_id=number, level=level, message="m")
    machine.host.log("Other", "p", event_id=9, level=2, message="m")
    query: dict[str, object] = {"LogName": ["System"], "Level": 2}
    found = run(machine, "Get-WinEvent", {"FilterHashtable": query})
    assert [each.properties["Id"] for each in found if isinstance(each, Item)] == [2, 0]
    assert len(run(machine, "Get-WinEvent", {"FilterHashtable": query, "MaxEvents": 1})) == 1
    later = {**query, "StartTime": "2999-01-01T00:00:00Z"}
    none = "NoMatchingEventsFound"
    assert refused(machine, "Get-WinEvent", {"FilterHashtable": later}) == none


def test_a_task_is_registered_started_and_removed(machine: Machine) -> None:
    name = {"TaskName": "job", "TaskPath": "\\lab"}
    run(machine, "Register-ScheduledTask", {**name, "Xml": xml("cmd.exe", "/c exit 4")})
    run(machine, "Start-ScheduledTask", name)
    while one(machine, "Get-ScheduledTask", {k: [v] for k, v in name.items()})["State"] != "Ready":
        pass
    assert one(machine, "Get-ScheduledTaskInfo", name)["LastTaskResult"] == 4
    remove = {"TaskName": ["job"], "TaskPath": ["\\lab\\"]}
    asking = "System.Management.Automation.PSInvalidOperationException"
    assert refused(machine, "Unregister-ScheduledTask", {**remove, "Confirm": True}) == asking
    run(machine, "Unregister-ScheduledTask", {**remove, "Confirm": False})
    gone = "CmdletizationQuery_NotFound_TaskName"
    assert refused(machine, "Start-ScheduledTask", name) == gone


def test_bitlocker_knows_the_drives(machine: Machine) -> None:
    shown = one(machine, "Get-BitLockerVolume", {"MountPoint": ["c:"]})
    assert (shown["VolumeStatus"], shown["ProtectionStatus"]) == ("FullyDecrypted", "Off")
    with pytest.raises(CmdletError):
        run(machine, "Get-BitLockerVolume", {"MountPoint": ["Q:"]})


def test_no_error_names_a_path_of_this_machine(machine: Machine) -> None:
    for name, parameters in (
        ("Get-Acl", {"LiteralPath": ["C:\\nothing"]}),
        ("Get-FileHash", {"LiteralPath": ["C:\\nothing"], "Algorithm": "SHA256"}),
        (
            "Add-Content",
            {"LiteralPath": ["C:\\no\\x"], "Value": base64.b64decode("eA=="), "Encoding": "Byte"},
        ),
        ("Expand-Archive", {"LiteralPath": "C:\\nothing", "DestinationPath": "C:\\x"}),
    ):
        with pytest.raises(CmdletError) as error:
            run(machine, name, parameters)
        assert str(machine.host.root) not in error.value.message
        assert re.search(r"C:\\no", error.value.message)

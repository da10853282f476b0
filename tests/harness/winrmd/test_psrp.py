"""PowerShell remoting against the pretend host, with psrpcore's client half as the peer."""

from __future__ import annotations

import base64
import time

import pytest
from psrpcore.types import PSInvocationState, PSSecureString

from harness.errors import ProtocolError
from harness.winrmd.cmdlets import Machine
from harness.winrmd.faults import WsmanFault
from harness.winrmd.psrp import PsrpHandler
from harness.winrmd.resources import ShellContext
from harness.winrmd.runspace import RunspaceServer, split_fragments
from tests.harness.winrmd.psrp_client import Client, operation

COMPLETED = PSInvocationState.Completed
FAILED = PSInvocationState.Failed


def test_a_command_sent_as_a_structure_puts_out_objects(powershell: Client) -> None:
    result = powershell.run("Test-Path", {"LiteralPath": ["C:\\Windows", "C:\\nothing"]})
    assert result.state == COMPLETED
    assert result.output == [True, False]


def test_the_same_command_as_text_answers_the_same(powershell: Client) -> None:
    text = powershell.run("Get-Service -Name 'WinRM' -ErrorAction 'Stop'", script=True)
    structure = powershell.run("get-service", {"name": "winrm", "erroraction": "Stop"})
    assert text.properties() == structure.properties()
    assert text.properties()["Status"] == "Running"


def test_an_unknown_command_fails_the_pipeline_as_powershell_says_it(powershell: Client) -> None:
    result = powershell.run("Invoke-Anything", {"ErrorAction": "SilentlyContinue"})
    assert result.state == FAILED
    assert result.error.FullyQualifiedErrorId == "CommandNotFoundException"
    assert "The term 'Invoke-Anything' is not recognized" in str(result.error)


@pytest.mark.parametrize(
    "text",
    [
        "Invoke-Expression 'x'",
        'Get-Service -Name "WinRM"',
        "Get-Service -Name 'WinRM' | Out-String",
        "& 'Get-Service' -Name 'WinRM'",
        "Get-Service -Name 'WinRM'; Get-Service -Name 'vmms'",
        "[System.IO.File]::ReadAllText('C:\\x')",
    ],
)
def test_scripts_of_any_other_kind_are_not_recognized(powershell: Client, text: str) -> None:
    result = powershell.run(text, script=True)
    assert (result.state, result.output) == (FAILED, [])
    assert result.error.FullyQualifiedErrorId == "CommandNotFoundException"


def test_an_error_stops_the_pipeline_only_when_asked_to(powershell: Client) -> None:
    going_on = powershell.run("Get-Service", {"Name": "nothing"})
    stopping = powershell.run("Get-Service", {"Name": "nothing", "ErrorAction": "Stop"})
    silent = powershell.run("Get-Service", {"Name": "nothing", "ErrorAction": "SilentlyContinue"})
    assert (going_on.state, stopping.state, silent.state) == (COMPLETED, FAILED, COMPLETED)
    assert silent.errors == []
    expected = "NoServiceFoundForGivenName,Microsoft.PowerShell.Commands.GetServiceCommand"
    assert going_on.error.FullyQualifiedErrorId == expected
    assert stopping.error.FullyQualifiedErrorId == expected
    assert str(going_on.error) == "Cannot find any service with service name 'nothing'."
    assert str(stopping.error).endswith(f"is set to Stop: {going_on.error}")


@pytest.mark.parametrize(
    ("parameters", "identity"),
    [
        ({"Nmae": "WinRM"}, "NamedParameterNotFound,Get-Service"),
        ({}, "MissingMandatoryParameter,Get-Service"),
        ({"Name": {"a": 1}}, "ParameterArgumentTransformationError,Get-Service"),
    ],
)
def test_parameters_are_bound_strictly(
    powershell: Client, parameters: dict[str, object], identity: str
) -> None:
    result = powershell.run("Get-Service", parameters)
    assert result.state == FAILED
    assert result.error.FullyQualifiedErrorId == identity


def test_the_language_mode_is_what_the_host_imposes(powershell: Client, machine: Machine) -> None:
    script = "$ExecutionContext.SessionState.LanguageMode"
    assert powershell.run(script, script=True).output == ["ConstrainedLanguage"]
    with machine.host.change() as state:
        state.obstacles.language_mode = "NoLanguage"
    refused = powershell.run(script, script=True)
    assert refused.error.FullyQualifiedErrorId == "ScriptsNotAllowed"
    assert powershell.run("Get-Service", {"Name": "WinRM"}).state == COMPLETED


def test_pipeline_input_is_bound_object_by_object(powershell: Client, machine: Machine) -> None:
    shell = powershell.start(
        "Add-Content",
        {"LiteralPath": "C:\\Windows\\Temp\\x.bin", "Encoding": "Byte"},
        has_input=True,
    )
    powershell.send_input(shell, [b"\x00\x01", b"\xff"])
    assert powershell.finish(shell).state == COMPLETED
    assert machine.host.local_path("C:\\Windows\\Temp\\x.bin").read_bytes() == b"\x00\x01\xff"


def test_a_command_without_pipeline_input_refuses_it(powershell: Client) -> None:
    shell = powershell.start("Get-Service", {"Name": "WinRM"}, has_input=True)
    powershell.send_input(shell, ["x"])
    result = powershell.finish(shell)
    assert result.error.FullyQualifiedErrorId == "InputObjectNotBound,Get-Service"


def test_warnings_and_progress_have_streams_of_their_own(powershell: Client) -> None:
    quota = powershell.run(
        "Set-Item", {"LiteralPath": "WSMan:\\localhost\\Shell\\MaxShellsPerUser", "Value": 60}
    )
    assert (quota.state, quota.output, len(quota.warnings)) == (COMPLETED, [], 1)
    enabled = powershell.run(
        "Enable-WindowsOptionalFeature",
        {"Online": True, "NoRestart": True, "FeatureName": ["Microsoft-Hyper-V", "Containers"]},
    )
    assert enabled.progress == [50, 100]
    assert enabled.properties()["RestartNeeded"] is True


def test_a_slow_command_can_be_stopped(powershell: Client, machine: Machine) -> None:
    with machine.host.change() as state:
        state.obstacles.delays_s["Get-Service"] = 60
    shell = powershell.start("Get-Service", {"Name": "WinRM"})
    assert powershell.session.running == 1
    began = time.monotonic()
    powershell.signal(shell, "powershell/signal/crtl_c")
    result = powershell.finish(shell)
    assert time.monotonic() - began < 5
    assert (result.state, result.output) == (PSInvocationState.Stopped, [])
    assert powershell.session.running == 0


def test_receive_times_out_while_nothing_is_said(powershell: Client, machine: Machine) -> None:
    with machine.host.change() as state:
        state.obstacles.delays_s["Get-Service"] = 60
    shell = powershell.start("Get-Service", {"Name": "WinRM"})
    powershell.receive(shell.pipeline_id)  # Running
    with pytest.raises(WsmanFault, match="2150858793"):
        powershell.receive(shell.pipeline_id, timeout_s=0.05)
    powershell.session.close()


def test_a_pipeline_that_was_ended_is_gone(powershell: Client) -> None:
    shell = powershell.start("Get-Service", {"Name": "WinRM"})
    powershell.finish(shell)
    powershell.signal(
        shell, "http://schemas.microsoft.com/wbem/wsman/1/windows/shell/signal/terminate"
    )
    with pytest.raises(WsmanFault, match="2150858843"):
        powershell.receive(shell.pipeline_id)


def test_closing_the_shell_wakes_who_waits(powershell: Client, machine: Machine) -> None:
    with machine.host.change() as state:
        state.obstacles.delays_s["Get-Service"] = 60
    powershell.start("Get-Service", {"Name": "WinRM"})
    powershell.session.close()
    with pytest.raises(WsmanFault, match="995"):
        powershell.receive(None)


def test_every_fragment_has_a_stream_of_its_own(powershell: Client, machine: Machine) -> None:
    for index in range(3):
        machine.host.log("System", "p", event_id=index, level=2, message="x" * 50_000)
    shell = powershell.start("Get-WinEvent", {"FilterHashtable": {"LogName": "System"}})
    deadline = time.monotonic() + 5
    while powershell.session.running and time.monotonic() < deadline:
        time.sleep(0.01)
    seen = 0
    while True:
        (reply,) = powershell.receive(shell.pipeline_id)
        streams = [each for each in reply if each.tag.endswith("Stream")]
        assert sum(len(base64.b64decode(each.text or "")) for each in streams) <= 100_000
        for each in streams:
            assert len(split_fragments(base64.b64decode(each.text or ""))) == 1
        seen += len(streams)
        if len(streams) != len(reply):
            break
    assert seen >= 6


def test_available_runspaces_and_their_bounds_are_answered(powershell: Client) -> None:
    asked = powershell.pool.get_available_runspaces()
    powershell.pool.set_max_runspaces(4)
    powershell.session.send(
        operation(
            "Send",
            '<rsp:Send><rsp:Stream Name="stdin">'
            f"{base64.b64encode(powershell._data()).decode()}</rsp:Stream></rsp:Send>",
        )
    )
    assert asked is not None
    powershell.receive(None)
    assert powershell.pool.max_runspaces == 4


def test_secure_strings_need_a_key_that_the_server_hands_out(powershell: Client) -> None:
    powershell.pool.exchange_key()
    powershell.session.send(
        operation(
            "Send",
            '<rsp:Send><rsp:Stream Name="stdin">'
            f"{base64.b64encode(powershell._data()).decode()}</rsp:Stream></rsp:Send>",
        )
    )
    powershell.receive(None)
    secret = powershell.run("Test-Path", {"LiteralPath": PSSecureString("C:\\Windows")})
    # It was decrypted (the type is known), and a path is no secret.
    assert secret.error.FullyQualifiedErrorId == "ParameterArgumentTransformationError,Test-Path"


# The third is a whole fragment, of a message that is none.
@pytest.mark.parametrize(
    "data", [b"<xml/>", b"\xff" * 40, bytes(16) + b"\x03" + (5).to_bytes(4, "big") + b"hello"]
)
def test_what_is_no_psrp_is_refused(data: bytes) -> None:
    server = RunspaceServer(lambda request, sink: None)
    with pytest.raises(ProtocolError):
        server.feed(data)


def test_another_session_configuration_is_not_there(machine: Machine) -> None:
    handler = PsrpHandler(machine)
    uri = "http://schemas.microsoft.com/powershell/Other"
    assert handler.handles(uri)
    with pytest.raises(WsmanFault, match="2150858752"):
        handler.open_shell(
            operation("Create", uri=uri), ShellContext("1", "lab", machine.host.root, {})
        )

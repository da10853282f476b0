"""PowerShell, CIM, configuration and the probe, against the pretend host behind its endpoint."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import AuthError, HarnessError, RemoteCommandError, UsageError
from harness.remote.crosscheck import CrossCheck, cross_check
from harness.remote.deadline import Deadline
from harness.remote.passwords import Secret
from harness.remote.powershell import Command
from harness.remote.probe import CodeIntegrity, Probe, probe
from harness.remote.winrm import WinRM
from harness.winrmd.knobs import Strike, Trouble
from harness.winrmd.pretendmachine import PretendMachine, open_machine
from tests.harness.remote.conftest import CANARY, PretendHost, pretend_host


def soon() -> Deadline:
    return Deadline.after(15)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[PretendMachine]:
    with open_machine(tmp_path / "disk") as opened:
        yield opened


@pytest.fixture
def windows(tmp_path: Path, machine: PretendMachine) -> Iterator[PretendHost]:
    with pretend_host(tmp_path, machine=machine) as host:
        yield host


@pytest.fixture
def win(windows: PretendHost) -> Iterator[WinRM]:
    with windows.connect() as transport:
        yield transport


REGISTER = Command.build(
    "New-NetFirewallRule",
    {"Name": "lcowlab", "DisplayName": "lcowlab", "Direction": "Inbound", "Action": "Allow"},
)


def test_objects_come_back_as_plain_values(win: WinRM) -> None:
    (service,) = win.powershell(Command.build("Get-Service", {"Name": ("WinRM",)}), deadline=soon())
    assert isinstance(service, dict)
    assert service["Name"] == "WinRM"
    assert service["Status"] == "Running"
    exist = Command.build(
        "Test-Path", {"LiteralPath": ("HKLM:\\SOFTWARE", "HKLM:\\it's \u2018not\u2019 there")}
    )
    assert win.powershell(exist, deadline=soon()) == (True, False)


def test_values_reach_the_host_as_they_are(win: WinRM) -> None:
    path = ("HKLM:\\SOFTWARE\\lcow'lab",)
    win.powershell(Command.build("New-Item", {"Path": path, "Force": True}), deadline=soon())
    for name, kind, value in (
        ("text", "String", "it's $env:PATH `n \u2019"),
        ("many", "MultiString", ("a", "b c")),
        ("number", "DWord", 7),
    ):
        win.powershell(
            Command.build(
                "Set-ItemProperty",
                {"LiteralPath": path, "Name": name, "Value": value, "Type": kind},
            ),
            deadline=soon(),
        )
    (values,) = win.powershell(
        Command.build("Get-ItemProperty", {"LiteralPath": path}), deadline=soon()
    )
    assert isinstance(values, dict)
    assert (values["text"], values["many"], values["number"]) == (
        "it's $env:PATH `n \u2019",
        ["a", "b c"],
        7,
    )


def test_a_failing_command_names_itself_and_powershells_error_id(win: WinRM) -> None:
    missing = Command.build("Get-Service", {"Name": ("no-such-service",)})
    with pytest.raises(RemoteCommandError, match="no-such-service") as caught:
        win.powershell(missing, deadline=soon())
    assert caught.value.command == missing.text
    assert "NoServiceFoundForGivenName" in caught.value.error_id
    assert win.attempts.failed == []


@pytest.mark.parametrize("trouble", [Trouble.DROP_BEFORE, Trouble.DROP_AFTER])
@pytest.mark.parametrize("step", ["Create", "Command", "Receive"])
def test_a_repeatable_command_survives_a_drop(
    windows: PretendHost, win: WinRM, step: str, trouble: Trouble
) -> None:
    windows.server.config.knobs.plan(Strike(trouble, step))
    exist = Command.build("Test-Path", {"LiteralPath": ("HKLM:\\SOFTWARE",)})
    assert win.powershell(exist, deadline=soon()) == (True,)
    assert win.attempts.failed


def test_a_command_that_must_not_run_twice_is_not_repeated(
    windows: PretendHost, machine: PretendMachine, win: WinRM
) -> None:
    win.powershell(Command.build("Get-MpPreference"), deadline=soon())  # opens the session
    windows.server.config.knobs.plan(Strike(Trouble.DROP_AFTER, "Command"))
    with pytest.raises(HarnessError) as caught:
        win.powershell(REGISTER, deadline=soon())
    assert getattr(caught.value, "maybe_ran", False)
    began = time.monotonic()  # it was started: it may be at it still
    while "lcowlab" not in machine.host.read().firewall and time.monotonic() - began < 5:
        time.sleep(0.02)
    assert "lcowlab" in machine.host.read().firewall


def test_cim_and_configuration_are_read_without_powershell(
    windows: PretendHost, win: WinRM
) -> None:
    (system,) = win.cim("Win32_OperatingSystem", deadline=soon())
    assert system["BuildNumber"] == "20348"
    assert isinstance(system["LastBootUpTime"], str)
    assert len(win.cim("Win32_Service", deadline=soon())) > 3
    assert win.config(deadline=soon())["Winrs/MaxShellsPerUser"] == "30"
    assert windows.server.config.knobs.requests("Command") == 0


def test_a_probe_tells_what_the_host_lets_through(
    windows: PretendHost, machine: PretendMachine, win: WinRM
) -> None:
    with machine.host.change() as state:
        state.obstacles.code_integrity = 2
    found = probe(win, deadline=soon(), python="python")
    assert found.envelope_kib == 500
    assert found.transparent is True
    assert found.code_page == 65001
    assert found.language_mode == "ConstrainedLanguage"
    assert found.code_integrity is CodeIntegrity.ENFORCED
    assert found.clock_skew_s is not None
    assert abs(found.clock_skew_s) < 3
    assert [each.split(":")[0] for each in found.problems] == [
        "a code integrity policy is enforced"
    ]


def test_no_language_is_an_answer(machine: PretendMachine, win: WinRM) -> None:
    with machine.host.change() as state:
        state.obstacles.language_mode = "NoLanguage"
    assert win.language_mode(deadline=soon()) == "NoLanguage"
    known = Command.build("Get-MpPreference")
    assert win.powershell(known, deadline=soon())  # commands are no scripts: they still run


def test_each_problem_of_a_probe_says_how_to_mend_it() -> None:
    bad = Probe(
        envelope_kib=150,
        quotas={"Winrs/MaxShellsPerUser": 2},
        code_page=437,
        transparent=False,
        language_mode="NoLanguage",
        code_integrity=None,
        clock_skew_s=-400.0,
    )
    assert len(bad.problems) == 5
    assert "w32tm" in bad.problems[0]


def test_an_independent_client_agrees(windows: PretendHost, win: WinRM) -> None:
    ours = win.run(["hostname"], deadline=soon()).text
    assert cross_check(windows.endpoint(), deadline=soon()) == CrossCheck(ours, "")
    wrong = replace(windows.endpoint(), password=Secret("wrong"))
    assert "InvalidCredentialsError" in cross_check(wrong, deadline=soon()).failure


def test_the_independent_client_honours_the_pin(pinned: PretendHost) -> None:
    assert cross_check(pinned.endpoint(), deadline=soon()).succeeded
    other = pinned.endpoint(tls="pin:sha256:" + "00" * 32)
    assert "not the pinned one" in cross_check(other, deadline=soon()).failure
    with pytest.raises(UsageError, match="cannot pin"):
        cross_check(pinned.endpoint(auth="basic"), deadline=soon())


def test_the_password_shows_up_nowhere(
    windows: PretendHost, win: WinRM, caplog: pytest.LogCaptureFixture
) -> None:
    """Every log record down to DEBUG, every exception with its causes, what the host saw."""
    caplog.set_level(logging.DEBUG)
    seen: list[str] = [repr(win.endpoint), repr(win.attempts)]
    show = "import sys,os;print(sys.argv, dict(os.environ))"
    seen.append(win.run(["python", "-c", show], deadline=soon()).text)
    probe(win, deadline=soon(), python="python")
    for knob in (Trouble.DROP_AFTER, Trouble.SERVER_ERROR, Trouble.TOO_LARGE):
        windows.server.config.knobs.plan(Strike(knob, "Receive"))
        with pytest.raises(HarnessError) as failed:
            win.run(["hostname"], deadline=soon())
        seen += traceback.format_exception(failed.value)
    with windows.connect(password=CANARY + "x") as wrong, pytest.raises(AuthError) as refused:
        wrong.run(["hostname"], deadline=soon())
    seen += traceback.format_exception(refused.value)
    seen.append(repr(cross_check(windows.endpoint(password=CANARY + "x"), deadline=soon())))
    assert len(caplog.records) > 100
    for text in (*seen, caplog.text):
        assert CANARY not in text

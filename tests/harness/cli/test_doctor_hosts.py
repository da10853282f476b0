"""`lcowlab doctor HOSTS` and `lcowlab hosts probe`: who gets in, and what gets through."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli.app import app
from harness.cli.exit_codes import ExitCode
from harness.cli.hostcheck import judge
from harness.errors import HarnessError, MissingProgramError
from harness.remote.crosscheck import CrossCheck
from tests.harness.hosts.pretend import CANARY, Pretend, pretend_host

INVENTORY = """
[hosts.win-01]
address = "127.0.0.1"
port = {port}
auth = "ntlm"
tls = "off"
user = "lab"
password = {{ env = "LAB_WORD" }}
"""


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretend]:
    with pretend_host(tmp_path / "host") as host:
        (tmp_path / "hv.toml").write_text(INVENTORY.format(port=host.port))
        monkeypatch.setenv("HV_INVENTORY", str(tmp_path / "hv.toml"))
        monkeypatch.setenv("LCOWLAB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("LAB_WORD", CANARY)
        yield host


def ask(*arguments: str) -> tuple[object, dict[str, Any]]:
    done = CliRunner().invoke(app, [*arguments, "--json"], standalone_mode=False)
    assert done.exception is None, done.exception
    assert CANARY not in done.output
    return done.return_value, json.loads(done.stdout)


def findings(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    assert all(each["host"] == "win-01" for each in document["findings"])
    return {each["what"]: each for each in document["findings"]}


def test_a_healthy_host_is_vouched_for_by_an_independent_client(pretend: Pretend) -> None:
    code, document = ask("doctor", "all")
    found = findings(document)
    assert code == ExitCode.OK
    assert found["connection"]["found"].startswith("answers as ")
    assert found["cross-check"]["found"] == "pywinrm agrees"
    assert found["envelope"]["found"] == "500 KiB"
    assert "Winrs/MaxShellsPerUser 30" in found["quotas"]["found"]
    assert found["bytes 0-255"]["found"] == "all pass"
    assert found["language mode"]["found"] == "ConstrainedLanguage"
    assert found["code integrity"]["found"] == "off"
    assert not any(each["fix"] for each in document["findings"])


def test_a_wrong_password_is_the_finding_of_both_clients(
    pretend: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_WORD", "wrong")
    code, document = ask("doctor", "win-01")
    found = findings(document)
    assert code == ExitCode.INFRASTRUCTURE
    assert "password" in found["connection"]["fix"]
    assert found["cross-check"]["found"].startswith("pywinrm fails too: InvalidCredentialsError")


def test_what_a_host_does_not_let_through_is_found_with_its_mend(pretend: Pretend) -> None:
    pretend.knobs.input_filter = lambda data: data.replace(b"\x1a", b"")
    with pretend.host.change() as state:
        state.obstacles.code_integrity = 2
    code, document = ask("doctor", "all")
    said = [each for each in document["findings"] if each["what"] == "WinRM"]
    assert code == ExitCode.OK
    assert [each["found"] for each in said] == [
        "streams do not pass every byte",
        "a code integrity policy is enforced",
    ]
    assert all(each["fix"] for each in said)
    _, document = ask("hosts", "probe")
    (host,) = document["hosts"]
    assert host["winrm"]["bytes 0-255"] == "not all pass"
    assert host["winrm"]["code integrity"] == "enforced"
    assert len(host["winrm"]["problems"]) == 2


def test_a_host_without_python_is_not_said_to_lose_bytes(pretend: Pretend) -> None:
    _, document = ask("doctor", "all", "--python", "no-such-python")
    assert findings(document)["bytes 0-255"]["found"] == "not known: no Python there"


def test_a_password_that_is_nowhere_is_a_finding(
    pretend: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LAB_WORD")
    code, document = ask("doctor", "all")
    assert code == ExitCode.INFRASTRUCTURE
    assert "LAB_WORD" in findings(document)["inventory"]["fix"]


@pytest.mark.parametrize(
    ("answer", "failure", "other", "found", "fix", "stops"),
    [
        ("A", "", CrossCheck("a", ""), "agrees", "", False),
        ("A", "", CrossCheck("B", ""), "answered as B, we as A", "two machines", True),
        ("A", "", CrossCheck("", "401"), "does not get in: 401", "nothing for lcowlab", False),
        ("", "refused", CrossCheck("A", ""), "gets in", "our own transport", True),
        ("", "refused", CrossCheck("", "401"), "fails too: 401", "two clients agree", True),
        ("A", "", MissingProgramError("pywinrm", install="x"), "not made", "pywinrm", False),
    ],
)
def test_two_answers_tell_whose_fault_it_is(
    answer: str, failure: str, other: CrossCheck | HarnessError, found: str, fix: str, stops: bool
) -> None:
    finding = judge("win-01", answer, failure, other)
    assert found in finding.found
    assert fix in finding.fix
    assert bool(finding.fix) == bool(fix)
    assert finding.stops == stops

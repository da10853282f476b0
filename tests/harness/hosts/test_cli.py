"""`lcowlab hosts` and `lcowlab provision` against a pretend host behind the real endpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli.app import app
from harness.hosts.protectedroot import ProtectedRoot
from harness.remote.deadline import Deadline
from tests.harness.hosts.pretend import CANARY, pretend_host

ROOT = ProtectedRoot("C:\\ProgramData\\lcowlab")


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 0, done.output
    assert CANARY not in done.output
    return done.stdout


def document(*arguments: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(run(*arguments, "--json"))
    return values


def test_a_host_is_added_probed_planned_and_drained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LCOWLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LAB_WORD", CANARY)
    monkeypatch.setenv("HV_INVENTORY", str(tmp_path / "hv.toml"))
    with pretend_host(tmp_path / "host") as pretend:
        options = ["--user", "lab", "--password-env", "LAB_WORD", "--auth", "ntlm", "--tls", "off"]
        for name in ("win-01", "win-02"):
            run("hosts", "add", name, "127.0.0.1", "--port", str(pretend.port), *options)
        assert [h["probed"] for h in document("hosts", "list")["hosts"]] == [None, None]
        (first,) = document("hosts", "probe", "win-01")["hosts"]
        assert (first["facts"]["build"], first["drift"]) == (20348, [])
        with pretend.host.change() as state:
            state.revision += 1
            state.services["WinDefend"].status = "Stopped"
        (second,) = document("hosts", "probe", "win-01")["hosts"]
        assert [each["what"] for each in second["drift"]] == ["services.WinDefend"]
        assert document("hosts", "show", "win-01")["facts"] == second["facts"]
        assert "win-01: services.WinDefend" not in run("hosts", "probe", "win-01")

        plan = run("provision", "win-01", "--plan")
        assert "Enable-WindowsOptionalFeature -Online -FeatureName 'Microsoft-Hyper-V'" in plan
        assert r"icacls C:\ProgramData\lcowlab /inheritance:r" in plan
        assert not pretend.host.local_path("C:\\ProgramData\\lcowlab").exists()
        refused = CliRunner().invoke(app, ["hosts", "lease", "win-01"])
        assert "cannot be trusted" in str(refused.exception)

        with pretend.connect() as winrm:
            soon = Deadline.after(20)
            for action in ROOT.mend(ROOT.read(winrm, deadline=soon), host="win-01"):
                action.run(winrm, deadline=soon)
        (lease,) = document("hosts", "lease", "win-01")["hosts"]
        assert (lease["state"], lease["token"]) == ("free", 0)
        assert "quarantined (a broken disk)" in run(
            "hosts", "drain", "win-01", "--note", "a broken disk"
        )
        (lease,) = document("hosts", "reset", "win-01")["hosts"]
        assert (lease["state"], lease["token"]) == ("free", 1)
    for file in (tmp_path / "cache", tmp_path / "hv.toml"):
        for each in [file, *file.rglob("*")]:
            assert not each.is_file() or CANARY not in each.read_text("utf-8")

"""Several hosts carry out one request side by side; one that cannot be used costs only itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli.app import app
from harness.report.events import Outcome
from tests.harness.hosts.pretend import CANARY, Pretend
from tests.harness.runs.ready import lease_of, ready_host


def entry(name: str, pretend: Pretend) -> str:
    return (
        f'[hosts.{name}]\naddress = "127.0.0.1"\nport = {pretend.port}\nauth = "ntlm"\n'
        'tls = "off"\nuser = "lab"\npassword = { env = "LAB_WORD" }\ntags = ["lab"]\n'
    )


def test_two_hosts_run_side_by_side_into_one_report_and_a_third_costs_only_itself(
    host: Pretend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LAB_WORD", CANARY)
    monkeypatch.chdir(tmp_path)
    with ready_host(tmp_path / "two") as two:
        text = entry("win-01", host) + entry("win-02", two)
        text += entry("win-03", two) + 'maintenance = ["daily 00:00-12:00", "daily 12:00-00:00"]\n'
        Path("hv-inventory.toml").write_text(text)
        words = ["run", "same-id-again", "--hosts", "lab", "--backend", "model", "--json"]
        code = app(words, standalone_mode=False)
        out, err = capsys.readouterr()
        assert CANARY not in out + err
        document = json.loads(out)
        found = {each["name"]: each["outcome"] for each in document["scenarios"]}
        assert found == {
            "same-id-again@win-01": Outcome.PASSED,
            "same-id-again@win-02": Outcome.PASSED,
            "same-id-again@win-03": Outcome.ERROR,
        }
        assert code == 3
        assert "under maintenance" in err
        assert document["environment"]["win-02 identity"] == "WORKGROUP\\WINRMD$"
        assert document["leaks"] == []
        assert lease_of(host)["state"] == lease_of(two)["state"] == "free"
        assert "same-id-again@win-01" in Path("build", "report", "index.html").read_text("utf-8")

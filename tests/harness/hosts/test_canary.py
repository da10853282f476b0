"""A whole run, and then every artefact of it is searched for the password.

The host is unkind: its own description holds the password, so that it comes back in what it says.
"""

from __future__ import annotations

import html
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import pytest

from harness.cli.app import main
from harness.hosts.bundle import Bundle
from harness.hosts.journal import Journal
from harness.hosts.protectedroot import ProtectedRoot
from harness.remote.deadline import Deadline
from harness.report.events import Outcome, RunResult, ScenarioResult, StepResult
from harness.report.html import write_html
from harness.report.junit import write_junit
from harness.winrmd.hoststate import HostState
from tests.harness.hosts.pretend import CANARY, pretend_host
from tests.harness.hosts.test_deploy import wheel

ROOT = ProtectedRoot("C:\\ProgramData\\lcowlab")
SHAPES = tuple(dict.fromkeys((CANARY, quote(CANARY, safe=""), html.escape(CANARY))))


def unkind(state: HostState) -> None:
    state.caption = f"Windows of {CANARY}"


def report(folder: Path, said: str) -> None:
    step = StepResult("ask", 0.0, 1.0, Outcome.FAILED, said)
    scenario = ScenarioResult(
        "s",
        "S",
        (),
        Outcome.FAILED,
        said,
        1.0,
        {"said": said},
        (step,),
        said,
        f"lcowlab run {said}",
    )
    result = RunResult("qemu", "tcg", "2026-01-01T00:00:00+00:00", 1.0, (scenario,), (said,))
    write_html(result, folder / "index.html")
    write_junit(result, folder / "junit.xml")


@pytest.mark.timeout(600)
def test_a_whole_run_leaves_the_password_nowhere(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    written = tmp_path / "written"
    written.mkdir()
    monkeypatch.setenv("LCOWLAB_CACHE", str(written / "cache"))
    monkeypatch.setenv("LAB_WORD", CANARY)
    monkeypatch.setenv("HV_INVENTORY", str(written / "hv.toml"))
    said: list[str] = []

    def run(*arguments: str, codes: Sequence[int] = (0,)) -> None:
        monkeypatch.setattr(sys, "argv", ["lcowlab", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        said.extend((output.out, output.err))
        assert ended.value.code in codes, output.out + output.err

    wheel(tmp_path / "wheels", "ours", {"ours/__init__.py": b"VERSION = 1"})
    Bundle.create(written / "bundle", {"wheels": tmp_path / "wheels"})
    with pretend_host(tmp_path / "host", change=unkind) as pretend:
        options = ["--port", str(pretend.port), "--auth", "ntlm", "--tls", "off"]
        run(
            "hosts",
            "add",
            "w",
            "127.0.0.1",
            "--user",
            "lab",
            "--password-env",
            "LAB_WORD",
            *options,
        )
        run("hosts", "probe")
        run("hosts", "show", "w", "--json")
        run("doctor", "all")
        run("provision", "w", "--least-python", "3.11", "--plan")
        run("provision", "w", "--least-python", "3.11", "--json")
        run("deploy", "w", "--bundle", str(written / "bundle"), "--module", "ours")
        run("deploy", "w", "--bundle", str(written / "bundle"), "--module", CANARY, codes=(1, 3))
        run("hosts", "drain", "w", "--note", f"ask for {CANARY}")
        monkeypatch.setenv("LAB_WORD", CANARY + "x")
        run("hosts", "probe", codes=(3,))
        with pretend.connect() as winrm:
            Journal(ROOT, "test").append(
                winrm, "said", {"detail": CANARY}, deadline=Deadline.after(20)
            )
        report(written / "report", f"the host said: {CANARY}")
        ours = pretend.host.local_path(ROOT.path)
        files = [each for top in (written, ours) for each in top.rglob("*") if each.is_file()]
        artefacts = {str(each): each.read_bytes() for each in files}
    artefacts["output"] = "\n".join(said).encode()
    artefacts["log"] = caplog.text.encode()
    assert {Path(name).name for name in artefacts} >= {
        *("hv.toml", "w.json", "index.html", "junit.xml", "provision.jsonl", "test.jsonl"),
        *("current.json", "bundle.json", "output", "log"),
    }
    assert len(caplog.records) > 500
    assert b"Windows of ********" in artefacts["output"]
    found = [
        f"{name}: {shape}"
        for name, data in artefacts.items()
        for shape in SHAPES
        if shape.encode() in data
    ]
    assert found == []

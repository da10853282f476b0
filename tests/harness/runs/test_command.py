"""`lcowlab run --host`: one command, however it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from harness.cli.app import _code_for, app
from harness.errors import HarnessError
from harness.hosts.facts import FactsCache
from tests.harness.hosts.pretend import CANARY, Pretend
from tests.harness.runs.ready import ROOT, labs_of, lease_of, runs_of

COMMAND = (sys.executable, "-c", "from harness.cli.app import main; main()", "run")
WAIT_S = 240


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Yield a `lcowlab run` that goes on beside us; it is over with the block."""
    folder.mkdir(exist_ok=True)
    with subprocess.Popen(
        [*COMMAND, *arguments, "--backend", "model", "--junit", "junit.xml"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


Here = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_here(
    inventory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Here:
    """The same in this process, which starts sooner; errors become codes as in `main`."""
    monkeypatch.chdir(inventory.parent)

    def run(*arguments: str) -> tuple[int, str, str]:
        said = ""
        try:
            code = int(app(["run", *arguments, "--backend", "model"], standalone_mode=False))
        except HarnessError as error:
            code, said = int(_code_for(error)), str(error)
        out, err = capsys.readouterr()
        assert CANARY not in out + err + said
        return code, out, err + said

    return run


def wait_for_run(host: Pretend, before: list[str]) -> str:
    """The id of the run that comes, once its scenario is under way."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        for run in set(runs_of(host)) - set(before):
            events = host.host.local_path(ROOT.inside("runs", run, "events.jsonl"))
            if events.exists() and b'"step_started"' in events.read_bytes():
                return run
        time.sleep(0.05)
    raise AssertionError("no run came")


def test_reports_and_exit_codes_are_those_of_a_run_here(
    host: Pretend, tmp_path: Path, run_here: Here
) -> None:
    passed = run_here("same-id-again", "--host", "win-01", "--json")
    assert passed[0] == 0, passed[2]
    document = json.loads(passed[1])
    assert [each["outcome"] for each in document["scenarios"]] == ["passed"]
    assert document["environment"]["host"] == "win-01"
    assert "same-id-again passed" in passed[2]
    green = FactsCache.open().green("win-01")
    assert green is not None
    assert green.what == "run same-id-again"

    fault = ("--fault", "guest.create=error(0x80004005)", "--junit", "junit.xml")
    failed = run_here("same-id-again", "--host", "win-01", *fault)
    assert failed[0] == 1, failed[2]
    case = ET.parse(tmp_path / "junit.xml").getroot().find(".//testcase")
    assert case is not None
    assert case.find("failure") is not None
    assert case.findtext("system-out")
    assert "0x80004005" in (tmp_path / "build" / "report" / "index.html").read_text("utf-8")
    assert lease_of(host)["state"] == "free"


@pytest.mark.usefixtures("inventory")
def test_an_interrupted_command_ends_the_run_there_and_reports_it(
    host: Pretend, tmp_path: Path
) -> None:
    asked = ("same-id-again", "eight-sharers", "--host", "win-01")
    with started(tmp_path, *asked, "--fault", "service.create=hang(600s)") as process:
        wait_for_run(host, runs_of(host))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT_S)
        assert CANARY not in out + err
        assert process.returncode == 130, err
    outcomes = [
        (case.get("name"), "error" if case.find("error") is not None else "skipped")
        for case in ET.parse(tmp_path / "junit.xml").iter("testcase")
    ]
    assert outcomes == [("same-id-again", "error"), ("eight-sharers", "skipped")]
    assert labs_of(host) == []
    assert lease_of(host)["state"] == "free"


def test_a_killed_command_is_followed_by_one_that_watches_on(
    host: Pretend, tmp_path: Path, run_here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("same-id-again", "--host", "win-01", "--fault", "service.create=hang(600s)")
    before = runs_of(host)
    with started(tmp_path, *asked) as process:
        name = wait_for_run(host, before)
        process.kill()
    # Another request is told what goes on, here and elsewhere.
    code, _, err = run_here("eight-sharers", "--host", "win-01")
    assert (code, name[:8] in err, "same-id-again" in err) == (5, True, True), err
    monkeypatch.setenv("LCOWLAB_CACHE", str(tmp_path / "elsewhere"))
    code, _, err = run_here(*asked)
    assert (code, name[:8] in err, "has it for" in err) == (5, True, True), err
    monkeypatch.setenv("LCOWLAB_CACHE", str(tmp_path / "cache"))
    # The same one watches it: its start is told again, and it is ended from here.
    with started(tmp_path, *asked) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "same-id-again:" in line:
                break
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=WAIT_S)
        assert CANARY not in out + err
        assert process.returncode == 130, err
    assert runs_of(host) == sorted([*before, name])
    assert lease_of(host)["state"] == "free"


def test_what_makes_no_sense_is_refused_before_anybody_is_asked(
    host: Pretend, run_here: Here, inventory: Path
) -> None:
    before = host.knobs.requests()
    code, _, said = run_here("same-id-again", "--host", "win-01", "--image", ".")
    assert (code, "bundle push" in said) == (2, True), said
    code, _, said = run_here("same-id-again", "--host", "all and not win-01")
    assert (code, "name one" in said) == (2, True), said
    code, _, said = run_here("same-id-again", "--host", "win-01", "--jobs", "2", "--keep", "failed")
    assert (code, "one job only" in said) == (2, True), said
    code, _, said = run_here("same-id-again", "--bundle", ".")
    assert (code, "--host" in said) == (2, True), said
    code, _, said = run_here("same-id-again", "--host", "win-01", "--jobs", "2")
    assert (code, "1 utility VMs at a time" in said) == (2, True), said
    code, _, said = run_here("same-id-again", "--host", "win-01", "--hosts", "all")
    assert (code, "give one of them" in said) == (2, True), said
    with inventory.open("a") as file:
        file.write('maintenance = ["daily 00:00-12:00", "daily 12:00-00:00"]\n')
    code, _, said = run_here("same-id-again", "--host", "win-01")
    assert (code, "under maintenance" in said) == (5, True), said
    assert host.knobs.requests() == before

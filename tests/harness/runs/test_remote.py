"""A run on a host is watched, reported and given back as if it were one of this machine."""

from __future__ import annotations

from pathlib import Path

from harness.report.events import Outcome
from tests.harness.runs.ready import Heard, lease_state, ready_host, remote_run, request


def test_a_run_is_told_live_and_its_result_is_that_of_the_host(tmp_path: Path) -> None:
    heard = Heard()
    with ready_host(tmp_path / "host") as pretend, pretend.connect() as winrm:
        hosted = remote_run(winrm, request("shared-scratch"), heard).run()
        (scenario,) = hosted.result.scenarios
        assert (scenario.outcome, hosted.result.leaks) == (Outcome.PASSED, ())
        assert hosted.result.environment["host"] == "win-01"
        assert hosted.result.environment["identity"] == "WORKGROUP\\WINRMD$"
        assert '"state": "free"' in lease_state(pretend)
        print(heard.events)

"""A run on a host is watched, reported and given back as if it were one of this machine."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from harness.errors import LeaseError, ProvisionError
from harness.remote.deadline import Deadline
from harness.report.events import Outcome
from harness.winrmd.knobs import Strike, Trouble
from tests.harness.hosts.pretend import Pretend
from tests.harness.runs.ready import (
    ROOT,
    Heard,
    host_agent,
    labs_of,
    lease_of,
    remote_run,
    request,
    reset_lease,
    runs_of,
)


def test_a_run_is_told_live_and_its_result_is_that_of_the_host(host: Pretend) -> None:
    heard = Heard()
    with host.connect() as winrm:
        hosted = remote_run(winrm, request("shared-scratch", "eight-sharers"), heard).run()
    outcomes = {each.name: each.outcome for each in hosted.result.scenarios}
    assert outcomes == {"shared-scratch": Outcome.PASSED, "eight-sharers": Outcome.PASSED}
    assert (hosted.result.leaks, hosted.result.interrupted, hosted.kept) == ((), False, "")
    assert hosted.result.environment["host"] == "win-01"
    assert hosted.result.environment["identity"] == "WORKGROUP\\WINRMD$"
    assert hosted.result.scenarios[0].repro.endswith("--host win-01")
    assert heard.results == [hosted.result]
    steps = [step.name for step in hosted.result.scenarios[0].steps]
    told = [e[2] for e in heard.events if e[0] == "step_finished" and e[1] == "shared-scratch"]
    assert told == steps
    assert heard.events[0] == ("run_started", "shared-scratch", "eight-sharers", "model")
    assert heard.events[-1] == ("scenario_finished", "eight-sharers", "passed")
    assert lease_of(host)["state"] == "free"
    assert labs_of(host) == []


def test_events_come_before_the_scenario_has_ended(host: Pretend) -> None:
    heard, cancel = Heard(), threading.Event()

    def end_it() -> None:
        heard.under_way.wait(60)
        cancel.set()

    waiting = threading.Thread(target=end_it)
    waiting.start()
    # Nothing but the cancellation, which waits for a first step, ends it in time.
    with host.connect() as winrm:
        hosted = remote_run(
            winrm, request("eight-sharers", hang="600s"), heard, cancel=cancel
        ).run()
    waiting.join()
    (scenario,) = hosted.result.scenarios
    assert (scenario.outcome, scenario.reason) == (Outcome.ERROR, "interrupted")
    assert hosted.result.interrupted
    assert hosted.result.environment["interrupted by"] == "cancelled"
    assert hosted.result.leaks == ()
    assert labs_of(host) == []
    assert lease_of(host)["state"] == "free"


def test_scenarios_run_side_by_side_there(host: Pretend) -> None:
    with host.connect() as winrm:
        asked = request("shared-scratch", "same-id-again", jobs=2)
        hosted = remote_run(winrm, asked).run()
    assert {each.outcome for each in hosted.result.scenarios} == {Outcome.PASSED}


def test_lost_connections_lose_no_event_and_repeat_none(host: Pretend) -> None:
    heard = Heard()
    for trouble, nth in (
        (Trouble.DROP_AFTER, 2),
        (Trouble.DROP_BEFORE, 5),
        (Trouble.DROP_AFTER, 9),
    ):
        for name in ("Command", "Receive", "Send"):
            host.knobs.plan(Strike(trouble, name, nth=nth))
    before = runs_of(host)
    with host.connect() as winrm:
        hosted = remote_run(winrm, request("shared-scratch", hang="500ms"), heard).run()
    (scenario,) = hosted.result.scenarios
    assert scenario.outcome is Outcome.PASSED
    steps = [e[2] for e in heard.events if e[0] == "step_finished"]
    assert steps == [step.name for step in scenario.steps]
    assert len(runs_of(host)) == len(before) + 1


def test_a_restart_of_the_host_is_told_swept_and_no_success(host: Pretend) -> None:
    class Restarting(Heard):
        def step_started(self, scenario: str, step: str) -> None:
            super().step_started(scenario, step)
            if scenario == "eight-sharers":
                host.host.restart(after_s=0)

    heard = Restarting()
    said: list[str] = []
    asked = request("shared-scratch", "eight-sharers", "same-id-again", hang="2s")
    with host.connect() as winrm:
        hosted = remote_run(winrm, asked, heard, said=said).run()
    outcomes = {each.name: each.outcome for each in hosted.result.scenarios}
    assert outcomes == {
        "shared-scratch": Outcome.PASSED,
        "eight-sharers": Outcome.ERROR,
        "same-id-again": Outcome.SKIPPED,
    }
    assert hosted.result.scenarios[1].reason == "the host restarted while it ran"
    assert ("scenario_finished", "eight-sharers", "error") in heard.events
    assert "the host restarted under it" in said
    assert hosted.result.leaks == ()
    assert labs_of(host) == []
    assert lease_of(host)["state"] == "free"


def test_a_run_whose_process_dies_is_told_and_swept(host: Pretend) -> None:
    class Killing(Heard):
        def step_started(self, scenario: str, step: str) -> None:
            super().step_started(scenario, step)
            agent = host.host.local_path(ROOT.inside("agent", "identity.json"))
            pid = json.loads(agent.read_bytes())["pid"]
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                for child in children.read_text().split():
                    os.kill(int(child), signal.SIGKILL)

    with host.connect() as winrm:
        hosted = remote_run(winrm, request("same-id-again", hang="600s"), Killing()).run()
    (scenario,) = hosted.result.scenarios
    assert scenario.outcome is Outcome.ERROR
    assert "process ended with code" in str(scenario.reason)
    assert hosted.result.leaks == ()
    assert labs_of(host) == []
    assert lease_of(host)["state"] == "free"


def test_what_is_left_on_the_host_is_a_leak_and_leaves_it_dirty(host: Pretend) -> None:
    left = host.host.local_path(ROOT.inside("lab")) / "lab-of-nobody"
    left.mkdir(parents=True)
    with host.connect() as winrm:
        hosted = remote_run(winrm, request("same-id-again")).run()
        assert [each for each in hosted.result.leaks if "lab-of-nobody" in each]
        assert lease_of(host)["state"] == "dirty"
        left.rmdir()
        reset_lease(winrm)


def test_a_lease_that_was_taken_away_ends_the_run_by_itself(host: Pretend) -> None:
    class Losing(Heard):
        def step_started(self, scenario: str, step: str) -> None:
            super().step_started(scenario, step)
            with host.connect() as other:
                reset_lease(other)

    with host.connect() as winrm, pytest.raises(LeaseError, match=r"another holder|is free"):
        remote_run(winrm, request("eight-sharers", hang="600s"), Losing()).run()
    # The next one waits for it: the host is its own alone.
    said: list[str] = []
    with host.connect() as winrm:
        hosted = remote_run(winrm, request("same-id-again"), said=said).run()
    assert hosted.result.scenarios[0].outcome is Outcome.PASSED
    assert labs_of(host) == []


def test_a_host_without_an_agent_is_refused_with_the_command(host: Pretend) -> None:
    with host.connect() as winrm:
        host_agent(winrm).stop(deadline=Deadline.after(30))
        with pytest.raises(ProvisionError, match="lcowlab provision win-01"):
            remote_run(winrm, request("same-id-again")).run()
        host_agent(winrm).start(deadline=Deadline.after(30))
    assert lease_of(host)["state"] == "free"


@pytest.mark.qemu
def test_a_hosts_run_boots_real_machines(host: Pretend) -> None:
    with host.connect() as winrm:
        hosted = remote_run(winrm, request("shared-scratch", backend="qemu")).run()
    (scenario,) = hosted.result.scenarios
    assert (scenario.outcome, scenario.reason) == (Outcome.PASSED, None)
    assert hosted.result.environment["qemu"]
    assert hosted.result.leaks == ()
    assert labs_of(host) == []

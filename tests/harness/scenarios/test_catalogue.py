"""Every scenario on the model: whole bodies, with the real guest agent, in milliseconds."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Iterator

import pytest

from harness.capabilities import CAPABILITIES, Capability
from harness.errors import InfrastructureError, UsageError
from harness.lab import Lab, LabConfig
from harness.report.events import Outcome
from harness.scenarios.catalogue import CATALOGUE
from harness.scenarios.parallel import run_parallel
from harness.scenarios.runner import run_scenarios
from harness.scenarios.scenario import Scenario, ScenarioContext
from harness.scsi import MountConfig
from snapshotter.scratch.template import ScratchTemplate
from snapshotter.units import GIB

QUICK = [scenario for scenario in CATALOGUE if "slow" not in scenario.tags]
MODEL = LabConfig(backend="model")


@pytest.fixture(scope="module")
def model_lab() -> Iterator[Lab]:
    with Lab.open(MODEL) as opened:
        opened.demo_image()
        yield opened


@pytest.mark.parametrize("scenario", QUICK, ids=lambda scenario: scenario.name)
def test_scenario_on_the_model_passes_and_leaves_nothing(
    scenario: Scenario, model_lab: Lab
) -> None:
    result = run_scenarios(model_lab, [scenario])
    (only,) = result.scenarios
    if "model" in scenario.backends():
        assert (only.outcome, only.reason) == (Outcome.PASSED, None)
    else:
        assert only.outcome is Outcome.SKIPPED
        assert only.reason is not None
        assert only.reason.startswith("backend model: needs ")
    assert result.leaks == ()


def test_every_scenario_runs_on_a_real_backend() -> None:
    for scenario in CATALOGUE:
        assert "hcs" in scenario.backends(), scenario.name
        if Capability.NATIVE_DISKS not in scenario.needs:
            assert "qemu" in scenario.backends(), scenario.name
    assert CAPABILITIES["model"] < CAPABILITIES["qemu"] < CAPABILITIES["hcs"]


def scenario_of(body: object, *needs: Capability) -> Scenario:
    assert callable(body)
    return Scenario("own", "A scenario of this test.", (), body, needs)


def test_what_a_body_leaves_is_named_and_attributed_to_it(model_lab: Lab) -> None:
    def leave_everything(context: ScenarioContext) -> None:
        image = context.lab.demo_image()
        context.lab.snapshotter.prepare("forgotten", image.top)
        vm = context.lab.boot_uvm()
        disk = context.lab.directory / "left.vhdx"
        ScratchTemplate.build(GIB).write(disk)
        vm.scsi.acquire(disk, holder="careless", mount=MountConfig(), guest_path="/run/mounts/x")

    result = run_scenarios(model_lab, [scenario_of(leave_everything)])
    (only,) = result.scenarios
    assert only.outcome is Outcome.PASSED
    leaks = "\n".join(result.leaks)
    assert "own: compute system" in leaks
    assert f"of lcowlab:{model_lab.run}:own" in leaks
    assert "own: snapshot forgotten" in leaks
    assert re.search(r"own: disk .*left\.vhdx in .* at controller 0 LUN 0, held by careless", leaks)
    assert "own: guest mount /run/mounts/x in " in leaks
    assert "more sockets open" in leaks
    assert model_lab.audit() == (), "the runner takes it down afterwards"


def test_an_open_disk_file_is_a_leak(model_lab: Lab) -> None:
    held = []

    def keep_a_file(context: ScenarioContext) -> None:
        path = context.lab.directory / "kept.vhdx"
        held.append(path.open("wb"))

    result = run_scenarios(model_lab, [scenario_of(keep_a_file)])
    for each in held:
        each.close()
    assert result.leaks == ("own: 1 more disk files open",)


def test_a_scenario_may_skip_itself_with_a_reason(model_lab: Lab) -> None:
    result = run_scenarios(model_lab, [scenario_of(lambda context: context.skip("no such thing"))])
    (only,) = result.scenarios
    assert (only.outcome, only.reason) == (Outcome.SKIPPED, "no such thing")


def test_faults_of_the_command_line_begin_anew_in_each_scenario() -> None:
    config = LabConfig(backend="model", faults={"guest.create": "1*error(0x80004005)"})
    chosen = [each for each in CATALOGUE if each.name == "released-twice"]
    with Lab.open(config) as own:
        own.demo_image()
        result = run_scenarios(own, chosen, repeat=2)
    assert [each.outcome for each in result.scenarios] == [Outcome.FAILED] * 2
    for each in result.scenarios:
        assert each.reason is not None
        assert "guest.create" in each.reason
        assert "--fault 'guest.create=1*error(0x80004005)'" in each.repro
    assert result.leaks == ()


def test_wrong_faults_are_refused_before_anything_is_made() -> None:
    with pytest.raises(UsageError, match="position 0"):
        Lab.open(LabConfig(backend="model", faults={"guest.create": "explode"}))


def test_scenarios_run_side_by_side_and_each_is_told_whole() -> None:
    told: list[tuple[str, str]] = []

    class Listener:
        def run_started(self, scenarios: object, *, backend: str, accelerator: str) -> None:
            told.append(("run", f"{backend} {accelerator}"))

        def scenario_started(self, name: str, summary: str) -> None:
            told.append(("start", name))

        def step_started(self, scenario: str, step: str) -> None:
            told.append(("step", scenario))

        def step_finished(self, scenario: str, step: object) -> None:
            pass

        def scenario_finished(self, result: object) -> None:
            told.append(("end", told[-1][1]))

        def run_finished(self, result: object) -> None:
            told.append(("over", ""))

    names = ("again-and-again", "conflicting-guest-path", "failed-boots", "released-twice")
    chosen = [scenario for scenario in CATALOGUE if scenario.name in names]
    result = run_parallel(MODEL, chosen, jobs=2, listeners=[Listener()], repeat=2)
    assert [each.outcome for each in result.scenarios] == [Outcome.PASSED] * 8
    assert [each.name for each in result.scenarios] == [each.name for each in chosen] * 2
    assert result.leaks == ()
    assert told[0] == ("run", "model none")
    assert told[-1] == ("over", "")
    current = None
    for kind, name in told[1:-1]:
        current = name if kind == "start" else current
        assert name == current, "two scenarios are told at the same time"


def test_a_worker_that_has_nothing_to_do_any_more_goes_and_the_others_work_on() -> None:
    names = ("released-twice", "container-cycles")  # one is over long before the other
    chosen = [scenario for scenario in CATALOGUE if scenario.name in names]
    result = run_parallel(MODEL, chosen, jobs=2)
    assert [each.outcome for each in result.scenarios] == [Outcome.PASSED] * 2


class KillsAWorker:
    """A listener that kills one worker, once, as soon as the first one is ready."""

    def run_started(self, scenarios: object, *, backend: str, accelerator: str) -> None:
        multiprocessing.active_children()[0].kill()

    def scenario_started(self, name: str, summary: str) -> None:
        pass

    def step_started(self, scenario: str, step: str) -> None:
        pass

    def step_finished(self, scenario: str, step: object) -> None:
        pass

    def scenario_finished(self, result: object) -> None:
        pass

    def run_finished(self, result: object) -> None:
        pass


def test_a_worker_that_dies_costs_its_scenario_and_no_other() -> None:
    names = ("again-and-again", "container-cycles", "failed-boots", "released-twice")
    chosen = [scenario for scenario in CATALOGUE if scenario.name in names]
    result = run_parallel(MODEL, chosen, jobs=1, listeners=[KillsAWorker()])
    outcomes = [each.outcome for each in result.scenarios]
    assert outcomes == [Outcome.ERROR, *[Outcome.PASSED] * 3]
    assert result.scenarios[0].reason is not None
    assert "its worker died: signal 9" in result.scenarios[0].reason
    assert multiprocessing.active_children() == []


def test_workers_that_cannot_work_are_the_environments_fault() -> None:
    config = LabConfig(backend="model", faults={"guest.create": "explode"})
    with pytest.raises(InfrastructureError, match="a worker cannot open its lab"):
        run_parallel(config, QUICK[:2], jobs=2)

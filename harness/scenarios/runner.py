"""Runs scenarios in a lab, one after the other, and proves after each that nothing was left."""

from __future__ import annotations

import datetime
import platform
import shlex
import time
from collections.abc import Mapping, Sequence

from harness.capabilities import missing
from harness.lab import Lab
from harness.report.events import Outcome, RunListener, RunResult, ScenarioResult
from harness.scenarios.outcome import outcome_of, reason_for
from harness.scenarios.scenario import Scenario, ScenarioContext, SkipScenario


def run_scenarios(
    lab: Lab,
    scenarios: Sequence[Scenario],
    *,
    listeners: Sequence[RunListener] = (),
    repeat: int = 1,
) -> RunResult:
    """Run each scenario `repeat` times and return what happened, leaks included.

    An interrupt ends the run: the scenario under way is reported as an error, what follows is
    skipped, and the result is returned all the same. Listeners are told everything in order.
    """
    plan = [scenario for _ in range(repeat) for scenario in scenarios]
    started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    began = time.monotonic()
    backend, accelerator = lab.backend, lab.accelerator
    for listener in listeners:
        listener.run_started(
            [scenario.name for scenario in plan], backend=backend, accelerator=accelerator
        )
    results: list[ScenarioResult] = []
    leaks: list[str] = []
    interrupted = False
    for scenario in plan:
        if interrupted:
            results.append(skipped(scenario, "the run was interrupted"))
            for listener in listeners:
                listener.scenario_finished(results[-1])
        else:
            result, left, interrupted = run_scenario(lab, scenario, listeners=listeners)
            results.append(result)
            leaks += [f"{scenario.name}: {leak}" for leak in left]
    run = RunResult(
        backend=backend,
        accelerator=accelerator,
        started_at=started_at,
        duration_s=time.monotonic() - began,
        scenarios=tuple(results),
        leaks=tuple(leaks),
        environment=environment_of(lab),
        interrupted=interrupted,
    )
    for listener in listeners:
        listener.run_finished(run)
    return run


def run_scenario(
    lab: Lab, scenario: Scenario, *, listeners: Sequence[RunListener] = ()
) -> tuple[ScenarioResult, tuple[str, ...], bool]:
    """Run one scenario and return its result, what it left behind, and whether it was interrupted.

    What is left is attributed to the scenario: the lab looks at what came since its beginning.
    """
    for listener in listeners:
        listener.scenario_started(scenario.name, scenario.summary)
    leaks: tuple[str, ...] = ()
    interrupted = False
    if reason := missing(lab.backend, scenario.needs):
        result = skipped(scenario, reason)
    else:
        result, leaks, interrupted = _run_body(lab, scenario, listeners)
    for listener in listeners:
        listener.scenario_finished(result)
    return result, leaks, interrupted


def _run_body(
    lab: Lab, scenario: Scenario, listeners: Sequence[RunListener]
) -> tuple[ScenarioResult, tuple[str, ...], bool]:
    lab.begin(scenario.name)
    context = ScenarioContext(scenario.name, lab, listeners)
    began = time.monotonic()
    outcome, reason = Outcome.PASSED, None
    leaks: tuple[str, ...] = ()
    interrupted = False
    try:
        scenario.body(context)
        # A scenario that passed has taken everything down itself: what is here now is a leak.
        leaks = lab.audit()
    except SkipScenario as skip:
        outcome, reason = Outcome.SKIPPED, str(skip)
    except KeyboardInterrupt as error:
        outcome, reason, interrupted = Outcome.ERROR, reason_for(error), True
    except Exception as error:  # noqa: BLE001 - the boundary: whatever a body raises is its outcome
        outcome, reason = outcome_of(error), reason_for(error)
        if death := lab.death():
            # What a body could not do without its machine proves nothing about the product.
            outcome = Outcome.ERROR
            reason = f"the utility VM died: {death}; run it again with --keep failed ({reason})"
    if pauses := lab.pauses():
        context.fact("held by the host", "; ".join(pauses))
    console = "" if outcome in (Outcome.PASSED, Outcome.SKIPPED) else lab.console()
    if outcome is not Outcome.PASSED or leaks:
        try:
            lab.reset()
            leaks = leaks or lab.audit()
        except Exception as error:  # noqa: BLE001 - the same boundary
            leaks = (*leaks, f"taking down failed: {reason_for(error)}")
    result = ScenarioResult(
        name=scenario.name,
        summary=scenario.summary,
        tags=scenario.tags,
        outcome=outcome,
        reason=reason,
        duration_s=time.monotonic() - began,
        facts=dict(context.facts),
        steps=tuple(context.steps),
        console=console,
        repro=_repro(lab, scenario),
    )
    return result, leaks, interrupted


def skipped(scenario: Scenario, reason: str) -> ScenarioResult:
    """Return the result of a scenario that did not run."""
    return ScenarioResult(
        name=scenario.name,
        summary=scenario.summary,
        tags=scenario.tags,
        outcome=Outcome.SKIPPED,
        reason=reason,
        duration_s=0.0,
    )


def _repro(lab: Lab, scenario: Scenario) -> str:
    command = ["lcowlab", "run", scenario.name, "--backend", lab.backend]
    if lab.backend == "qemu":
        command += ["--accelerator", lab.accelerator]
    for boundary, spec in lab.config.faults.items():
        command += ["--fault", f"{boundary}={spec}"]
    command += ["--keep", "failed"]
    return shlex.join(command)


def environment_of(lab: Lab) -> Mapping[str, str]:
    """Return versions and facts that a report of a run in this lab states."""
    return {
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **lab.environment(),
    }

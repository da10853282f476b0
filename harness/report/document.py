"""The machine-readable result of a run: one JSON document, schema `lcowlab.run/1`.

Fields are only ever added to a schema version; anything else makes a new one. Times are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.report.events import Fact, Outcome, RunResult, ScenarioResult, StepResult
from harness.report.text import printable

SCHEMA = "lcowlab.run/1"


def run_document(result: RunResult) -> dict[str, Any]:
    """Return the document of a run: plain values that `json.dumps` takes, in any encoding.

    Without consoles: those belong to the HTML and JUnit reports.
    """
    return {
        "schema": SCHEMA,
        "backend": printable(result.backend),
        "accelerator": printable(result.accelerator),
        "started_at": printable(result.started_at),
        "duration_s": _rounded(result.duration_s),
        "outcome": run_outcome(result).value,
        "interrupted": result.interrupted,
        "environment": {
            printable(name): printable(value) for name, value in result.environment.items()
        },
        "scenarios": [_scenario(each) for each in result.scenarios],
        "leaks": [printable(leak) for leak in result.leaks],
    }


def run_outcome(result: RunResult) -> Outcome:
    """Return the one word for a run: the worst outcome; a leak fails; nothing run is skipped."""
    outcomes = {each.outcome for each in result.scenarios}
    if Outcome.FAILED in outcomes or result.leaks:
        return Outcome.FAILED
    if Outcome.ERROR in outcomes or result.interrupted:
        return Outcome.ERROR
    return Outcome.PASSED if Outcome.PASSED in outcomes else Outcome.SKIPPED


def _scenario(result: ScenarioResult) -> dict[str, Any]:
    return {
        "name": printable(result.name),
        "summary": printable(result.summary),
        "tags": [printable(tag) for tag in result.tags],
        "outcome": result.outcome.value,
        "reason": None if result.reason is None else printable(result.reason),
        "duration_s": _rounded(result.duration_s),
        "facts": _facts(result.facts),
        "steps": [_step(each) for each in result.steps],
        "repro": printable(result.repro),
    }


def _step(step: StepResult) -> dict[str, Any]:
    return {
        "name": printable(step.name),
        "started_s": _rounded(step.started_s),
        "duration_s": _rounded(step.duration_s),
        "outcome": step.outcome.value,
        "detail": printable(step.detail),
    }


def _facts(facts: Mapping[str, Fact]) -> dict[str, Fact]:
    return {
        printable(name): printable(value) if isinstance(value, str) else value
        for name, value in facts.items()
    }


def _rounded(duration_s: float) -> float:
    return round(duration_s, 6)

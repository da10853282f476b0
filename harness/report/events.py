"""What happens in a run, as plain values, and who listens.

A run calls its listeners (`RunListener`) as things happen and ends with one `RunResult`, from
which the JSON document, the JUnit file and the HTML page are all made.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Fact = int | float | str | bool


class Outcome(enum.StrEnum):
    """How a step or scenario ended: `failed` blames the product, `error` the environment."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step of a scenario; times in seconds, `started_s` from the scenario's start."""

    name: str
    started_s: float
    duration_s: float
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """One scenario; `reason` says why it did not pass, `console` is the guest's last output."""

    name: str
    summary: str
    tags: tuple[str, ...]
    outcome: Outcome
    reason: str | None
    duration_s: float
    facts: Mapping[str, Fact] = field(default_factory=dict)
    steps: tuple[StepResult, ...] = ()
    console: str = ""
    repro: str = ""
    """One command that runs this scenario again."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run; `started_at` is UTC in ISO 8601, `environment` names versions and the host."""

    backend: str
    accelerator: str
    started_at: str
    duration_s: float
    scenarios: tuple[ScenarioResult, ...]
    leaks: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    interrupted: bool = False


class RunListener(Protocol):
    """Is told what happens, in order, from one thread at a time."""

    def run_started(self, scenarios: Sequence[str], *, backend: str, accelerator: str) -> None:
        """The named scenarios are about to run."""
        ...

    def scenario_started(self, name: str, summary: str) -> None:
        """A scenario begins."""
        ...

    def step_started(self, scenario: str, step: str) -> None:
        """A step begins."""
        ...

    def step_finished(self, scenario: str, step: StepResult) -> None:
        """A step ended."""
        ...

    def scenario_finished(self, result: ScenarioResult) -> None:
        """A scenario ended."""
        ...

    def run_finished(self, result: RunResult) -> None:
        """The run ended; nothing follows."""
        ...

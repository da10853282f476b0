"""What is known of a run from its events: all that there is where it never said how it ended."""

from __future__ import annotations

import datetime
import time
from collections import Counter
from dataclasses import replace

from harness.report.events import Outcome, RunResult, ScenarioResult, StepResult
from harness.runs.request import RunRequest
from harness.runs.wire import Event, RunStarted, ScenarioFinished, ScenarioStarted, StepFinished
from harness.scenarios.catalogue import CATALOGUE, select
from harness.scenarios.runner import skipped


class Tally:
    """Takes events in their order."""

    def __init__(self, request: RunRequest) -> None:
        self._request = request
        self._began = time.monotonic()
        self._started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._run: RunStarted | None = None
        self._finished: list[ScenarioResult] = []
        self._under_way: ScenarioStarted | None = None
        self._steps: list[StepResult] = []

    @property
    def started(self) -> bool:
        """Whether a lab was opened and scenarios began."""
        return self._run is not None

    def take(self, event: Event) -> None:
        """Note an event."""
        match event:
            case RunStarted():
                self._run = event
            case ScenarioStarted():
                self._under_way, self._steps = event, []
            case StepFinished(step=step):
                self._steps.append(step)
            case ScenarioFinished(result=result):
                self._finished.append(result)
                self._under_way = None
            case _:
                pass

    def broken_off(self, reason: str, *, interrupted: bool) -> tuple[RunResult, int]:
        """Return the result of a run that ended without one, and how many scenarios had finished.

        What was under way is an error with that reason; what would have followed is skipped. One
        scenario at least is an error: a run whose end is unknown did not pass.
        """
        done = list(self._finished)
        lacking = Counter(self._request.scenarios * self._request.repeat)
        lacking.subtract(each.name for each in done)
        left: list[ScenarioResult] = []
        for name in lacking.elements():
            (scenario,) = select(CATALOGUE, names=[name])
            left.append(skipped(scenario, reason))
        at = self._under_way.name if self._under_way else None
        first = next((n for n, each in enumerate(left) if at in (None, each.name)), None)
        if first is not None:
            broken = replace(left.pop(first), outcome=Outcome.ERROR, steps=tuple(self._steps))
            left.insert(0, broken)
        elif not interrupted:
            why = f"{done[-1].outcome.value}, but the run did not end: {reason}"
            done[-1] = replace(done[-1], outcome=Outcome.ERROR, reason=why)
        result = RunResult(
            backend=self._run.backend if self._run else self._request.backend,
            accelerator=self._run.accelerator if self._run else "",
            started_at=self._started_at,
            duration_s=time.monotonic() - self._began,
            scenarios=(*done, *left),
            environment={"broken off": reason},
            interrupted=interrupted,
        )
        return result, len(self._finished)

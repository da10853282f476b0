"""One request on several hosts at once: one view, and one result of what each of them said."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from harness.errors import HarnessError
from harness.report.events import Outcome, RunListener, RunResult, ScenarioResult, StepResult
from harness.runs.remote import HostedRun
from harness.runs.request import RunRequest
from harness.scenarios.catalogue import CATALOGUE, select
from harness.scenarios.outcome import reason_for
from harness.scenarios.runner import skipped
from snapshotter.errors import SnapshotterError

Run = Callable[[str, RunListener], HostedRun]
_LOOK_S: Final = 0.2


def run_on_each(
    hosts: Sequence[str], request: RunRequest, run: Run, *, listeners: Sequence[RunListener]
) -> tuple[RunResult, Mapping[str, str]]:
    """Carry a request out on every host, side by side; return one result and what is kept where.

    `run` carries it out on one and is called in a thread of its own. Scenarios are named
    `SCENARIO@HOST`. A host that cannot be used is an error of each of its scenarios: the others
    go on. Listeners are told scenario by scenario, when it has ended.
    """
    started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    began = time.monotonic()
    lock = threading.Lock()
    planned = [f"{name}@{host}" for host in hosts for name in _names(request)]
    for listener in listeners:
        listener.run_started(
            planned, backend=request.backend, accelerator=f"{len(hosts)} hosts side by side"
        )
    results: dict[str, RunResult] = {}
    kept: dict[str, str] = {}

    def carry_out(host: str) -> None:
        teller = _Teller(host, listeners, lock)
        try:
            hosted = run(host, teller)
        except (HarnessError, SnapshotterError) as error:
            results[host] = _unusable(request, reason_for(error), interrupted=False)
        except KeyboardInterrupt:
            results[host] = _unusable(request, "interrupted", interrupted=True)
        except Exception as error:  # noqa: BLE001 - the boundary of a thread
            results[host] = _unusable(request, repr(error), interrupted=False)
        else:
            results[host] = hosted.result
            if hosted.kept:
                kept[host] = hosted.kept
            return
        for each in results[host].scenarios:
            teller.scenario_finished(each)

    threads = [threading.Thread(target=carry_out, args=(host,), daemon=True) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # so that a signal's handler has its turn on Windows, too
            thread.join(_LOOK_S)
    merged = merge(
        {host: results[host] for host in hosts},
        started_at=started_at,
        duration_s=time.monotonic() - began,
    )
    for listener in listeners:
        listener.run_finished(merged)
    return merged, kept


def merge(results: Mapping[str, RunResult], *, started_at: str, duration_s: float) -> RunResult:
    """Return the one result of what several hosts said; everything in it names its host."""
    return RunResult(
        backend=_joined(each.backend for each in results.values()),
        accelerator=_joined(each.accelerator for each in results.values()),
        started_at=started_at,
        duration_s=duration_s,
        scenarios=tuple(
            _at(host, scenario) for host, each in results.items() for scenario in each.scenarios
        ),
        leaks=tuple(f"{host}: {leak}" for host, each in results.items() for leak in each.leaks),
        environment={
            f"{host} {name}": value
            for host, each in results.items()
            for name, value in each.environment.items()
            if name != "host"
        },
        interrupted=any(each.interrupted for each in results.values()),
    )


def _joined(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(filter(None, words)))


def _names(request: RunRequest) -> tuple[str, ...]:
    return request.scenarios * request.repeat


def _at(host: str, result: ScenarioResult) -> ScenarioResult:
    return replace(result, name=f"{result.name}@{host}")


def _unusable(request: RunRequest, why: str, *, interrupted: bool) -> RunResult:
    """Return the result of a host on which nothing ran."""
    outcome = Outcome.SKIPPED if interrupted else Outcome.ERROR
    scenarios = []
    for name in _names(request):
        (scenario,) = select(CATALOGUE, names=[name])
        scenarios.append(replace(skipped(scenario, why), outcome=outcome))
    return RunResult("", "", "", 0.0, tuple(scenarios), environment={}, interrupted=interrupted)


class _Teller:
    """Tells what one host says, a whole scenario at a time: views follow one at once."""

    def __init__(self, host: str, listeners: Sequence[RunListener], lock: threading.Lock) -> None:
        self._host = host
        self._listeners = tuple(listeners)
        self._lock = lock

    def run_started(self, scenarios: Sequence[str], *, backend: str, accelerator: str) -> None:
        """Nothing: the whole was told at its beginning."""

    def scenario_started(self, name: str, summary: str) -> None:
        """Nothing yet."""

    def step_started(self, scenario: str, step: str) -> None:
        """Nothing yet."""

    def step_finished(self, scenario: str, step: StepResult) -> None:
        """Nothing yet."""

    def scenario_finished(self, result: ScenarioResult) -> None:
        """Tell all of a scenario."""
        named = _at(self._host, result)
        with self._lock:
            for listener in self._listeners:
                listener.scenario_started(named.name, named.summary)
                for step in named.steps:
                    listener.step_started(named.name, step.name)
                    listener.step_finished(named.name, step)
                listener.scenario_finished(named)

    def run_finished(self, result: RunResult) -> None:
        """Nothing: the merged result is told once."""

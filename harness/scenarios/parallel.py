"""Runs scenarios side by side: worker processes, each with a lab of its own.

A worker's lab, emulators and open files are its own, so that its audit never sees another's. What
happens in a worker is told to the listeners scenario by scenario, when that has ended.
"""

from __future__ import annotations

import datetime
import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from types import FrameType

from harness.errors import InfrastructureError
from harness.lab import Lab, LabConfig
from harness.report.events import RunListener, RunResult, ScenarioResult, StepResult
from harness.scenarios.catalogue import CATALOGUE, select
from harness.scenarios.outcome import reason_for
from harness.scenarios.runner import environment_of, run_scenario, skipped
from harness.scenarios.scenario import Scenario

_POLL_S = 0.5
_END_S = 30.0


@dataclass(frozen=True, slots=True)
class _Ready:
    """A worker has its lab."""

    backend: str
    accelerator: str
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Done:
    """A worker has run one scenario of the plan."""

    number: int
    result: ScenarioResult
    leaks: tuple[str, ...]
    interrupted: bool


@dataclass(frozen=True, slots=True)
class _Broken:
    """A worker cannot work."""

    reason: str


_Message = _Ready | _Done | _Broken


def run_parallel(
    config: LabConfig,
    scenarios: Sequence[Scenario],
    *,
    jobs: int,
    listeners: Sequence[RunListener] = (),
    repeat: int = 1,
) -> RunResult:
    """Run each scenario `repeat` times, `jobs` at a time; otherwise as `run_scenarios`.

    Scenarios are found by their names in the catalogue. Raises InfrastructureError when a worker
    cannot open its lab.
    """
    plan = [scenario for _ in range(repeat) for scenario in scenarios]
    started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    tasks: multiprocessing.Queue[tuple[int, str] | None] = context.Queue()
    messages: multiprocessing.Queue[_Message] = context.Queue()
    workers = [
        context.Process(target=_work, args=(config, tasks, messages, os.getpid()))
        for _ in range(min(jobs, len(plan)))
    ]
    for number, scenario in enumerate(plan):
        tasks.put((number, scenario.name))
    for worker in workers:
        tasks.put(None)
        worker.start()
    collector = _Collector(plan, listeners)
    try:
        while not collector.complete:
            collector.take(_next(messages, workers))
    except KeyboardInterrupt:
        collector.interrupted = True
    finally:
        _end(workers, messages, collector, stop=not collector.complete)
    run = collector.finish(started_at=started_at, duration_s=time.monotonic() - began)
    for listener in listeners:
        listener.run_finished(run)
    return run


class _Collector:
    """Puts together what the workers say."""

    def __init__(self, plan: Sequence[Scenario], listeners: Sequence[RunListener]) -> None:
        self.interrupted = False
        self._plan = plan
        self._listeners = listeners
        self._ready: _Ready | None = None
        self._done: dict[int, _Done] = {}

    @property
    def complete(self) -> bool:
        return len(self._done) == len(self._plan) or self.interrupted

    def take(self, message: _Message) -> None:
        """Note a message, and tell the listeners. Raises InfrastructureError."""
        match message:
            case _Ready() if self._ready is None:
                self._ready = message
                names = [scenario.name for scenario in self._plan]
                for listener in self._listeners:
                    listener.run_started(
                        names, backend=message.backend, accelerator=message.accelerator
                    )
            case _Done(number=number, result=result):
                self._done[number] = message
                self.interrupted = self.interrupted or message.interrupted
                self._tell(result, result.steps)
            case _Broken(reason=reason):
                raise InfrastructureError(f"a worker cannot open its lab: {reason}")

    def _tell(self, result: ScenarioResult, steps: Sequence[StepResult]) -> None:
        for listener in self._listeners:
            listener.scenario_started(result.name, result.summary)
            for step in steps:
                listener.step_started(result.name, step.name)
                listener.step_finished(result.name, step)
            listener.scenario_finished(result)

    def finish(self, *, started_at: str, duration_s: float) -> RunResult:
        ready = self._ready or _Ready("", "", {})
        results: list[ScenarioResult] = []
        for number, scenario in enumerate(self._plan):
            done = self._done.get(number)
            if done is None:
                results.append(skipped(scenario, "the run was interrupted"))
                for listener in self._listeners:
                    listener.scenario_finished(results[-1])
            else:
                results.append(done.result)
        leaks = [
            f"{done.result.name}: {leak}"
            for _, done in sorted(self._done.items())
            for leak in done.leaks
        ]
        return RunResult(
            backend=ready.backend,
            accelerator=ready.accelerator,
            started_at=started_at,
            duration_s=duration_s,
            scenarios=tuple(results),
            leaks=tuple(leaks),
            environment=ready.environment,
            interrupted=self.interrupted,
        )


def _next(messages: multiprocessing.Queue[_Message], workers: Sequence[SpawnProcess]) -> _Message:
    """Return the next message. Raises InfrastructureError once no worker can send one."""
    while True:
        alive = any(worker.is_alive() for worker in workers)
        try:
            return messages.get(timeout=_POLL_S)
        except queue.Empty:
            if not alive:
                codes = ", ".join(str(worker.exitcode) for worker in workers)
                raise InfrastructureError(f"every worker ended early (codes {codes})") from None


def _end(
    workers: Sequence[SpawnProcess],
    messages: multiprocessing.Queue[_Message],
    collector: _Collector,
    *,
    stop: bool,
) -> None:
    """Wait for the workers; with `stop` each cleans up as after an interrupt."""
    if stop or collector.interrupted:
        for worker in workers:
            worker.terminate()
    deadline = time.monotonic() + _END_S
    while any(worker.is_alive() for worker in workers) and time.monotonic() < deadline:
        try:  # a worker ends when what it has said is taken
            message = messages.get(timeout=0.05)
        except queue.Empty:
            continue
        if not isinstance(message, _Broken):
            collector.take(message)
    for worker in workers:
        if worker.is_alive():
            worker.kill()
        worker.join()


def _work(
    config: LabConfig,
    tasks: multiprocessing.Queue[tuple[int, str] | None],
    messages: multiprocessing.Queue[_Message],
    parent: int,
) -> None:
    """Run scenarios until there are no more, or the parent is gone; the main of a worker."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with Lab.open(config) as lab:
            messages.put(_Ready(lab.backend, lab.accelerator, dict(environment_of(lab))))
            while os.getppid() == parent and (task := tasks.get()) is not None:
                number, name = task
                (scenario,) = select(CATALOGUE, names=[name])
                result, leaks, interrupted = run_scenario(lab, scenario)
                messages.put(_Done(number, result, leaks, interrupted))
                if interrupted:
                    break
    except KeyboardInterrupt:
        pass
    except Exception as error:  # noqa: BLE001 - the boundary of a process
        messages.put(_Broken(reason_for(error)))


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt

"""Runs scenarios side by side: worker processes, each with a lab of its own.

A worker's lab, emulators and open files are its own, so that its audit never sees another's. What
happens in a worker is told to the listeners scenario by scenario, when that has ended. Each worker
is handed one scenario at a time: one that dies costs that one, and another worker goes on.
"""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from types import FrameType

from harness.errors import InfrastructureError
from harness.lab import Lab, LabConfig
from harness.report.events import Outcome, RunListener, RunResult, ScenarioResult, StepResult
from harness.scenarios.catalogue import CATALOGUE, select
from harness.scenarios.outcome import reason_for
from harness.scenarios.runner import environment_of, run_scenario, skipped
from harness.scenarios.scenario import Scenario

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


class _Worker:
    """One worker process, seen from outside."""

    def __init__(self, context: SpawnContext, config: LabConfig) -> None:
        self.link, theirs = context.Pipe()
        self.doing: int | None = None
        self.dismissed = False
        self._process = context.Process(target=_work, args=(config, theirs))
        self._process.start()
        theirs.close()  # its death is the end of the stream here

    def give(self, number: int, name: str) -> None:
        """Have it run a scenario, by its number in the plan."""
        self.doing = number
        self._send((number, name))

    def receive(self) -> _Message | None:
        """Return what it says next; None once it has ended."""
        try:
            message: _Message = self.link.recv()
        except (EOFError, OSError):
            return None
        return message

    def dismiss(self) -> None:
        """Tell it that there is no more to do."""
        self.dismissed = True
        self._send(None)

    def interrupt(self) -> None:
        """Have it clean up and end, as after an interrupt."""
        self._process.terminate()

    def end(self, timeout_s: float) -> str:
        """Return how it ended, in words, killing it after the time."""
        self._process.join(timeout_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        code = self._process.exitcode or 0
        self._process.close()
        self.link.close()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def _send(self, task: tuple[int, str] | None) -> None:
        with contextlib.suppress(OSError):  # it has died: `receive` says so
            self.link.send(task)


def run_parallel(
    config: LabConfig,
    scenarios: Sequence[Scenario],
    *,
    jobs: int,
    listeners: Sequence[RunListener] = (),
    repeat: int = 1,
) -> RunResult:
    """Run each scenario `repeat` times, `jobs` at a time; otherwise as `run_scenarios`.

    Scenarios are found by their names in the catalogue; one whose worker dies is an error. Raises
    InfrastructureError when a worker cannot open its lab.
    """
    plan = [scenario for _ in range(repeat) for scenario in scenarios]
    started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    collector = _Collector(plan, listeners)
    todo = deque(range(len(plan)))
    workers: list[_Worker] = []
    try:
        for _ in range(min(jobs, len(plan))):
            workers.append(_Worker(context, config))
        while not collector.complete:
            for link in wait([worker.link for worker in workers]):
                (worker,) = (each for each in workers if each.link is link)
                message = worker.receive()
                if message is None:
                    workers.remove(worker)
                    how = worker.end(_END_S)
                    if not worker.dismissed:
                        collector.lost(worker.doing, how)
                    if todo:
                        workers.append(_Worker(context, config))
                    continue
                worker.doing = None
                collector.take(message)
                if todo and not collector.interrupted:
                    number = todo.popleft()
                    worker.give(number, plan[number].name)
                else:
                    worker.dismiss()
    except KeyboardInterrupt:
        collector.interrupted = True
    finally:
        _end(workers, collector, stop=collector.interrupted or not collector.complete)
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

    def lost(self, number: int | None, how: str) -> None:
        """Note that a worker has died. Raises InfrastructureError before it ran anything."""
        if number is None:
            raise InfrastructureError(f"a worker ended before it had its lab: {how}")
        scenario = self._plan[number]
        result = ScenarioResult(
            name=scenario.name,
            summary=scenario.summary,
            tags=scenario.tags,
            outcome=Outcome.ERROR,
            reason=f"its worker died: {how}; the kernel's log says whether memory ran out",
            duration_s=0.0,
        )
        self.take(_Done(number, result, (), interrupted=False))

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


def _end(workers: Sequence[_Worker], collector: _Collector, *, stop: bool) -> None:
    """Wait for the workers; with `stop` each cleans up as after an interrupt."""
    for worker in workers:
        if stop:
            worker.interrupt()
    deadline = time.monotonic() + _END_S
    going = {worker.link: worker for worker in workers}
    while going and (left := deadline - time.monotonic()) > 0:
        for link in wait(list(going), timeout=left):
            (worker,) = (each for each in workers if each.link is link)
            message = worker.receive()
            if message is None:
                del going[worker.link]
            elif isinstance(message, _Done):
                collector.take(message)
            else:
                worker.dismiss()  # it came too late to be of use
    for worker in workers:
        worker.end(max(0.0, deadline - time.monotonic()))


def _work(config: LabConfig, link: Connection) -> None:
    """Run scenarios until there are no more, or the parent is gone; the main of a worker."""
    signal.signal(signal.SIGTERM, _interrupt)
    with link, contextlib.suppress(KeyboardInterrupt, EOFError, BrokenPipeError):
        try:
            with Lab.open(config) as lab:
                link.send(_Ready(lab.backend, lab.accelerator, dict(environment_of(lab))))
                while (task := link.recv()) is not None:
                    number, name = task
                    (scenario,) = select(CATALOGUE, names=[name])
                    result, leaks, interrupted = run_scenario(lab, scenario)
                    link.send(_Done(number, result, leaks, interrupted))
                    if interrupted:
                        break
        except (EOFError, BrokenPipeError):
            raise  # the parent is gone
        except Exception as error:  # noqa: BLE001 - the boundary of a process
            link.send(_Broken(reason_for(error)))


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt

"""Carries out a run on this machine: labs are opened, scenarios run, and labs closed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from harness.lab import Lab, LabConfig
from harness.report.events import Outcome, RunListener, RunResult
from harness.runs.request import Keep, RunRequest
from harness.scenarios.catalogue import CATALOGUE, select
from harness.scenarios.parallel import run_parallel
from harness.scenarios.runner import run_scenarios


@dataclass(frozen=True, slots=True)
class Played:
    """What a run came to; `kept` is the lab's directory where it stays."""

    result: RunResult
    kept: Path | None = None


def check_request(request: RunRequest) -> None:
    """Raise UsageError for options that exclude each other."""
    if request.jobs > 1 and request.keep is not Keep.NEVER:
        raise UsageError("--keep works with one job only: run the scenario alone to keep it")


def play(
    request: RunRequest,
    config: LabConfig,
    *,
    listeners: Sequence[RunListener],
    progress: Callable[[str], None],
) -> Played:
    """Run what is asked for in labs made as `config` says.

    Raises UsageError, and as `Lab.open` and `run_scenarios`; labs are closed then.
    """
    check_request(request)
    chosen = select(CATALOGUE, names=request.scenarios)
    if request.jobs > 1:
        return Played(
            run_parallel(
                config, chosen, jobs=request.jobs, listeners=listeners, repeat=request.repeat
            )
        )
    with Lab.open(config, progress=progress) as lab:
        lab.check_disks()
        lab.demo_archive()  # part of the set-up: a scenario's time is its own
        result = run_scenarios(lab, chosen, listeners=listeners, repeat=request.repeat)
        lab.keep = request.keep is Keep.ALWAYS or (
            request.keep is Keep.FAILED and not all_passed(result)
        )
        return Played(result, lab.directory if lab.keep else None)


def sweep(config: LabConfig, *, progress: Callable[[str], None]) -> RunResult:
    """Remove what killed runs left in the folder of labs, and return what is there all the same."""
    with Lab.open(config, progress=progress) as lab:
        return RunResult(
            backend=lab.backend,
            accelerator=lab.accelerator,
            started_at="",
            duration_s=0.0,
            scenarios=(),
            leaks=lab.audit(),
        )


def all_passed(result: RunResult) -> bool:
    """Whether every scenario passed and nothing was left behind."""
    return not result.leaks and all(
        scenario.outcome is Outcome.PASSED for scenario in result.scenarios
    )

"""Exit codes of `lcowlab`, and which one a run gets."""

from __future__ import annotations

import enum

from harness.report.events import Outcome, RunResult


class ExitCode(enum.IntEnum):
    """What the exit code says; pytest keeps its own."""

    OK = 0
    FAILED = 1
    USAGE = 2
    INFRASTRUCTURE = 3
    NOTHING_RAN = 4
    LEASE = 5
    LEAK = 6
    INTERRUPTED = 130


def exit_code_of(result: RunResult) -> ExitCode:
    """Return the code for a finished run: an interrupt, then failures, then errors, then leaks."""
    outcomes = {scenario.outcome for scenario in result.scenarios}
    if result.interrupted:
        return ExitCode.INTERRUPTED
    if Outcome.FAILED in outcomes:
        return ExitCode.FAILED
    if Outcome.ERROR in outcomes:
        return ExitCode.INFRASTRUCTURE
    if result.leaks:
        return ExitCode.LEAK
    if Outcome.PASSED not in outcomes:
        return ExitCode.NOTHING_RAN
    return ExitCode.OK

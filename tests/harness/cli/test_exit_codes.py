"""Which exit code a run gets."""

from __future__ import annotations

import pytest

from harness.cli.exit_codes import ExitCode, exit_code_of
from harness.report.events import Outcome, RunResult, ScenarioResult


def _result(
    *outcomes: Outcome, leaks: tuple[str, ...] = (), interrupted: bool = False
) -> RunResult:
    scenarios = tuple(
        ScenarioResult(f"s{index}", "", (), outcome, None, 0.1)
        for index, outcome in enumerate(outcomes)
    )
    return RunResult(
        "qemu",
        "tcg",
        "2026-01-01T00:00:00+00:00",
        1.0,
        scenarios,
        leaks,
        interrupted=interrupted,
    )


@pytest.mark.parametrize(
    ("result", "code"),
    [
        (_result(Outcome.PASSED), ExitCode.OK),
        (_result(Outcome.PASSED, Outcome.SKIPPED), ExitCode.OK),
        (_result(Outcome.FAILED, Outcome.ERROR, leaks=("x",)), ExitCode.FAILED),
        (_result(Outcome.PASSED, Outcome.ERROR, leaks=("x",)), ExitCode.INFRASTRUCTURE),
        (_result(Outcome.PASSED, leaks=("x",)), ExitCode.LEAK),
        (_result(Outcome.SKIPPED), ExitCode.NOTHING_RAN),
        (_result(), ExitCode.NOTHING_RAN),
        (_result(Outcome.FAILED, interrupted=True), ExitCode.INTERRUPTED),
    ],
)
def test_the_gravest_thing_decides(result: RunResult, code: ExitCode) -> None:
    assert exit_code_of(result) is code

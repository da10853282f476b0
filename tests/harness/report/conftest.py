"""Runs to report: one of every outcome, and one whose every text is hostile."""

from __future__ import annotations

import pytest

from harness.report.events import Outcome, RunResult, ScenarioResult, StepResult

HOSTILE = (
    "<script>alert('x')</script> & \"quoted\" "
    "\x00\x08\x1b[31mred\x1b[0m \ud800 \uffff ]]> {{ 7*7 }}"
)


@pytest.fixture
def result() -> RunResult:
    return RunResult(
        backend="qemu",
        accelerator="tcg",
        started_at="2026-01-02T03:04:05+00:00",
        duration_s=4.5,
        scenarios=(
            ScenarioResult(
                name="shared-scratch",
                summary="Four hold one scratch.",
                tags=("core", "scratch"),
                outcome=Outcome.PASSED,
                reason=None,
                duration_s=2.0,
                facts={"containers": 4, "same_free_space": True, "boot_s": 1.23456},
                steps=(
                    StepResult("boot", 0.0, 1.5, Outcome.PASSED),
                    StepResult("attach", 1.5, 0.25, Outcome.PASSED),
                ),
                repro="lcowlab run shared-scratch",
            ),
            ScenarioResult(
                name="crash",
                summary="The VM dies.",
                tags=("core",),
                outcome=Outcome.FAILED,
                reason="expected 1 attachment, found 2",
                duration_s=1.0,
                steps=(
                    StepResult("kill", 0.0, 0.4, Outcome.PASSED),
                    StepResult("look", 0.4, 0.6, Outcome.FAILED, "found 2"),
                ),
                console="".join(f"line {n}\n" for n in range(500)),
                repro="lcowlab run crash --keep failed",
            ),
            ScenarioResult(
                "no-qemu", "Needs QEMU.", (), Outcome.ERROR, "qemu is not installed", 0.5
            ),
            ScenarioResult("big", "Needs memory.", (), Outcome.SKIPPED, "needs 8 GiB", 0.0),
        ),
        environment={"kernel": "6.1.0", "python": "3.11"},
    )


@pytest.fixture
def hostile() -> RunResult:
    return RunResult(
        backend=HOSTILE,
        accelerator=HOSTILE,
        started_at=HOSTILE,
        duration_s=0.0,
        scenarios=(
            ScenarioResult(
                name=HOSTILE,
                summary=HOSTILE,
                tags=(HOSTILE,),
                outcome=Outcome.FAILED,
                reason=HOSTILE,
                duration_s=0.0,
                facts={HOSTILE: HOSTILE},
                steps=(StepResult(HOSTILE, 0.0, 0.0, Outcome.ERROR, HOSTILE),),
                console=HOSTILE,
                repro=HOSTILE,
            ),
        ),
        leaks=(HOSTILE,),
        environment={HOSTILE: HOSTILE},
        interrupted=True,
    )

from __future__ import annotations

import dataclasses
import json

import pytest

from harness.report.document import run_document, run_outcome
from harness.report.events import Outcome, RunResult


def test_the_document_has_the_schema_that_is_promised(result: RunResult) -> None:
    passed = dataclasses.replace(result, scenarios=result.scenarios[:1])
    assert run_document(passed) == {
        "schema": "lcowlab.run/1",
        "backend": "qemu",
        "accelerator": "tcg",
        "started_at": "2026-01-02T03:04:05+00:00",
        "duration_s": 4.5,
        "outcome": "passed",
        "interrupted": False,
        "environment": {"kernel": "6.1.0", "python": "3.11"},
        "scenarios": [
            {
                "name": "shared-scratch",
                "summary": "Four hold one scratch.",
                "tags": ["core", "scratch"],
                "outcome": "passed",
                "reason": None,
                "duration_s": 2.0,
                "facts": {"containers": 4, "same_free_space": True, "boot_s": 1.23456},
                "steps": [
                    {
                        "name": "boot",
                        "started_s": 0.0,
                        "duration_s": 1.5,
                        "outcome": "passed",
                        "detail": "",
                    },
                    {
                        "name": "attach",
                        "started_s": 1.5,
                        "duration_s": 0.25,
                        "outcome": "passed",
                        "detail": "",
                    },
                ],
                "repro": "lcowlab run shared-scratch",
            }
        ],
        "leaks": [],
    }


def test_hostile_text_becomes_json_that_every_reader_takes(hostile: RunResult) -> None:
    text = json.dumps(run_document(hostile), ensure_ascii=False)
    assert json.loads(text.encode("utf-8"))["leaks"][0].startswith("<script>")
    assert "\x00" not in text


@pytest.mark.parametrize(
    ("keep", "leaks", "interrupted", "outcome"),
    [
        ([0], (), False, Outcome.PASSED),
        ([0, 3], (), False, Outcome.PASSED),
        ([3], (), False, Outcome.SKIPPED),
        ([], (), False, Outcome.SKIPPED),
        ([0, 2], (), False, Outcome.ERROR),
        ([0, 1, 2], (), False, Outcome.FAILED),
        ([0], ("a process",), False, Outcome.FAILED),
        ([0], (), True, Outcome.ERROR),
    ],
)
def test_the_outcome_of_a_run_is_the_worst_there_is(
    result: RunResult,
    keep: list[int],
    leaks: tuple[str, ...],
    interrupted: bool,
    outcome: Outcome,
) -> None:
    run = dataclasses.replace(
        result,
        scenarios=tuple(result.scenarios[index] for index in keep),
        leaks=leaks,
        interrupted=interrupted,
    )
    assert run_outcome(run) is outcome

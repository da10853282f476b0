"""Selecting scenarios, and whose fault an error is."""

from __future__ import annotations

import pytest

from harness.errors import (
    CheckFailedError,
    HarnessError,
    LaunchError,
    MissingProgramError,
    UsageError,
)
from harness.report.events import Outcome
from harness.scenarios.catalogue import CATALOGUE, select
from harness.scenarios.outcome import outcome_of, reason_for
from snapshotter.errors import DigestMismatchError, UnavailableError


def test_names_of_the_catalogue_are_unique_and_the_core_ones_are_there() -> None:
    names = [scenario.name for scenario in CATALOGUE]
    assert len(set(names)) == len(names)
    core = [scenario.name for scenario in select(CATALOGUE, tags=["core"])]
    assert core == ["shared-scratch", "shared-scratch-crash"]


def test_names_win_and_a_name_given_twice_counts_once() -> None:
    chosen = select(CATALOGUE, names=["shared-scratch", "shared-scratch"], tags=["core"])
    assert [scenario.name for scenario in chosen] == ["shared-scratch"]


def test_an_unknown_name_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(UsageError, match="did you mean shared-scratch"):
        select(CATALOGUE, names=["shared-scrach"])


def test_a_tag_nobody_has_selects_nothing() -> None:
    assert select(CATALOGUE, tags=["no-such-tag"]) == ()


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (CheckFailedError("x"), Outcome.FAILED),
        (DigestMismatchError("x", expected="a", actual="b"), Outcome.FAILED),
        (RuntimeError("a bug"), Outcome.FAILED),
        (MissingProgramError("qemu", install="apt"), Outcome.ERROR),
        (LaunchError("x", command=["qemu"], exit_code=1, output=""), Outcome.ERROR),
        (UnavailableError("disk full"), Outcome.ERROR),
        (KeyboardInterrupt(), Outcome.ERROR),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_the_environments_fault_is_an_error_and_the_rest_a_failure(
    error: BaseException, outcome: Outcome
) -> None:
    assert outcome_of(error) is outcome


def test_a_bare_message_gets_its_type() -> None:
    assert reason_for(HarnessError("gone")) == "HarnessError: gone"
    assert reason_for(KeyboardInterrupt()) == "interrupted"

"""What a scenario is, and what its body works with.

A scenario is a function of a few dozen lines that takes a `ScenarioContext`: it names its steps,
states facts, and checks. It never says which compute service it runs on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn, Self

from harness.capabilities import CAPABILITIES, Capability, missing
from harness.errors import CheckFailedError
from harness.lab import Lab
from harness.report.events import Fact, Outcome, RunListener, StepResult
from harness.scenarios.outcome import outcome_of, reason_for


@dataclass(frozen=True, slots=True)
class Scenario:
    """A named body; `tags` select it, `summary` is one sentence for people.

    It is skipped, with the reason, on a backend that lacks one of `needs`.
    """

    name: str
    summary: str
    tags: tuple[str, ...]
    body: Callable[[ScenarioContext], None]
    needs: tuple[Capability, ...] = ()

    def backends(self) -> tuple[str, ...]:
        """Return the names of the backends that can run it."""
        return tuple(name for name in CAPABILITIES if not missing(name, self.needs))


class ExpectedFailure:
    """Holds the error that a body raised; made by `ScenarioContext.expect`."""

    def __init__(self, what: str, errors: tuple[type[BaseException], ...]) -> None:
        self._what = what
        self._errors = errors
        self.message = ""
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> bool:
        if error is None:
            raise CheckFailedError(f"{self._what}: it went through, and was to be refused")
        if not isinstance(error, self._errors):
            return False
        self.message, self.error = str(error), error
        return True


class SkipScenario(Exception):  # noqa: N818 - no error: the message says what is missing
    """A scenario cannot run on this machine."""


class ScenarioContext:
    """What a body works with: the lab, and a record of steps and facts."""

    def __init__(self, name: str, lab: Lab, listeners: Sequence[RunListener]) -> None:
        self.name = name
        self.lab = lab
        self.facts: dict[str, Fact] = {}
        self.steps: list[StepResult] = []
        self._listeners = tuple(listeners)
        self._began = time.monotonic()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time and report one step; what it raises ends the scenario."""
        for listener in self._listeners:
            listener.step_started(self.name, name)
        began = time.monotonic()
        outcome, detail = Outcome.PASSED, ""
        try:
            yield
        except BaseException as error:
            outcome, detail = outcome_of(error), reason_for(error)
            raise
        finally:
            now = time.monotonic()
            step = StepResult(name, began - self._began, now - began, outcome, detail)
            self.steps.append(step)
            for listener in self._listeners:
                listener.step_finished(self.name, step)

    def fact(self, name: str, value: Fact) -> None:
        """State something measured; it stands in every report."""
        self.facts[name] = value

    def skip(self, reason: str) -> NoReturn:
        """End the scenario as skipped; `reason` says what is missing and how to get it."""
        raise SkipScenario(reason)

    def expect(self, what: str, *errors: type[BaseException]) -> ExpectedFailure:
        """Return a context that checks that its body raises one of `errors`, and keeps it."""
        return ExpectedFailure(what, errors)

    def check(self, holds: bool, otherwise: str) -> None:
        """Raise CheckFailedError(`otherwise`) unless the condition holds."""
        if not holds:
            raise CheckFailedError(otherwise)

    def check_equal(self, what: str, actual: object, expected: object) -> None:
        """Raise CheckFailedError naming both values unless they are equal."""
        if actual != expected:
            raise CheckFailedError(f"{what}: expected {expected!r}, found {actual!r}")

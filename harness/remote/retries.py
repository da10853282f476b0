"""When a remote call is made again: only for infrastructure, never past the deadline.

A call that may have been carried out is repeated only where doing it twice does no harm. Every
attempt that failed is recorded, so that a report can show what a green run went through.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

import tenacity

from harness.errors import ConnectionLostError, QuotaError, RemoteTimeoutError, ShellGoneError
from harness.remote.deadline import Deadline

T = TypeVar("T")

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt that failed: what, the how-manieth, why, and how long the wait after it was.

    `wait_s` is None for the last one.
    """

    what: str
    number: int
    error: Exception
    wait_s: float | None


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and how long apart: exponential with jitter, so that hosts are not hit in step."""

    attempts: int = 6
    first_wait_s: float = 0.2
    longest_wait_s: float = 10.0
    jitter_s: float = 0.2


@dataclass(slots=True)
class Attempts:
    """Failed attempts in the order in which they happened."""

    failed: list[Attempt] = field(default_factory=list)

    def record(self, attempt: Attempt) -> None:
        """Keep one attempt and log it."""
        self.failed.append(attempt)
        _LOG.info("%s: attempt %d failed: %s", attempt.what, attempt.number, attempt.error)


def is_retriable(error: BaseException, *, idempotent: bool) -> bool:
    """Whether the same call may be made again after this error.

    A quota is refused before anything runs. A lost connection, a silent host and a vanished shell
    leave open what happened, unless the error knows that the request never arrived.
    """
    if isinstance(error, QuotaError):
        return True
    if isinstance(error, ConnectionLostError | RemoteTimeoutError | ShellGoneError):
        return idempotent or not error.maybe_ran
    return False


class _DeadlineNear(tenacity.stop.stop_base):
    """A wait that the deadline cuts off is followed by no attempt worth making."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        return retry_state.upcoming_sleep >= self._deadline.remaining_s


def call_with_retries(
    function: Callable[[], T],
    *,
    what: str,
    policy: RetryPolicy,
    deadline: Deadline,
    idempotent: bool,
    attempts: Attempts,
) -> T:
    """Return what `function` returns, called until it does or may not be called again.

    Raises the error of the last call.
    """

    def note(state: tenacity.RetryCallState) -> None:
        assert state.outcome is not None
        error = state.outcome.exception()
        assert isinstance(error, Exception)
        wait = state.next_action.sleep if state.next_action is not None else None
        attempts.record(Attempt(what, state.attempt_number, error, wait))

    def give_up(state: tenacity.RetryCallState) -> T:
        assert state.outcome is not None
        note(state)
        return state.outcome.result()  # type: ignore[no-any-return] # raises the last error

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda e: is_retriable(e, idempotent=idempotent)),
        wait=tenacity.wait_exponential(multiplier=policy.first_wait_s, max=policy.longest_wait_s)
        + tenacity.wait_random(0, policy.jitter_s),
        stop=tenacity.stop_after_attempt(policy.attempts) | _DeadlineNear(deadline),
        before_sleep=note,
        retry_error_callback=give_up,
    )
    return retrying(function)

"""Whose fault an exception is: the product's, the environment's, or nobody's."""

from __future__ import annotations

from harness.errors import InfrastructureError, UsageError
from harness.report.events import Outcome
from snapshotter.errors import UnavailableError


def outcome_of(error: BaseException) -> Outcome:
    """Return `error` for what the run stands on (and interrupts), `failed` for everything else.

    A bug of our own counts as `failed`: a scenario that cannot be carried out proves nothing.
    """
    environment = (InfrastructureError, UsageError, UnavailableError, MemoryError)
    if isinstance(error, environment) or not isinstance(error, Exception):
        return Outcome.ERROR
    return Outcome.FAILED


def reason_for(error: BaseException) -> str:
    """Return one line for people: the message, with the type where the message alone is bare."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    text = " ".join(str(error).split())
    kind = type(error).__name__
    return text if text and len(text) > 20 else f"{kind}: {text}" if text else kind

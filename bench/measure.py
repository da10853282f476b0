"""Timing of work beside its peer, interleaved in the same run, so that load hits both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Comparison:
    """Medians in milliseconds of `rounds` interleaved rounds; `ratio` is ours over the peer's."""

    name: str
    ours_ms: float
    ours_min_ms: float
    peer: str
    peer_ms: float
    rounds: int
    target_ratio: float | None = None
    target_ms: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float:
        """Ours over the peer's."""
        return self.ours_ms / self.peer_ms

    @property
    def met(self) -> bool:
        """Whether every target holds."""
        return (self.target_ratio is None or self.ratio <= self.target_ratio) and (
            self.target_ms is None or self.ours_ms <= self.target_ms
        )


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value against a bound."""

    name: str
    value: float
    unit: str
    bound: float

    @property
    def met(self) -> bool:
        """Whether the value is within the bound."""
        return self.value <= self.bound


def compare(
    name: str,
    ours: Callable[[], object],
    peer_name: str,
    peer: Callable[[], object],
    *,
    rounds: int = 9,
    target_ratio: float | None = None,
    target_ms: float | None = None,
    note: str = "",
    reset: Callable[[], object] = lambda: None,
) -> Comparison:
    """Run both in turn, one warm-up each, and return the medians.

    `reset` runs after every call and is not timed: what was made is removed there.
    """
    ours()
    reset()
    peer()
    reset()
    mine: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds):
        mine.append(_time_ms(ours))
        reset()
        theirs.append(_time_ms(peer))
        reset()
    return Comparison(
        name=name,
        ours_ms=statistics.median(mine),
        ours_min_ms=min(mine),
        peer=peer_name,
        peer_ms=statistics.median(theirs),
        rounds=rounds,
        target_ratio=target_ratio,
        target_ms=target_ms,
        note=note,
    )


def _time_ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000

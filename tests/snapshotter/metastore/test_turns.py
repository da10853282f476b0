"""The queue of those who write: order, time limits, and who may do whose work."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from snapshotter.metastore.turns import Standing, Ticket, Turns

_LONG_S = 60.0


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        threading.Event().wait(0.001)


def waiting(
    pool: ThreadPoolExecutor, turns: Turns[str], *works: str | None
) -> list[Future[Standing]]:
    """Threads that wait in this order."""
    futures = []
    for number, work in enumerate(works, start=1):
        futures.append(pool.submit(turns.enter, Ticket(work), timeout_s=_LONG_S))
        until(lambda number=number: len(turns) == number)  # type: ignore[misc]
    return futures


def test_the_leader_takes_the_work_of_those_who_wait_in_their_order() -> None:
    turns: Turns[str] = Turns()
    assert turns.enter(Ticket("mine"), timeout_s=_LONG_S) is Standing.LEADS
    with ThreadPoolExecutor(3) as pool:
        futures = waiting(pool, turns, "a", "b")
        taken = []
        while (ticket := turns.take()) is not None:
            taken.append(ticket.work)
            ticket.wake()
        assert taken == ["a", "b"]
        assert [future.result() for future in futures] == [Standing.TAKEN, Standing.TAKEN]
    turns.pass_on()
    assert turns.enter(Ticket("next"), timeout_s=0) is Standing.LEADS


def test_who_has_no_work_to_give_away_leads_in_turn() -> None:
    turns: Turns[str] = Turns()
    turns.enter(Ticket(None), timeout_s=_LONG_S)
    with ThreadPoolExecutor(2) as pool:
        alone, after = waiting(pool, turns, None, "a")
        assert turns.take() is None
        turns.pass_on()
        assert alone.result() is Standing.LEADS
        assert not after.done()
        turns.pass_on()
        assert after.result() is Standing.LEADS


def test_whose_time_is_over_leaves_the_queue() -> None:
    turns: Turns[str] = Turns()
    turns.enter(Ticket("mine"), timeout_s=_LONG_S)
    assert turns.enter(Ticket("late"), timeout_s=0.001) is Standing.GONE
    assert len(turns) == 0
    assert turns.take() is None
    turns.pass_on()
    assert turns.enter(Ticket("next"), timeout_s=0) is Standing.LEADS


def test_work_that_was_taken_is_waited_for_beyond_the_time_limit() -> None:
    turns: Turns[str] = Turns()
    turns.enter(Ticket("mine"), timeout_s=_LONG_S)
    late: Ticket[str] = Ticket("late")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(turns.enter, late, timeout_s=0.5)
        until(lambda: len(turns) == 1)
        assert turns.take() is late
        threading.Event().wait(0.7)
        assert not future.done()
        late.wake()
        assert future.result() is Standing.TAKEN


class InterruptedTicket(Ticket[str]):
    """One whose thread is interrupted while it waits, after something else happened."""

    def __init__(self, before: Callable[[], object]) -> None:
        super().__init__("work")
        self._before = before

    def wait(self, timeout_s: float = -1) -> bool:
        self._before()
        raise KeyboardInterrupt


def test_who_is_interrupted_leaves_the_queue() -> None:
    turns: Turns[str] = Turns()
    turns.enter(Ticket("mine"), timeout_s=_LONG_S)
    interrupted(turns, InterruptedTicket(lambda: None))
    assert len(turns) == 0


def test_who_is_interrupted_as_the_turn_comes_passes_it_on() -> None:
    turns: Turns[str] = Turns()
    turns.enter(Ticket("mine"), timeout_s=_LONG_S)
    interrupted(turns, InterruptedTicket(turns.pass_on))
    assert turns.enter(Ticket("next"), timeout_s=0) is Standing.LEADS


def interrupted(turns: Turns[str], ticket: Ticket[str]) -> None:
    try:
        turns.enter(ticket, timeout_s=_LONG_S)
    except KeyboardInterrupt:
        return
    raise AssertionError("not interrupted")

"""Taking turns at writing, where whoever has the turn also does the work of those who wait.

::

    enter: nobody has the turn  --> LEADS: does its own work, `take`s that of others, `pass_on`
           somebody has it      --> waits --taken by a leader--> its work is done for it
                                          --the turn comes-----> LEADS
                                          --time over---------> gone

A thread that waits is woken once. (Hendler, Incze, Shavit, Tzafrir: "Flat Combining and the
Synchronization-Parallelism Tradeoff", 2010.)
"""

from __future__ import annotations

import threading
from collections import deque
from enum import Enum, auto
from typing import Generic, TypeVar

Work = TypeVar("Work")


class Standing(Enum):
    """How a ticket is getting on."""

    WAITING = auto()
    LEADS = auto()
    TAKEN = auto()  # a leader is doing, or has done, its work
    GONE = auto()  # it did not get its turn in time


class Ticket(Generic[Work]):
    """A place in the queue; `work` may be done by another thread, where it is given."""

    __slots__ = ("_wake", "standing", "work")

    def __init__(self, work: Work | None) -> None:
        self.work = work
        self.standing = Standing.WAITING
        self._wake: threading.Lock | None = None

    def queue(self) -> None:
        """Make it one that can be woken; before others know of it."""
        # A lock that is held: half the cost of an Event, which takes two of them to wake one.
        self._wake = threading.Lock()
        self._wake.acquire()

    def wake(self) -> None:
        """Let its thread go on; once, after `queue`."""
        assert self._wake is not None, "only tickets in the queue are woken"
        self._wake.release()

    def wait(self, timeout_s: float = -1) -> bool:
        """Whether it was woken within the time."""
        assert self._wake is not None, "only tickets in the queue wait"
        return self._wake.acquire(timeout=timeout_s)


class Turns(Generic[Work]):
    """One turn, and the tickets that wait for it, first come first served."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._busy = False
        self._waiting: deque[Ticket[Work]] = deque()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def enter(self, ticket: Ticket[Work], *, timeout_s: float) -> Standing:
        """Wait in the queue: LEADS, TAKEN (and the work is done), or GONE.

        Whoever leads has to `pass_on`. Where waiting is interrupted (KeyboardInterrupt), the turn
        is passed on; work that a leader had taken may or may not be done.
        """
        with self._mutex:
            if not self._busy:
                self._busy = True
                ticket.standing = Standing.LEADS
                return Standing.LEADS
            ticket.queue()
            self._waiting.append(ticket)
        try:
            if not ticket.wait(timeout_s) and self._standing_after_leaving(ticket) in (
                *(Standing.LEADS, Standing.TAKEN),
            ):
                ticket.wait()  # it was its turn at the last moment
        except BaseException:
            if self._standing_after_leaving(ticket) is Standing.LEADS:
                self.pass_on()
            raise
        return ticket.standing

    def take(self) -> Ticket[Work] | None:
        """The ticket that has waited longest, for its leader to do its work and wake it.

        None where nobody waits, or the next one has to lead by itself.
        """
        if not self._waiting:  # a look without the mutex: who comes now may as well be late
            return None
        with self._mutex:
            if not self._waiting or self._waiting[0].work is None:
                return None
            ticket = self._waiting.popleft()
            ticket.standing = Standing.TAKEN
            return ticket

    def pass_on(self) -> None:
        """Give the turn away, to whoever has waited longest or to nobody."""
        with self._mutex:
            if not self._waiting:
                self._busy = False
                return
            ticket = self._waiting.popleft()
            ticket.standing = Standing.LEADS
        ticket.wake()

    def _standing_after_leaving(self, ticket: Ticket[Work]) -> Standing:
        with self._mutex:
            if ticket.standing is Standing.WAITING:
                self._waiting.remove(ticket)
                ticket.standing = Standing.GONE
            return ticket.standing

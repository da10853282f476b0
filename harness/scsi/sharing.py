"""Who shares an attachment or a mount, and who is at work on it.

One `Monitor` guards all disk records of a virtual machine. Its lock is held for table look-ups
only: whoever starts I/O on a record first puts an `Operation` on it, then gives the lock up
(`Monitor.attempt`). A record with an operation belongs to the thread that put it there; every
other thread that needs the record waits for that operation, shares its outcome or looks again.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from harness.errors import DiskError, HarnessError, SystemExitedError, SystemNotFoundError


class Standing(enum.StrEnum):
    """What a member is to a record; only `HOLDING` ones are counted.

    ::

        waiting ──everything it asked for is there──> holding ──> released
           └──────────────── failed, timed out, cancelled ──────────┘
    """

    WAITING = "waiting"
    HOLDING = "holding"
    RELEASED = "released"


@dataclass(slots=True, eq=False)
class Member:
    """One acquire: the label of who asked, and how far it has come."""

    holder: str
    standing: Standing = Standing.WAITING


def holders_of(members: Iterable[Member]) -> tuple[str, ...]:
    """Return the labels of those that hold (not of those that still wait), oldest first."""
    return tuple(member.holder for member in members if member.standing is Standing.HOLDING)


def describe_holders(members: Iterable[Member]) -> str:
    """Return "held by a, b", "asked for by c" or "held by nobody", for a message."""
    known = list(members)
    held = holders_of(known)
    if held:
        return f"held by {', '.join(dict.fromkeys(held))}"
    waiting = dict.fromkeys(
        member.holder for member in known if member.standing is Standing.WAITING
    )
    return f"asked for by {', '.join(waiting)}" if waiting else "held by nobody"


class Work(enum.StrEnum):
    """Kinds of I/O, worded for "still …"."""

    ATTACH = "being attached"
    SETTLE = "being asked about"
    DETACH = "being detached"
    MOUNT = "being mounted"
    UNMOUNT = "being unmounted"


class Operation:
    """I/O in flight on one record; afterwards its outcome, for those who waited for it."""

    __slots__ = ("_changed", "by", "done", "error", "work")

    def __init__(self, work: Work, *, by: str, lock: threading.Lock) -> None:
        self.work = work
        self.by = by
        self.done = False
        self.error: BaseException | None = None
        self._changed = threading.Condition(lock)

    def finish(self, error: BaseException | None) -> None:
        """Publish the outcome and wake those who wait. The lock is held."""
        if not self.done:
            self.done, self.error = True, error
            self._changed.notify_all()

    def wait(self, deadline: float | None) -> bool:
        """Wait with the lock given up; return whether it is over by `deadline` (monotonic)."""
        while not self.done:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            self._changed.wait(left)
        return self.done


class Record(Protocol):
    """What a monitor needs of an attachment or a mount."""

    operation: Operation | None


class Monitor:
    """The lock of one virtual machine's disk records, and whether that machine is gone."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.gone: BaseException | str | None = None

    def begin(self, record: Record, work: Work, *, by: str) -> Operation:
        """Return the operation that now makes `record` the calling thread's. The lock is held."""
        assert record.operation is None, f"{record} is {record.operation.work}"
        record.operation = operation = Operation(work, by=by, lock=self.lock)
        return operation

    def finish(
        self, record: Record, operation: Operation, error: BaseException | None = None
    ) -> None:
        """End an operation with its outcome; one ended by the VM's death stays ended."""
        if record.operation is operation:
            record.operation = None
        operation.finish(error)

    def attempt(self, io: Callable[[], None]) -> BaseException | None:
        """Do I/O with the lock given up; return its error. Takes note when the machine is gone."""
        self.lock.release()
        failure: BaseException | None = None
        try:
            io()
        except BaseException as error:  # noqa: BLE001 -- raised again once the state says so
            failure = error
        finally:
            self.lock.acquire()
        if self.gone is None and isinstance(failure, (SystemExitedError, SystemNotFoundError)):
            self.gone = failure
        return failure

    def explain(self, doing: str, error: BaseException) -> BaseException:
        """Return a DiskError for a failure of host or guest; a bug or interrupt stays itself."""
        if not isinstance(error, (HarnessError, OSError)):
            return error
        explained = DiskError(f"{doing}: {error}")
        explained.__cause__ = error
        return explained

    def conclude(
        self, record: Record, operation: Operation, error: BaseException | None, *, doing: str
    ) -> None:
        """End an operation and raise its error, if any, or that the machine is gone."""
        failure = None if error is None else self.explain(doing, error)
        self.finish(record, operation, failure)
        self.check_alive(doing)
        if failure is not None:
            raise failure

    def is_gone(self) -> bool:
        """Return whether the machine is gone; any `attempt` may change the answer."""
        return self.gone is not None

    def check_alive(self, doing: str) -> None:
        """Raise DiskError when the machine is gone; `doing` begins the message."""
        if self.gone is None:
            return
        error = DiskError(f"{doing}: the utility VM is gone ({self.gone}); start a new one")
        raise error from (self.gone if isinstance(self.gone, BaseException) else None)

    def await_outcome(self, operation: Operation, deadline: float | None, *, doing: str) -> None:
        """Wait for another thread's operation. Raises DiskError at the deadline or on death."""
        if not operation.wait(deadline) and self.gone is None:
            raise DiskError(
                f"{doing}: still {operation.work} for {operation.by} at the deadline; "
                "nothing was kept, ask again"
            )
        self.check_alive(doing)

"""What every compute service keeps: its systems by id, and each one's events."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from harness.errors import ComputeServiceError, SystemNotFoundError, UsageError
from harness.hcs.hresult import ALREADY_EXISTS, SYSTEM_NOT_FOUND
from harness.hcs.service import EventType, SystemEvent

_S = TypeVar("_S")


class EventLog:
    """The events of one system, numbered from 1; thread-safe."""

    def __init__(self, system_id: str) -> None:
        self._system_id = system_id
        self._changed = threading.Condition()
        self._events: list[SystemEvent] = []
        self._closed = False

    def report(self, kind: EventType, data: Mapping[str, Any]) -> None:
        """Add an event, and wake those who wait for one."""
        with self._changed:
            number = len(self._events) + 1
            self._events.append(SystemEvent(number, self._system_id, kind, time.time(), data))
            self._changed.notify_all()

    def read(self, *, after: int, timeout_s: float) -> Sequence[SystemEvent]:
        """Return events with a sequence above `after`; waits up to `timeout_s` for the first.

        Raises SystemNotFoundError once closed, in the middle of a wait as well.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                if self._closed:
                    raise not_found(self._system_id)
                new = self._events[after:]
                left = deadline - time.monotonic()
                if new or left <= 0:
                    return new
                self._changed.wait(left)

    def close(self) -> None:
        """Release whoever waits: the system is forgotten. May be repeated."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class SystemTable(Generic[_S]):
    """Systems by id, one an id; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._systems: dict[str, _S] = {}
        self._creating: set[str] = set()
        self._closed = False

    @contextlib.contextmanager
    def creating(self, system_id: str) -> Iterator[None]:
        """Have an id for the time of the context, in which a system may be `add`ed.

        Raises ComputeServiceError (0x8037010f) for an id in use, UsageError once closed.
        """
        with self._lock:
            if self._closed:
                raise UsageError("the compute service was closed")
            if system_id in self._systems or system_id in self._creating:
                raise ComputeServiceError(
                    f"there is a system {system_id} already", hresult=ALREADY_EXISTS
                )
            self._creating.add(system_id)
        try:
            yield
        finally:
            with self._lock:
                self._creating.discard(system_id)

    def add(self, system_id: str, system: _S, *, close: Callable[[_S], None]) -> None:
        """Note a system that was made. Closes it, and raises UsageError, once the table is."""
        with self._lock:
            if not self._closed:
                self._systems[system_id] = system
                return
        close(system)
        raise UsageError("the compute service was closed meanwhile")

    def find(self, system_id: str) -> _S:
        """Return a system. Raises SystemNotFoundError."""
        with self._lock:
            system = self._systems.get(system_id)
        if system is None:
            raise not_found(system_id)
        return system

    def forget(self, system_id: str) -> None:
        """Drop a system; one that is not there is fine."""
        with self._lock:
            self._systems.pop(system_id, None)

    def all(self) -> list[_S]:
        """Return every system that was made and not forgotten."""
        with self._lock:
            return list(self._systems.values())

    def ids(self) -> frozenset[str]:
        """Return every id in use, those under way included."""
        with self._lock:
            return frozenset(self._systems) | self._creating

    def close(self, close: Callable[[_S], None]) -> list[ComputeServiceError]:
        """Take no more systems, close each there is and return what failed; may be repeated."""
        with self._lock:
            self._closed = True
        errors: list[ComputeServiceError] = []
        for system in self.all():
            try:
                close(system)
            except ComputeServiceError as error:
                errors.append(error)
        return errors


def not_found(system_id: str) -> SystemNotFoundError:
    """Return the error for an id that no system has."""
    return SystemNotFoundError(f"there is no system {system_id}", hresult=SYSTEM_NOT_FOUND)

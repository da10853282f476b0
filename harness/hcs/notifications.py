"""Notifications of systems: from a callback of computecore.dll to whoever asked for them.

The library calls from threads of its own, and may do so once more while, or after, a handle is
closed. So it gets a number, never an object: what comes for a number given back is dropped.
The callback itself must outlive every handle: it lives as long as this object does.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from harness.hcs.computecore import EVENT_CALLBACK

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Notification:
    """One event: HCS_EVENT_TYPE as a number, and its document ("" for none)."""

    type: int
    document: str


Sink = Callable[[Notification], None]
"""Takes what comes for one system, in a thread of the library; must not call the library."""


class Notifications:
    """Who gets the notifications of which number."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sinks: dict[int, Sink] = {}
        self._numbers = itertools.count(1)
        self.callback: Final = EVENT_CALLBACK(self._take)

    def subscribe(self, sink: Sink) -> int:
        """Return a number that stands for `sink` from now on."""
        with self._lock:
            number = next(self._numbers)
            self._sinks[number] = sink
            return number

    def unsubscribe(self, number: int) -> None:
        """Drop what still comes for a number; may be repeated."""
        with self._lock:
            self._sinks.pop(number, None)

    def _take(self, event: Any, number: int | None) -> None:  # noqa: ANN401 - a ctypes pointer
        """Hand one event on; what happens here cannot be told to the library."""
        try:
            with self._lock:
                sink = self._sinks.get(number or 0)
            if sink is not None and ctypes.cast(event, ctypes.c_void_p).value:
                sink(Notification(int(event.contents.Type), event.contents.EventData or ""))
        except Exception:
            log.exception("a notification of HCS was lost")

"""Copies of templates that are made before anybody asks, and have run a container already.

A copy starts without QEMU's translated code: the first mount, overlay and container cost it two or
three times what the next ones do. A spare has that behind it. Each is handed out once; what was
taken is made again in the background, one at a time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from harness.errors import HarnessError
from harness.qemu.machine import Machine


@dataclass(frozen=True, slots=True)
class Spare:
    """A machine that runs, warm, with an agent that waits; `runtime_id` is its own."""

    machine: Machine
    runtime_id: str


@dataclass(slots=True)
class _Shelf:
    make: Callable[[], Spare]
    spares: deque[Spare] = field(default_factory=deque)
    failed: bool = False


class SparePool:
    """Up to `size` spares of each template. `close` ends them all."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._changed = threading.Condition()
        self._shelves: dict[str, _Shelf] = {}
        self._closed = False
        self._thread: threading.Thread | None = None

    def take(self, key: str) -> Spare | None:
        """Return a spare of a template, the caller's from now on, or None; never waits."""
        with self._changed:
            shelf = self._shelves.get(key)
            while shelf is not None and shelf.spares:
                spare = shelf.spares.popleft()
                self._changed.notify_all()
                if spare.machine.exit_code is None:
                    return spare
                spare.machine.discard()
        return None

    def stock(self, key: str, make: Callable[[], Spare]) -> None:
        """Keep spares of a template from now on; `make` is called in a thread of the pool."""
        with self._changed:
            if self._closed or not self._size:
                return
            self._shelves.setdefault(key, _Shelf(make))
            if self._thread is None:
                self._thread = threading.Thread(target=self._fill, name="spares", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait_full(self, timeout_s: float) -> bool:
        """Return whether every shelf is full, or cannot be filled, within the time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._next() is None, timeout_s)

    def pids(self) -> frozenset[int]:
        """Return the process ids of the spares."""
        with self._changed:
            return frozenset(
                spare.machine.pid for shelf in self._shelves.values() for spare in shelf.spares
            )

    def close(self) -> None:
        """End every spare; may be repeated. One that is being made is waited for."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()
        for shelf in self._shelves.values():
            while shelf.spares:
                shelf.spares.popleft().machine.discard()

    def _next(self) -> _Shelf | None:
        wanting = (
            shelf
            for shelf in self._shelves.values()
            if len(shelf.spares) < self._size and not shelf.failed
        )
        return next(wanting, None)

    def _fill(self) -> None:
        while True:
            with self._changed:
                while (shelf := self._next()) is None and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
            assert shelf is not None
            try:
                spare = shelf.make()
            except HarnessError:
                spare = None  # whoever asks for a machine is told why copies do not work
            with self._changed:
                if spare is None:
                    shelf.failed = True
                else:
                    shelf.spares.append(spare)
                self._changed.notify_all()

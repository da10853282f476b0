"""One thread that owns the service's descriptors and children: a selector and a queue of work.

Everything that is watched is touched by this thread alone, so that pumps and children need no
locks. Other threads hand work in with `run` (and wait) or `post`. A thread must not hold a lock
that the loop's callbacks take while it waits in `run`.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import functools
import logging
import selectors
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

T = TypeVar("T")
Watched = int | socket.socket

READ: Final = selectors.EVENT_READ
WRITE: Final = selectors.EVENT_WRITE

_log = logging.getLogger(__name__)


class IoLoop:
    """A daemon thread running callbacks for ready descriptors. `stop` ends it."""

    def __init__(self, name: str) -> None:
        self._work: collections.deque[Callable[[], None]] = collections.deque()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._selector: selectors.BaseSelector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._stopping = False

    def start(self) -> None:
        """Start the thread."""
        self._selector.register(self._woken, READ, self._drain_wakeups)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the work already handed in; may be repeated."""
        if self._thread.is_alive():
            self.post(self._request_stop)
            self._thread.join()

    def post(self, work: Callable[[], None]) -> None:
        """Run `work` in the loop soon; its exceptions are logged."""
        self._work.append(work)
        # A full pipe of wake-ups wakes it as well; a closed one belongs to a loop that has ended.
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")

    def run(self, work: Callable[[], T]) -> T:
        """Return the result of `work` run in the loop, or raise what it raised."""
        if threading.current_thread() is self._thread:
            return work()
        done: Future[T] = Future()

        def call() -> None:
            try:
                done.set_result(work())
            except BaseException as error:  # noqa: BLE001 - handed to the caller as it is
                done.set_exception(error)

        assert self._thread.is_alive(), "the I/O thread is not running"
        self.post(call)
        while not concurrent.futures.wait([done], timeout=1.0).done:
            if not self._thread.is_alive():
                raise RuntimeError("the I/O thread ended before it came to this work")
        return done.result()

    def watch(self, file: Watched, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback` with the ready events from now on; 0 ends that. Loop thread only."""
        assert threading.current_thread() is self._thread
        try:
            key = self._selector.get_key(file)
        except (KeyError, ValueError):
            if events:
                self._selector.register(file, events, callback)
            return
        if not events:
            self._selector.unregister(file)
        elif key.events != events or key.data != callback:
            self._selector.modify(file, events, callback)

    def unwatch(self, file: Watched) -> None:
        """Stop watching; a file that is not watched is fine. Loop thread only, before its close."""
        self.watch(file, 0, _ignore)

    def _serve(self) -> None:
        while not self._stopping:
            for key, events in self._selector.select():
                # An earlier callback of this round may have stopped watching this file.
                current = self._selector.get_map().get(key.fd)
                if current is not None and current.data == key.data:
                    self._guarded(functools.partial(key.data, events))
        self._selector.close()
        self._waker.close()
        self._woken.close()

    def _drain_wakeups(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass
        while self._work:
            self._guarded(self._work.popleft())

    def _request_stop(self) -> None:
        self._stopping = True

    @staticmethod
    def _guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:  # noqa: BLE001 - logged
            # The boundary of the thread: one broken stream must not end the others.
            _log.exception("a callback of the I/O thread failed")


def _ignore(_events: int) -> None:
    pass

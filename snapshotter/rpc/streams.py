"""Streams of answers: threads of their own, and an end for those that their clients do not read.

A stream holds a thread while its client takes what is sent, and what its answers come from: a read
of the store, which keeps SQLite from using its log's room again. A client may stop reading for good
and stay connected. So streams get threads that no other call needs, and one that has waited too
long for its client is given up, sooner where there are many::

    under way --its client is late--> given up: what it reads from is closed, the call cancelled
                                      --gRPC lets go--> its thread is free

gRPC lets go at once where HTTP/2's flow control holds a message back. Where the client does not
even read its socket, only the end of the connection frees the thread: so there may be many of them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

_log = logging.getLogger(__name__)

STREAM_WORKERS: Final = 128
"""Threads, made as they are needed, and so the number of streams at a time; others wait."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds that a stream may wait for its client to take one message.

    containerd reads its lists into memory, which takes it milliseconds a message.
    """

    alone_s: float = 60.0
    crowded_s: float = 5.0
    """From `crowd` streams on."""
    crowd: int = 16

    @property
    def look_s(self) -> float:
        """How often to look for streams that have waited too long."""
        return min(self.alone_s, self.crowded_s) / 5


class Answers(Protocol):
    """A generator of messages."""

    def close(self) -> None:
        """Let go of what they come from."""
        ...


class Call(Protocol):
    """A call under way (grpc.ServicerContext)."""

    def cancel(self) -> None:
        """End it: the client gets CANCELLED, and whoever waits for it goes on."""
        ...


class Stream:
    """One under way. `given_up` is for good."""

    def __init__(self, call: Call, answers: Answers) -> None:
        self.call = call
        self.answers = answers
        self.given_up = False


class StreamWatch:
    """The streams under way, and since when each waits for its client; `clock` in seconds."""

    def __init__(self, patience: Patience, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience = patience
        self._clock = clock
        self._lock = threading.Lock()
        self._under_way = 0
        self._waiting: dict[Stream, float] = {}

    @contextmanager
    def stream(self, call: Call, answers: Answers) -> Iterator[Stream]:
        """Around all of a stream."""
        with self._lock:
            self._under_way += 1
        try:
            yield Stream(call, answers)
        finally:
            with self._lock:
                self._under_way -= 1

    @contextmanager
    def waiting(self, stream: Stream) -> Iterator[None]:
        """Around the time in which the client is to take one message."""
        with self._lock:
            self._waiting[stream] = self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._waiting.pop(stream, None)

    def give_up_late(self) -> int:
        """Give up the streams that have waited too long; how many."""
        with self._lock:
            crowded = self._under_way >= self._patience.crowd
            limit = self._patience.crowded_s if crowded else self._patience.alone_s
            latest = self._clock() - limit
            late = [stream for stream, since in self._waiting.items() if since <= latest]
            self._close(late)
        for stream in late:
            stream.call.cancel()
        return len(late)

    def close_waiting(self) -> None:
        """Let go of what the streams come from whose clients have not taken the last message."""
        with self._lock:
            self._close(list(self._waiting))

    def _close(self, streams: Iterable[Stream]) -> None:
        # The thread of each is held up, or waits for the lock: nobody runs the generator.
        for stream in streams:
            del self._waiting[stream]
            stream.given_up = True
            stream.answers.close()


class Streams:
    """The threads of a server's streams, and the one that looks after them."""

    def __init__(self, *, workers: int, patience: Patience) -> None:
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="stream")
        self.watch = StreamWatch(patience)
        self._patience = patience
        self._stopped = threading.Event()
        self._looking = threading.Thread(target=self._look, name="streams", daemon=True)

    def start(self) -> None:
        """Look after the streams from now on."""
        self._looking.start()

    def stop(self) -> None:
        """Stop looking, and close those that wait; the pool is the caller's to end."""
        self._stopped.set()
        self._looking.join()
        self.watch.close_waiting()

    def _look(self) -> None:
        while not self._stopped.wait(self._patience.look_s):
            late = self.watch.give_up_late()
            if late:
                _log.warning("%d lists are given up: their clients do not read them", late)

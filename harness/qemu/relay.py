"""Pumps bytes between two sockets with back-pressure, in the I/O thread.

Nothing is read from one side while the other has not taken what was read before, so that a slow
reader stops its writer and memory stays bounded.
"""

from __future__ import annotations

import collections
import contextlib
import socket
from typing import Final

from harness.qemu.loop import READ, WRITE, IoLoop

CHUNK: Final = 64 * 1024
_BUFFERED: Final = 4 * CHUNK


class Outbox:
    """Bytes that wait for a socket to take them."""

    def __init__(self) -> None:
        self._parts: collections.deque[memoryview] = collections.deque()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, data: bytes) -> None:
        """Append bytes, which are not copied."""
        if data:
            self._parts.append(memoryview(data))
            self._size += len(data)

    def flush(self, target: socket.socket) -> int:
        """Return how many bytes a non-blocking socket took. Raises OSError when it is broken."""
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while self._parts:
                part = self._parts[0]
                taken = target.send(part)
                sent += taken
                self._size -= taken
                if taken < len(part):
                    self._parts[0] = part[taken:]
                else:
                    self._parts.popleft()
        return sent


class Relay:
    """Joins the guest's end of a stream and its consumer, until either closes. Owns both sockets.

    What the guest sent before its end still reaches the consumer. Loop thread only.
    """

    def __init__(self, loop: IoLoop, guest: socket.socket, consumer: socket.socket) -> None:
        self._loop = loop
        self._guest = guest
        self._consumer = consumer
        self._to_guest = Outbox()
        self._to_consumer = Outbox()
        self._guest_ended = False
        self._consumer_ended = False
        self.closed = False

    def start(self) -> None:
        """Begin to pump."""
        self._guest.setblocking(False)
        self._consumer.setblocking(False)
        self._update()

    def close(self) -> None:
        """Close both sockets; may be repeated."""
        if not self.closed:
            self.closed = True
            for end in (self._guest, self._consumer):
                self._loop.unwatch(end)
                end.close()

    def _update(self) -> None:
        guest_done = self._guest_ended and not self._to_consumer
        consumer_done = self._consumer_ended and not self._to_guest
        if guest_done or consumer_done:
            self.close()
            return
        watch = self._loop.watch
        take = not self._guest_ended and len(self._to_consumer) < _BUFFERED
        watch(
            self._guest,
            (READ if take else 0) | (WRITE if self._to_guest else 0),
            self._guest_ready,
        )
        take = not self._consumer_ended and len(self._to_guest) < _BUFFERED
        watch(
            self._consumer,
            (READ if take else 0) | (WRITE if self._to_consumer else 0),
            self._consumer_ready,
        )

    def _guest_ready(self, events: int) -> None:
        if events & WRITE:
            self._flush_to_guest()
        if events & READ:
            data = receive(self._guest)
            if data == b"":
                self._guest_ended = True
            elif data:
                self._to_consumer.add(data)
                self._flush_to_consumer()
        if not self.closed:
            self._update()

    def _consumer_ready(self, events: int) -> None:
        if events & WRITE:
            self._flush_to_consumer()
        if events & READ:
            data = receive(self._consumer)
            if data == b"":
                self._consumer_ended = True
            elif data:
                self._to_guest.add(data)
                self._flush_to_guest()
        if not self.closed:
            self._update()

    def _flush_to_guest(self) -> None:
        try:
            self._to_guest.flush(self._guest)
        except OSError:
            self._guest_ended = True
            self._to_guest = Outbox()

    def _flush_to_consumer(self) -> None:
        try:
            self._to_consumer.flush(self._consumer)
        except OSError:
            self.close()


def receive(source: socket.socket, limit: int = CHUNK) -> bytes | None:
    """Return what a non-blocking socket has, None for nothing, b"" at its end or broken."""
    try:
        return source.recv(limit)
    except BlockingIOError:
        return None
    except OSError:
        return b""

"""Dialed connections over one virtio-serial port: a `MuxEndpoint`, a reader and a writer thread.

The reader never writes, so a host that does not read cannot stop what it sends from being taken.
Whoever sends writes its frames itself while nobody else does: under emulation a change of threads
costs more than a frame. Every wait is on one lock, with a condition a channel.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from harness.gcs.mux import (
    Accepted,
    ChannelGoneError,
    CreditGranted,
    DataReceived,
    Dialed,
    MuxEndpoint,
    MuxEvent,
    MuxRole,
    MuxViolationError,
    PeerFinished,
    PeerReset,
    Refused,
)
from harness.guest.system import ByteStream

_READ_SIZE = 64 * 1024


class MuxConnection:
    """One dialed stream; made by `MuxLink.dial`."""

    def __init__(self, link: MuxLink, channel: int, port: int) -> None:
        self._link = link
        self.channel = channel
        self.port = port
        self.changed = threading.Condition(link.lock)
        self.received: deque[bytes] = deque()
        self.accepted = False
        self.ended = False  # the peer has finished
        self.failure: OSError | None = None

    def receive(self, *, timeout_s: float | None = None) -> bytes:
        """Return what has come; b"" once the host has finished. Raises OSError, TimeoutError."""
        with self.changed:
            while not self.received:
                if self.ended:
                    return b""
                if self.failure is not None:
                    raise self.failure
                if not self.changed.wait(timeout_s) and timeout_s is not None:
                    raise TimeoutError(errno.ETIMEDOUT, "nothing came from the host")
            data = self.received.popleft()
            self._link.endpoint.consumed(self.channel, len(data))
            self._link.wake_writer()
            return data

    def send(self, data: bytes) -> None:
        """Send all of it, waiting for the host's credit. Raises OSError when reset."""
        view = memoryview(data)
        with self.changed:
            while view:
                if self.failure is not None:
                    raise self.failure
                try:
                    sent = self._link.endpoint.send(self.channel, view)
                except ChannelGoneError as error:
                    raise BrokenPipeError(errno.EPIPE, str(error)) from error
                view = view[sent:]
                if sent:
                    self._link.write_queued()
                else:
                    self.changed.wait()

    def send_pipe(self, fd: int, count: int) -> None:
        """Send up to `count` bytes that wait in a pipe, without seeing them if that can be.

        Raises OSError when reset. What its writer reads back meanwhile arrives as zeros.
        """
        link = self._link
        if not link.moves_pipes:
            self.send(os.read(fd, count))
            return
        with self.changed:
            while count:
                if self.failure is not None:
                    raise self.failure
                if not link.endpoint.is_open(self.channel):
                    raise BrokenPipeError(errno.EPIPE, "the connection is closed")
                size = min(count, link.endpoint.credit(self.channel))
                if not size:
                    self.changed.wait()
                elif link.move(self.channel, fd, size):
                    count -= size

    def finish(self) -> None:
        """Half-close: nothing more is sent."""
        with self.changed:
            self._link.endpoint.finish(self.channel)
            self._link.wake_writer()

    def close(self) -> None:
        """Give the stream up: a clean end if both sides had finished, else a reset."""
        with self.changed:
            self._link.endpoint.reset(self.channel)
            self._link.forget(self)
            self._link.wake_writer()
            if self.failure is None:
                self.failure = BrokenPipeError(errno.EPIPE, "the connection is closed")
            self.changed.notify_all()


class MuxLink:
    """The guest's end of the `stdio` port."""

    def __init__(
        self,
        stream: ByteStream,
        *,
        on_violation: Callable[[str], None],
        move: Callable[[bytes, int, int], None] | None = None,
    ) -> None:
        """`move(frame, pipe, count)` writes a frame to `stream`, then `count` bytes of a pipe."""
        self.lock = threading.RLock()
        self.endpoint = MuxEndpoint(MuxRole.GUEST)
        self._stream = stream
        self._on_violation = on_violation
        self._move = move
        self._writable = threading.Condition(self.lock)
        self._turn = threading.Condition(self.lock)  # for who cannot leave it to the writer
        self._connections: dict[int, MuxConnection] = {}
        self._down: OSError | None = None
        self._writing = False

    def start(self) -> None:
        """Start the two threads; they end when the host is gone."""
        for name, target in (("mux-read", self._read), ("mux-write", self._write)):
            threading.Thread(target=target, name=name, daemon=True).start()

    def dial(self, port: int) -> MuxConnection:
        """Return a connection to `port` of the host. Raises OSError."""
        with self.lock:
            if self._down is not None:
                raise self._down
            connection = MuxConnection(self, self.endpoint.dial(port), port)
            self._connections[connection.channel] = connection
            self.wake_writer()
            while not connection.accepted:
                if connection.failure is not None:
                    raise connection.failure
                connection.changed.wait()
        return connection

    def wake_writer(self) -> None:
        """Have the writer look for queued frames; the lock is held."""
        self._writable.notify()

    def write_queued(self) -> None:
        """Write what is queued now, unless somebody writes; the lock is held, and freed meanwhile.

        What others queue in that time is left to the writer.
        """
        if not self._writing and self._down is None:
            self._write_frames(self.endpoint.frames_to_send())
            if self.endpoint.has_frames:
                self.wake_writer()

    @property
    def moves_pipes(self) -> bool:
        """Whether `move` can be used."""
        return self._move is not None

    def move(self, channel: int, fd: int, size: int) -> bool:
        """Write what is queued and `size` bytes of a pipe; the lock is held, and freed meanwhile.

        False: somebody else was writing, who is done now; look again whether it can be sent.
        """
        if self._writing:
            self._turn.wait()
            return False
        assert self._move is not None
        frames = self.endpoint.frames_to_send()
        frame = self.endpoint.promise(channel, size)
        self._write_frames(frames, partial(self._move, frame, fd, size))
        if self.endpoint.has_frames:
            self.wake_writer()
        return True

    def _write_frames(
        self, frames: list[bytes], finally_move: Callable[[], None] | None = None
    ) -> None:
        self._writing = True
        self.lock.release()
        failure: OSError | None = None
        try:
            for frame in frames:
                self._stream.write(frame)
            if finally_move is not None:
                finally_move()
        except OSError as error:
            failure = error
        finally:
            self.lock.acquire()
            self._writing = False
            self._turn.notify_all()
        if failure is not None:
            self._fail(failure)

    def forget(self, connection: MuxConnection) -> None:
        """Drop a connection from the table; the lock is held."""
        self._connections.pop(connection.channel, None)

    def _read(self) -> None:
        try:
            while data := self._stream.read(_READ_SIZE):
                with self.lock:
                    for event in self.endpoint.receive(data):
                        self._handle(event)
            self._fail(ConnectionResetError(errno.ECONNRESET, "the host is gone"))
        except OSError as error:
            self._fail(error)
        except MuxViolationError as error:
            self._on_violation(str(error))
            self._fail(ConnectionResetError(errno.EPROTO, str(error)))

    def _write(self) -> None:
        with self.lock:
            while True:
                # A sender that writes wakes this thread when it is done and more is queued.
                while self._writing or not (frames := self.endpoint.frames_to_send()):
                    if self._down is not None:
                        return
                    self._writable.wait()
                self._write_frames(frames)

    def _handle(self, event: MuxEvent) -> None:
        assert not isinstance(event, Dialed), "only the guest dials"
        connection = self._connections.get(event.channel)
        if connection is None:
            return
        match event:
            case Accepted():
                connection.accepted = True
            case Refused():
                connection.failure = ConnectionRefusedError(
                    errno.ECONNREFUSED, f"the host does not listen on port {connection.port:#x}"
                )
                self.forget(connection)
            case DataReceived(data=data):
                connection.received.append(data)
            case PeerFinished():
                connection.ended = True
            case PeerReset():
                connection.failure = ConnectionResetError(
                    errno.ECONNRESET,
                    f"the host dropped the connection to port {connection.port:#x}",
                )
                self.forget(connection)
            case CreditGranted():
                pass  # the sender tries again
        connection.changed.notify_all()

    def _fail(self, error: OSError) -> None:
        with self.lock:
            self._down = self._down or error
            self.endpoint.receive_eof()
            for connection in self._connections.values():
                connection.failure = connection.failure or error
                connection.changed.notify_all()
            self._connections.clear()
            self._writable.notify_all()
            self._turn.notify_all()

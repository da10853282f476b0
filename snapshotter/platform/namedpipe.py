r"""A named pipe's server side: clients of this machine, one after the other.

::

    instance: listening --a client opens it--> connected --close--> gone
                  ^
                  `-- the next instance, made before this one is handed out

One instance serves one client and is never used again: DisconnectNamedPipe would throw away what
the client has not read yet, a closed handle does not. Nobody else can serve under the name: the
first instance fails where the name is taken, others need a right that only the owner's access
list gives, and there is always one instance.

Every transfer can be ended by another thread (`cancel`). The memory of a transfer is the system's
until it has ended, so every one is waited for, a cancelled one as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import threading
from collections.abc import Callable
from typing import Final, Self

from snapshotter.platform.pipecalls import FILE_FLAG_FIRST_PIPE_INSTANCE, Overlapped, PipeCalls
from snapshotter.platform.winerror import (
    BROKEN_PIPE,
    IO_PENDING,
    NO_DATA,
    OPERATION_ABORTED,
    PIPE_CONNECTED,
    PIPE_NOT_CONNECTED,
    windows_error,
)
from snapshotter.units import KIB

SYSTEM_AND_ADMINISTRATORS: Final = "D:P(A;;GA;;;SY)(A;;GA;;;BA)"
"""SDDL: all access for the two, none for anybody else; nothing is inherited."""
MAX_CLIENTS: Final = 64
"""One more waits at the open instance; those after it find the pipe busy, and try again."""

_BUFFER_SIZE: Final = 64 * KIB
_ENDED: Final = (BROKEN_PIPE, NO_DATA, PIPE_NOT_CONNECTED)
_NAME: Final = re.compile(r"[^\\/]{1,247}")
r"""CreateNamedPipe: 256 characters with `\\.\pipe\`, and no backslash."""


def pipe_path(address: str) -> str | None:
    r"""Return `\\.\pipe\NAME` for `//./pipe/NAME`, with either slash; None for anything else."""
    path = address.replace("/", "\\")
    name = path.removeprefix("\\\\.\\pipe\\")
    return path if name != path and _NAME.fullmatch(name) else None


class PipeClosedError(Exception):
    """A listener was told to stop, or a connection to be cancelled."""


class _Channel:
    """Transfers in one direction of a handle: one at a time, with their event."""

    def __init__(self, calls: PipeCalls) -> None:
        self._calls = calls
        self._event: int | None = calls.create_event()

    def transfer(
        self, handle: int, start: Callable[[Overlapped], int], *, lock: threading.Lock
    ) -> tuple[int, int]:
        """Start a transfer with `lock` held, and return its code and count when it has ended."""
        overlapped = Overlapped(hEvent=self._event)
        with lock:
            code = start(overlapped)
        if code not in (0, IO_PENDING):
            return code, 0
        return self._calls.result(handle, overlapped)

    def close(self) -> None:
        event, self._event = self._event, None
        if event is not None:
            self._calls.close(event)


class PipeConnection:
    """One client. One thread may read, another one write, any may cancel; then `close`."""

    def __init__(self, calls: PipeCalls, handle: int, *, closed: Callable[[], None]) -> None:
        self._calls = calls
        self._handle = handle
        self._closed: Callable[[], None] | None = closed
        self._starting = threading.Lock()
        self._cancelled = False
        self._reading = _Channel(calls)
        try:
            self._writing = _Channel(calls)
        except OSError:
            self._reading.close()
            raise

    def wait_for_client(self) -> bool:
        """Return whether a client has come; False where it has left already.

        Raises PipeClosedError after `cancel`, OSError.
        """
        code, _ = self._transfer(
            self._reading, lambda overlapped: self._calls.connect(self._handle, overlapped)
        )
        if code in _ENDED:
            return False
        if code not in (0, PIPE_CONNECTED):
            raise windows_error(code, "client")
        return True

    def read_into(self, buffer: memoryview) -> int:
        """Read what there is, waiting for the first byte; 0 when the client has closed.

        A client of a byte pipe cannot close one direction. Raises PipeClosedError, OSError.
        """
        if not buffer:
            return 0
        target = (ctypes.c_char * len(buffer)).from_buffer(buffer)
        while True:
            code, count = self._transfer(
                self._reading,
                lambda overlapped: self._calls.read(self._handle, target, len(buffer), overlapped),
            )
            if code in _ENDED:
                return 0
            if code:
                raise windows_error(code, "client")
            if count:  # a client's empty write is no end
                return count

    def write(self, data: memoryview) -> None:
        """Write all of it; it is the client's then, even after `close`.

        Raises BrokenPipeError where the client has closed, PipeClosedError, OSError.
        """
        while data:
            data = data[self._write_some(data) :]

    def cancel(self) -> None:
        """Make every transfer, those to come included, end in PipeClosedError."""
        with self._starting:
            self._cancelled = True
            self._calls.cancel(self._handle)  # "not found": there is none

    def close(self) -> None:
        """Close the handle, when no transfer is under way; a second call does nothing."""
        closed, self._closed = self._closed, None
        if closed is None:
            return
        try:
            self._calls.close(self._handle)
        finally:
            self._reading.close()
            self._writing.close()
            closed()

    def _write_some(self, data: memoryview) -> int:
        source = (ctypes.c_char * len(data)).from_buffer(data)
        code, count = self._transfer(
            self._writing,
            lambda overlapped: self._calls.write(self._handle, source, len(data), overlapped),
        )
        if code:
            raise windows_error(BROKEN_PIPE if code in _ENDED else code, "client")
        return count

    def _transfer(self, channel: _Channel, start: Callable[[Overlapped], int]) -> tuple[int, int]:
        def start_unless_cancelled(overlapped: Overlapped) -> int:
            # With the lock held: either the transfer is there to be cancelled, or it never starts.
            return OPERATION_ABORTED if self._cancelled else start(overlapped)

        code, count = channel.transfer(self._handle, start_unless_cancelled, lock=self._starting)
        if code == OPERATION_ABORTED:
            raise PipeClosedError
        return code, count


class PipeListener:
    """A named pipe that this process serves. Open it with `PipeListener.open`."""

    def __init__(self, calls: PipeCalls, path: str, security: int, *, max_clients: int) -> None:
        self._calls = calls
        self.path = path
        self._security = security
        self._max_clients = max_clients
        self._changed = threading.Condition()
        self._stopped = False
        self._instances = 0
        self._next: PipeConnection | None = None

    @classmethod
    def open(
        cls,
        calls: PipeCalls,
        path: str,
        *,
        sddl: str = SYSTEM_AND_ADMINISTRATORS,
        max_clients: int = MAX_CLIENTS,
    ) -> Self:
        r"""Take the name `\\.\pipe\NAME`; clients can come from now on.

        Raises OSError: ACCESS_DENIED where somebody has the name.
        """
        listener = cls(calls, path, calls.security_descriptor(sddl), max_clients=max_clients)
        try:
            listener._next = listener._instance()
        except OSError:
            listener.close()
            raise
        return listener

    def accept(self) -> PipeConnection:
        """Return the next client's connection, when there is room. One thread at a time.

        Raises PipeClosedError after `stop`; OSError, after which another call tries again.
        """
        while True:
            try:
                listening = self._listening()
                try:
                    arrived = listening.wait_for_client()
                except OSError:
                    self._hand_out().close()
                    raise
                connected = self._hand_out()
            except PipeClosedError:
                self._close_next()
                raise
            if arrived:
                return connected
            connected.close()

    def stop(self) -> None:
        """Take no more clients, from any thread; `accept` ends. Connections stay.

        New clients find the pipe busy, or no pipe; the name is ours while there are connections.
        """
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            if self._next is not None:
                self._next.cancel()

    def close(self) -> None:
        """Give the name up after `stop`, when `accept` has ended; a second call does nothing."""
        self.stop()
        self._close_next()
        with self._changed:
            security, self._security = self._security, 0
        if security:
            self._calls.free(security)

    def _listening(self) -> PipeConnection:
        """The instance that waits for a client, when there is room for one."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._has_room())
            if self._stopped:
                raise PipeClosedError
            if self._next is None:
                self._next = self._instance()
            return self._next

    def _has_room(self) -> bool:
        return self._instances - (self._next is not None) < self._max_clients

    def _hand_out(self) -> PipeConnection:
        """The instance that a client has come to; another one listens from now on."""
        with self._changed:
            connected, self._next = self._next, None
            assert connected is not None
            if not self._stopped:
                # Made before the other can be closed: the name is never free.
                with contextlib.suppress(OSError):  # the next `accept` tries again, and tells
                    self._next = self._instance()
                return connected
        connected.close()
        raise PipeClosedError

    def _close_next(self) -> None:
        with self._changed:
            listening, self._next = self._next, None
        if listening is not None:
            listening.close()

    def _instance(self) -> PipeConnection:
        handle = self._calls.create_pipe(
            self.path,
            flags=0 if self._instances else FILE_FLAG_FIRST_PIPE_INSTANCE,
            instances=self._max_clients + 1,
            buffer_size=_BUFFER_SIZE,
            security=self._security,
        )
        try:
            connection = PipeConnection(self._calls, handle, closed=self._one_less)
        except OSError:
            self._calls.close(handle)
            raise
        self._instances += 1
        return connection

    def _one_less(self) -> None:
        with self._changed:
            self._instances -= 1
            self._changed.notify_all()

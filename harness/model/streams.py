"""The streams of a model's guest: Unix sockets where consumers connect and the guest dials.

A port is listened on with a socket of its own; the consumer's connection waits in its backlog
until the guest dials and takes it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import sys
import threading
from pathlib import Path

from harness.errors import ComputeServiceError, SystemExitedError
from harness.hcs.service import BRIDGE_PORT, LOG_PORT, StreamEndpoint

_CONSUMER_S = 10.0  # how long a dial waits for the consumer to connect


class ModelPorts:
    """The listened ports of one system."""

    def __init__(self, folder: Path) -> None:
        """`folder` is private to this user and short enough for Unix socket paths."""
        self._folder = folder
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._listeners: dict[int, tuple[socket.socket, Path]] = {}
        self._taken: list[socket.socket] = []
        self._log: socket.socket | None = None
        self._gone = False

    def listen(self, port: int) -> StreamEndpoint:
        """Return where the consumer of the guest's next stream to `port` connects."""
        if sys.platform != "win32":
            with self._lock:
                if self._gone:
                    raise SystemExitedError("the system has stopped: nothing can be listened on")
                if port in self._listeners:
                    raise ComputeServiceError(f"port {port:#x} is listened on already")
                path = self._folder / str(next(self._numbers))
                listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    listener.bind(os.fspath(path))
                    listener.listen(1)
                except OSError as error:
                    listener.close()
                    raise ComputeServiceError(f"stream socket {path}: {error}") from error
                self._listeners[port] = listener, path
            return StreamEndpoint("unix", os.fspath(path))
        else:  # noqa: RET505 - mypy understands platforms in this form only
            raise ComputeServiceError("the model needs Linux")

    def unlisten(self, port: int) -> None:
        """Give up a port that the guest has not dialed; unknown ports are fine."""
        with self._lock:
            entry = self._listeners.pop(port, None)
        if entry is not None:
            _discard(*entry)

    def dial(self, port: int) -> socket.socket:
        """Return the guest's end of a stream to `port`. Raises ConnectionRefusedError."""
        if port == BRIDGE_PORT:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "the bridge is dialed once")
        return self._take(port)

    def bridge(self) -> socket.socket:
        """Return the guest's end of the bridge. Raises OSError where nobody listens."""
        return self._take(BRIDGE_PORT)

    def _take(self, port: int) -> socket.socket:
        with self._lock:
            entry = self._listeners.pop(port, None)
        if entry is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody listens on port {port:#x}")
        listener, path = entry
        try:
            listener.settimeout(_CONSUMER_S)
            taken, _ = listener.accept()
        finally:
            _discard(listener, path)
        taken.setblocking(True)
        with self._lock:
            if self._gone:
                taken.close()
                raise ConnectionRefusedError(errno.ECONNREFUSED, "the system has stopped")
            self._taken = [each for each in self._taken if each.fileno() >= 0]
            self._taken.append(taken)
            if port == LOG_PORT:
                self._log = taken
        return taken

    def close(self) -> None:
        """Cut every stream; may be repeated."""
        with self._lock:
            self._gone = True
            listeners, self._listeners = self._listeners, {}
            for taken in self._taken:
                _cut(taken)
            if self._log is not None:
                self._log.close()  # the agent keeps its log's stream for ever
        for entry in listeners.values():
            _discard(*entry)


def _cut(taken: socket.socket) -> None:
    """Wake whoever uses a socket; its owner closes it."""
    with contextlib.suppress(OSError):
        taken.shutdown(socket.SHUT_RDWR)


def _discard(listener: socket.socket, path: Path) -> None:
    listener.close()
    with contextlib.suppress(OSError):
        path.unlink()

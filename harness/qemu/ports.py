"""The ports of a guest that the host listens on, and the Unix sockets where consumers take them.

The bridge's port is the virtio port `gcs`; every other port is a channel of the multiplex on the
virtio port `stdio`. Life of a listened port::

    listen ──> LISTENING ──consumer connects, guest dials (in any order)──> joined, no entry left
                   └────unlisten, machine gone, close────> gone
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ComputeServiceError, SystemExitedError
from harness.hcs.service import BRIDGE_PORT, StreamEndpoint
from harness.qemu.loop import READ, IoLoop
from harness.qemu.muxhost import DialAnswer, MuxHost
from harness.qemu.relay import Relay


@dataclass(slots=True)
class _Entry:
    port: int
    path: Path
    listener: socket.socket
    consumer: socket.socket | None = None
    channel: int | None = None  # the guest dialed before the consumer connected


class PortTable:
    """Listened ports of one machine. Owns the two guest sockets and all that come from listening.

    `listen`, `unlisten` and `close` may be called from any thread.
    """

    def __init__(
        self, loop: IoLoop, directory: Path, *, gcs: socket.socket, stdio: socket.socket
    ) -> None:
        """`directory` is private to this user and short enough for Unix socket paths."""
        self._loop = loop
        self._directory = directory
        self._gcs = gcs
        self._mux = MuxHost(loop, stdio, on_dial=self._dialed)
        self._entries: list[_Entry] = []
        self._numbers = itertools.count(1)
        self._bridge: Relay | None = None
        self._guest_gone = False
        self._started = False

    def start(self) -> None:
        """Let bytes pass from now on: the bridge's, and the guest's dials."""
        self._loop.run(self._start)

    def listen(self, port: int) -> StreamEndpoint:
        """Return where the consumer of the guest's next stream to `port` connects.

        Raises SystemExitedError once the machine is gone, ComputeServiceError for a port that is
        listened on already.
        """
        return self._loop.run(lambda: self._listen(port))

    def unlisten(self, port: int) -> None:
        """Give up a port that the guest has not dialed; any other is fine."""
        self._loop.run(lambda: self._unlisten(port))

    def guest_gone(self) -> None:
        """The machine ended: ports that nobody dialed are closed, streams end by themselves."""
        self._guest_gone = True
        self._start()  # whoever waits on the bridge reads its end
        for entry in [entry for entry in self._entries if entry.channel is None]:
            self._remove(entry)
        if self._bridge is None:
            self._gcs.close()

    def close(self) -> None:
        """Close every stream and socket at once; may be repeated."""
        self._loop.run(self._close)

    def _start(self) -> None:
        if not self._started:
            self._started = True
            self._mux.start()
            if self._bridge is not None:
                self._bridge.start()

    def _listen(self, port: int) -> StreamEndpoint:
        if self._guest_gone:
            raise SystemExitedError("the system has stopped: nothing can be listened on")
        if self._waiting(port) is not None or (port == BRIDGE_PORT and self._bridge is not None):
            raise ComputeServiceError(f"port {port:#x} is listened on already")
        if sys.platform != "win32":
            path = self._directory / str(next(self._numbers))
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                listener.bind(os.fspath(path))
                listener.listen(1)
                listener.setblocking(False)
            except OSError as error:
                listener.close()
                raise ComputeServiceError(f"stream socket {path}: {error}") from error
            entry = _Entry(port, path, listener)
            self._entries.append(entry)
            self._loop.watch(listener, READ, lambda _events: self._connected(entry))
            return StreamEndpoint("unix", os.fspath(path))
        else:  # noqa: RET505 - mypy understands platforms in this form only
            raise ComputeServiceError("the QEMU service needs Linux")

    def _connected(self, entry: _Entry) -> None:
        try:
            consumer, _ = entry.listener.accept()
        except OSError:  # it has gone again
            return
        self._close_listener(entry)
        if entry.port == BRIDGE_PORT:
            self._entries.remove(entry)
            self._bridge = Relay(self._loop, self._gcs, consumer)
            if self._started:
                self._bridge.start()
        elif entry.channel is not None:
            self._entries.remove(entry)
            self._mux.join(entry.channel, consumer)
        else:
            entry.consumer = consumer

    def _dialed(self, port: int, channel: int) -> DialAnswer:
        entry = self._waiting(port)
        if entry is None or port == BRIDGE_PORT:
            return DialAnswer(accepted=False)
        if entry.consumer is not None:
            self._entries.remove(entry)
        else:
            entry.channel = channel
        return DialAnswer(accepted=True, consumer=entry.consumer)

    def _waiting(self, port: int) -> _Entry | None:
        return next((e for e in self._entries if e.port == port and e.channel is None), None)

    def _unlisten(self, port: int) -> None:
        entry = self._waiting(port)
        if entry is not None:
            self._remove(entry)

    def _remove(self, entry: _Entry) -> None:
        self._entries.remove(entry)
        self._close_listener(entry)
        if entry.consumer is not None:
            entry.consumer.close()

    def _close_listener(self, entry: _Entry) -> None:
        self._loop.unwatch(entry.listener)
        entry.listener.close()
        with contextlib.suppress(OSError):
            entry.path.unlink()

    def _close(self) -> None:
        self._guest_gone = True
        for entry in list(self._entries):
            self._remove(entry)
        self._mux.close()
        if self._bridge is not None:
            self._bridge.close()
        self._gcs.close()

"""From a named pipe's clients to the gRPC server, byte for byte.

::

    client == pipe ==> upstream   ==> loopback TCP ==> gRPC server
    client <== pipe == downstream <== loopback TCP <== gRPC server

A direction reads no more before what it has read is written: who does not read, is not read from.
An end is passed on: a client that has closed (a byte pipe closes in both directions at once) is
an end of input for gRPC, which then closes; and when gRPC closes, everything that it has sent is
written before the pipe is closed, where the client can still read it.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from typing import Final

from snapshotter.platform.namedpipe import PipeClosedError, PipeConnection, PipeListener
from snapshotter.rpc.innerhop import AnnouncedPeers, inner_connection
from snapshotter.units import KIB

_log = logging.getLogger(__name__)

_CHUNK: Final = 64 * KIB
_PAUSE_S: Final = 0.1
"""After a refusal by the system: it may be short of something."""


class PipeBridge:
    """Serves a pipe's clients until it is closed; `peers` is what the gRPC server trusts."""

    def __init__(self, listener: PipeListener, port: int, peers: AnnouncedPeers) -> None:
        self._listener = listener
        self._port = port
        self._peers = peers
        self._changed = threading.Condition()
        self._relays: set[_Relay] = set()
        self._stopped = threading.Event()
        self._accepting = threading.Thread(target=self._accept, name="pipe", daemon=True)

    def start(self) -> None:
        """Take clients from now on."""
        self._accepting.start()

    def stop_accepting(self) -> None:
        """Take no new clients, and go on with those that are there."""
        self._stopped.set()
        self._listener.stop()
        if self._accepting.ident is not None:
            self._accepting.join()

    def close(self, *, grace_s: float) -> bool:
        """Wait until gRPC has closed every connection, then cut those left; whether none was."""
        self.stop_accepting()
        with self._changed:
            idle = self._changed.wait_for(lambda: not self._relays, grace_s)
            left = list(self._relays)
        for relay in left:
            relay.cut()
        with self._changed:
            self._changed.wait_for(lambda: not self._relays)
        if not idle:
            _log.warning(
                "%d clients of %s did not take what was sent to them; they are cut off",
                *(len(left), self._listener.path),
            )
        return idle

    def _accept(self) -> None:
        refused = ""
        while True:
            try:
                client = self._listener.accept()
            except PipeClosedError:
                return
            except OSError as error:
                if refused != str(error):  # it may last
                    refused = str(error)
                    _log.warning("cannot take clients on %s: %s", self._listener.path, error)
                self._stopped.wait(_PAUSE_S)
                continue
            refused = ""
            self._begin(_Relay(client))

    def _begin(self, relay: _Relay) -> None:
        with self._changed:
            self._relays.add(relay)
        serving = threading.Thread(target=self._serve, args=(relay,), name="pipe", daemon=True)
        try:
            serving.start()
        except RuntimeError as error:  # the system gives no more threads
            _log.warning("a client of %s is refused: %s", self._listener.path, error)
            relay.cut()
            self._serve(relay)

    def _serve(self, relay: _Relay) -> None:
        try:
            relay.run(self._port, self._peers)
        except (OSError, RuntimeError) as error:
            _log.warning("a client of %s is lost: %s", self._listener.path, error)
        finally:
            with self._changed:
                self._relays.remove(relay)
                self._changed.notify_all()


class _Relay:
    """One client's connection to the server."""

    def __init__(self, client: PipeConnection) -> None:
        self._client = client
        self._cutting = threading.Lock()
        self._inner: socket.socket | None = None
        self._is_cut = False

    def run(self, port: int, peers: AnnouncedPeers) -> None:
        """Relay until both ends are closed. Raises OSError where there is no server."""
        try:
            with inner_connection(port, peers) as inner:
                with self._cutting:
                    if self._is_cut:
                        return
                    self._inner = inner
                try:
                    self._relay(inner)
                finally:
                    with self._cutting:
                        self._inner = None
        finally:
            self._client.close()

    def cut(self) -> None:
        """End at once, from any thread."""
        self._client.cancel()
        with self._cutting:
            self._is_cut = True
            if self._inner is not None:
                _shutdown(self._inner, socket.SHUT_RDWR)

    def _relay(self, inner: socket.socket) -> None:
        upstream = threading.Thread(target=self._upstream, args=(inner,), name="pipe", daemon=True)
        upstream.start()
        try:
            self._downstream(inner)
        finally:
            self._client.cancel()  # it may wait for the client
            _shutdown(inner, socket.SHUT_RDWR)  # or for the server
            upstream.join()

    def _upstream(self, inner: socket.socket) -> None:
        buffer = memoryview(bytearray(_CHUNK))
        try:
            while count := self._client.read_into(buffer):
                inner.sendall(buffer[:count])
        except (PipeClosedError, OSError) as error:
            _log.debug("no more from a client: %r", error)
        # The server's answers go on until it has closed as well.
        _shutdown(inner, socket.SHUT_WR)

    def _downstream(self, inner: socket.socket) -> None:
        buffer = memoryview(bytearray(_CHUNK))
        try:
            while count := inner.recv_into(buffer):
                self._client.write(buffer[:count])
        except (PipeClosedError, OSError) as error:
            _log.debug("no more to a client: %r", error)


def _shutdown(connection: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # it is over already
        connection.shutdown(how)

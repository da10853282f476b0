"""From the named pipe to the gRPC server: loopback TCP that nobody but the bridge can use.

gRPC for Python listens on TCP alone on Windows, and takes connections itself: nothing can be said
on one before gRPC speaks, and anybody on the machine can dial the port. So a call is served only
where it came over a connection that the bridge made, which its source port tells: two connections
never have the same pair of ports at a time, and the bridge holds its port from before it says so
(`announce`) until after it has taken that back. Without a secret there is none to lose. The other
end is the gRPC server itself: a port that is bound to an address without SO_REUSEADDR cannot be
bound by another process while it lives (Microsoft, "Using SO_REUSEADDR and SO_EXCLUSIVEADDRUSE").

What is left to other users of the machine is to occupy connections, as with any port.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol
from urllib.parse import unquote

import grpc

_log = logging.getLogger(__name__)

LOOPBACK: Final = "127.0.0.1"
_PEER: Final = re.compile(r"(?:ipv4:127\.0\.0\.1|ipv6:\[::ffff:127\.0\.0\.1\]):([0-9]+)")
"""As gRPC writes it; on Windows its sockets are IPv6 ones that take IPv4 as well."""


class _Call(Protocol):
    """A call under way (grpc.ServicerContext)."""

    def peer(self) -> str: ...

    def abort(self, code: grpc.StatusCode, details: str) -> None: ...


class AnnouncedPeers:
    """The source ports of the bridge's connections; a gRPC server's interceptor."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ports: frozenset[int] = frozenset()  # read without the lock, by every call
        self._told = False

    def announce(self, port: int) -> None:
        """Serve calls from this source port from now on; the caller holds it."""
        with self._lock:
            self._ports |= {port}

    def retract(self, port: int) -> None:
        """Serve none from now on; before the port is given up."""
        with self._lock:
            self._ports -= {port}

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:  # noqa: ANN401, untyped library
        """The handler of a call, which refuses one from elsewhere (PERMISSION_DENIED)."""
        handler = continuation(details)
        if handler is None:
            return None
        assert not handler.request_streaming, "no service here takes a stream"
        serve = handler.unary_stream if handler.response_streaming else handler.unary_unary
        make = (
            grpc.unary_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.unary_unary_rpc_method_handler
        )

        @functools.wraps(serve)  # with the threads that it is to run on
        def guarded(request: Any, call: _Call) -> Any:  # noqa: ANN401, untyped library
            self._check(call)
            return serve(request, call)

        return make(guarded, handler.request_deserializer, handler.response_serializer)

    def _check(self, call: _Call) -> None:
        found = _PEER.fullmatch(unquote(call.peer()))
        if found is None or int(found[1]) not in self._ports:
            if not self._told:  # once: whoever does it may do it often
                self._told = True
                _log.warning("%s dials the port behind the named pipe; it is refused", call.peer())
            call.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                "this port is for the server itself; connect to its named pipe",
            )


@contextlib.contextmanager
def inner_connection(port: int, peers: AnnouncedPeers) -> Iterator[socket.socket]:
    """Connect to the gRPC server at a loopback port, as one that it serves. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as inner:
        if sys.platform == "win32":
            # Else another process could be made to share the port until it is connected.
            inner.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        inner.bind((LOOPBACK, 0))
        own: int = inner.getsockname()[1]
        peers.announce(own)
        try:
            inner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            inner.connect((LOOPBACK, port))
            yield inner
        finally:
            peers.retract(own)

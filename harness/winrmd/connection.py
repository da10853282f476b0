"""One TCP connection to the endpoint: HTTP, the 401 exchange, sealing, the reply.

http.sys binds authentication to the connection, and Receive waits for output: hence one thread
and one handler object for each connection, which is exactly that state.
"""

from __future__ import annotations

import contextlib
import http.server
import logging
import socket
import ssl
import time
from collections.abc import Sequence
from email.utils import formatdate
from typing import Final, Protocol

from harness.winrmd import seal
from harness.winrmd.auth import ConnectionAuth
from harness.winrmd.config import EndpointConfig
from harness.winrmd.soap import CONTENT_TYPE, EnvelopeError
from harness.winrmd.wsman import Dispatcher, Reply

log = logging.getLogger(__name__)

# What a sealed envelope may be longer than what it holds: frame, signature.
_SEAL_OVERHEAD: Final = 4096
# A client sends its whole body before it reads: one that is too large is read and thrown away, so
# that the 413 arrives and not a reset. Beyond this the connection is cut.
_LARGEST_DRAIN: Final = 64 << 20
_DRAIN_PIECE: Final = 1 << 16
_HANDSHAKE_S: Final = 10.0

_IDENTIFY_PATH: Final = "/wsman-anon/identify"
_PATHS: Final = ("/wsman", _IDENTIFY_PATH)


class Endpoint(Protocol):
    """What a connection needs of its server."""

    config: EndpointConfig
    dispatcher: Dispatcher
    tls: ssl.SSLContext | None

    def new_auth(self) -> ConnectionAuth:
        """Return the state of a connection that has not said who it is."""

    def entered(self, connection: socket.socket) -> bool:
        """Count a connection; False if the endpoint is going down or MaxConnections is reached."""

    def left(self, connection: socket.socket) -> None:
        """Forget a connection."""


class ConnectionHandler(http.server.BaseHTTPRequestHandler):
    """Handles the requests of one connection, one after the other."""

    endpoint: Endpoint  # set on a subclass by the server

    protocol_version = "HTTP/1.1"
    server_version = "Microsoft-HTTPAPI/2.0"
    sys_version = ""
    wbufsize = 1 << 16
    rbufsize = 1 << 16

    def setup(self) -> None:
        """Shake hands. Raises OSError, which ends the connection."""
        self._raw: socket.socket = self.request
        self._counted = self.endpoint.entered(self._raw)
        if not self._counted:
            raise ConnectionAbortedError("the endpoint takes no more connections")
        try:
            self._raw.settimeout(_HANDSHAKE_S)
            if self.endpoint.tls is not None:
                self.request = self.endpoint.tls.wrap_socket(self._raw, server_side=True)
                # wrap_socket took the descriptor over: this is the socket to cut at a reboot.
                self.endpoint.left(self._raw)
                self._raw = self.request
                if not self.endpoint.entered(self._raw):
                    raise ConnectionAbortedError("the endpoint is going down")
            super().setup()
            self.connection.settimeout(self.endpoint.config.connection_idle_s)
        except BaseException:
            self.endpoint.left(self._raw)
            self._raw.close()  # after wrap_socket nobody else would
            raise
        self._auth = self.endpoint.new_auth()

    def finish(self) -> None:
        """Let the connection go."""
        try:
            # Each by itself: a reply that nobody takes fails as it is flushed, and the other stream
            # would keep the descriptor.
            for stream in (self.wfile, self.rfile):
                with contextlib.suppress(OSError, ValueError):
                    stream.close()
        finally:
            # What could not be flushed any more made the base leave this one open.
            self.rfile.close()
            self.endpoint.left(self._raw)
            if self._raw is not None:
                with contextlib.suppress(OSError):
                    self._raw.close()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Log where the rest of the package logs; never to stderr."""
        log.debug("%s: " + format, self.client_address[0], *args)

    def version_string(self) -> str:
        """Return what http.sys calls itself."""
        return self.server_version

    def date_time_string(self, timestamp: float | None = None) -> str:
        """Return the Date header, which clients check their clock against."""
        return formatdate(timestamp, usegmt=True)

    def _reply(
        self, status: int, body: bytes = b"", headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        latency_s = self.endpoint.config.knobs.latency_s
        if latency_s:
            time.sleep(latency_s)
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def _drop(self) -> None:
        """Cut the connection without a word."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self._raw.shutdown(socket.SHUT_RDWR)

    def do_GET(self) -> None:
        """Refuse: there is nothing to get."""
        self._reply(405, b"", [("Allow", "POST")])

    def do_POST(self) -> None:
        """Answer one request."""
        path = self.path.split("?", 1)[0].rstrip("/").lower()
        body = self._body()
        if body is None:
            return
        if path not in _PATHS:
            self._reply(404)
            return
        anonymous = self.headers.get("WSMANIDENTIFY", "").lower() == "unauthenticated"
        if anonymous or path == _IDENTIFY_PATH:
            self._reply(
                200, self.endpoint.dispatcher.identify().body, [("Content-Type", CONTENT_TYPE)]
            )
            return
        headers: list[tuple[str, str]] = []
        authorization = self.headers.get("Authorization")
        if authorization or self._auth.user is None:
            answer = self._auth.step(authorization) if authorization else self._auth.refuse()
            if answer.accepted and not self.endpoint.config.knobs.take_logon():
                answer = self._auth.refuse()
            headers = [("WWW-Authenticate", value) for value in answer.headers]
            if not answer.accepted:
                self._reply(401, b"", headers)
                return
        if body:
            self._envelope(body, headers)
        else:
            # A client that authenticates before it has a context to seal with.
            self._reply(200, b"", headers)

    def _body(self) -> bytes | None:
        """Return the body, or None after answering what cannot be one."""
        length_text = self.headers.get("Content-Length", "0").strip()
        if self.headers.get("Transfer-Encoding") or not length_text.isdigit():
            self.close_connection = True
            self._reply(411)
            return None
        length = int(length_text)
        limit = self.endpoint.dispatcher.largest_envelope + _SEAL_OVERHEAD
        if length > limit:
            if length > _LARGEST_DRAIN:
                self.close_connection = True
            else:
                while length > 0:
                    piece = self.rfile.read(min(length, _DRAIN_PIECE))
                    if not piece:
                        break
                    length -= len(piece)
            self._reply(413)
            return None
        body = self.rfile.read(length)
        if len(body) < length:
            self.close_connection = True
            return None
        return body

    def _envelope(self, body: bytes, headers: list[tuple[str, str]]) -> None:
        sealed = seal.is_sealed(self.headers.get("Content-Type", ""))
        config = self.endpoint.config
        try:
            if sealed and not self._auth.can_unseal:
                # Sealed by a connection that is gone: its context cannot be had again.
                raise seal.SealError("a sealed message on a connection without a context")
            if not sealed and self.endpoint.tls is None and not config.allow_unencrypted:
                self._reply(500, b"", headers)
                return
            xml = self._auth.unseal_request(body) if sealed else body
            reply = self.endpoint.dispatcher.handle(
                xml, user=self._auth.user or "", client_address=str(self.client_address[0])
            )
        except (seal.SealError, EnvelopeError) as error:
            log.info("a request was refused: %s", error)
            self._reply(400, b"", headers)
            return
        self._send(reply, headers, sealed=sealed)

    def _send(self, reply: Reply, headers: list[tuple[str, str]], *, sealed: bool) -> None:
        if reply.dropped:
            self._drop()
        elif not reply.body:
            self._reply(reply.status, b"", headers)
        elif sealed:
            content_type, body = self._auth.seal_reply(reply.body)
            self._reply(reply.status, body, [*headers, ("Content-Type", content_type)])
        else:
            self._reply(reply.status, reply.body, [*headers, ("Content-Type", CONTENT_TYPE)])

"""One file, offered for one transfer over HTTPS to one host that knows a random path.

The path is the permission: 256 bits, gone from the world when the context is left (not with the
first request: a transfer that broke off goes on with a Range). Any other request is answered 404
and told to nobody.
"""

from __future__ import annotations

import contextlib
import http.server
import re
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.remote.certificates import make_identity
from harness.remote.ways import Progress

HOST_NAME: Final = "lcowlab-transfer.invalid"
"""A name that the certificate is good for too: older Windows' TLS knows no IP addresses in one.

RFC 2606 keeps it out of the DNS: who uses it says which address it stands for.
"""

_RANGE: Final = re.compile(r"bytes=(\d+)-")
_HANDSHAKE_S: Final = 10.0
_IDLE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Offer:
    """Where the file is to be had, and the only authority to trust for it.

    `sent` returns the bytes of the file that have left.
    """

    address: str
    port: int
    path: str
    authority_pem: str
    sent: Callable[[], int]


def address_towards(host: str, port: int) -> str:
    """Return our own IP address on the way to a host; nothing is sent. Raises OSError."""
    family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: str, file: Path, token: str, progress: Progress | None) -> None:
        if ":" in address:
            self.address_family = socket.AF_INET6
        self.file = file
        self.size = file.stat().st_size
        self.token = token
        self.progress = progress
        self.sent = 0
        identity = make_identity(address, name=HOST_NAME)
        self.authority_pem = identity.authority_pem
        self._context = identity.context
        super().__init__((address, 0), _Handler)

    def finish_request(self, request: object, client_address: object) -> None:
        """Shake hands in the connection's own thread: a silent client holds up nobody."""
        assert isinstance(request, socket.socket)
        request.settimeout(_HANDSHAKE_S)
        # OSError: whoever does not speak TLS, does not trust us, or goes away.
        with (
            contextlib.suppress(OSError),
            self._context.wrap_socket(request, server_side=True) as secured,
        ):
            secured.settimeout(_IDLE_S)
            _Handler(secured, client_address, self)

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent: the host's side reports what broke."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.0"  # one request a connection

    def do_GET(self) -> None:
        offer = self.server
        # curl asks for no range where it has nothing yet.
        wanted = _RANGE.fullmatch(self.headers.get("Range", "bytes=0-"))
        known = secrets.compare_digest(self.path.encode(), f"/{offer.token}".encode())
        if not known or wanted is None:
            self.send_error(404)
            return
        start = int(wanted[1])
        if start >= offer.size:
            self.send_error(416)
            return
        self.send_response(206)
        self.send_header("Content-Length", str(offer.size - start))
        self.send_header("Content-Range", f"bytes {start}-{offer.size - 1}/{offer.size}")
        self.end_headers()
        with offer.file.open("rb") as file:
            file.seek(start)
            while block := file.read(1 << 20):
                self.wfile.write(block)
                offer.sent += len(block)
                if offer.progress is not None:
                    offer.progress(file.tell(), offer.size)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Log nothing: the path is a secret."""


@contextmanager
def offer_file(file: Path, *, address: str, progress: Progress | None = None) -> Iterator[Offer]:
    """Offer `file` on that address of ours, on a free port, while the context lasts.

    `progress` hears what has left, for whoever cannot ask the host how much arrived.

    Raises OSError when the address cannot be listened on.
    """
    token = secrets.token_urlsafe(32)
    server = _Server(address, file, token, progress)
    serving = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    serving.start()
    try:
        yield Offer(
            address,
            server.server_address[1],
            f"/{token}",
            server.authority_pem,
            lambda: server.sent,
        )
    finally:
        server.shutdown()
        server.server_close()
        serving.join()

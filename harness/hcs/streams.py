"""The host end of a guest's stream: opens what a compute service's `StreamEndpoint` names.

A Unix endpoint is a socket on which the service already listens: it is connected to at once, and
bytes flow when the guest dials. A Hyper-V endpoint is bound and listened on here, and the guest's
connection is accepted. Either way one listener gives one connected socket.
"""

from __future__ import annotations

import socket
import sys
from types import TracebackType
from typing import Final, Self

from harness.errors import ComputeServiceError, ComputeTimeoutError, UsageError
from harness.hcs.service import StreamEndpoint

# A vsock port as a Hyper-V socket service: its number in hexadecimal, then this (hvsocket.h,
# HV_GUID_VSOCK_TEMPLATE).
_VSOCK_TEMPLATE: Final = "-facb-11e6-bd58-64006a7986d3"
_CONNECT_TIMEOUT_S: Final = 10.0


class StreamListener:
    """One stream that a guest is going to open; a context manager that gives up what is not taken.

    The socket that `accept` returns belongs to the caller and outlives the listener.
    """

    def __init__(self, endpoint: StreamEndpoint, held: socket.socket, *, connected: bool) -> None:
        self.endpoint = endpoint
        self._held: socket.socket | None = held
        self._connected = connected

    def accept(self, timeout_s: float) -> socket.socket:
        """Return the connected, blocking socket; can be called once.

        Raises ComputeTimeoutError when no guest connected within `timeout_s`; it can be called
        again then. A Unix endpoint is connected from the start: there the guest's dial shows as
        bytes, and a guest that is gone as the end of the stream.
        """
        if self._held is None:
            raise UsageError(f"the stream {self.endpoint.address} was accepted or closed already")
        if self._connected:
            taken, self._held = self._held, None
            return taken
        self._held.settimeout(timeout_s)
        try:
            taken, _ = self._held.accept()
        except TimeoutError:
            raise ComputeTimeoutError(
                f"no guest connected to {self.endpoint.address} within {timeout_s:g} s"
            ) from None
        except OSError as error:
            raise ComputeServiceError(f"accept on {self.endpoint.address}: {error}") from error
        taken.setblocking(True)
        self.close()
        return taken

    def close(self) -> None:
        """Give the stream up unless it was accepted; may be repeated."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def hvsock_address(runtime_id: str, port: int) -> str:
    """Return the address of a vsock port of a virtual machine: `<VM GUID>:<service GUID>`."""
    return f"{runtime_id}:{port:08x}{_VSOCK_TEMPLATE}"


def open_listener(endpoint: StreamEndpoint) -> StreamListener:
    """Return the listener of an endpoint: `unix` (a path) or `hvsock` (see `hvsock_address`).

    Raises ComputeServiceError when nothing listens there or this system has no such sockets, and
    UsageError for a transport that does not exist.
    """
    match endpoint.transport:
        case "unix":
            return StreamListener(endpoint, _connect_unix(endpoint.address), connected=True)
        case "hvsock":
            return StreamListener(endpoint, _listen_hvsock(endpoint.address), connected=False)
    raise UsageError(f"stream transport {endpoint.transport!r}: known are unix and hvsock")


def _connect_unix(path: str) -> socket.socket:
    if sys.platform != "win32":
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            opened.settimeout(_CONNECT_TIMEOUT_S)
            opened.connect(path)
        except OSError as error:
            opened.close()
            raise ComputeServiceError(f"stream {path}: {error.strerror or error}") from error
        opened.setblocking(True)
        return opened
    else:  # noqa: RET505 - mypy understands platforms in this form only
        raise ComputeServiceError("Python on Windows has no Unix sockets: use the hcs service")


def _listen_hvsock(address: str) -> socket.socket:
    family = getattr(socket, "AF_HYPERV", None)
    protocol = getattr(socket, "HV_PROTOCOL_RAW", None)
    if family is None or protocol is None:
        raise ComputeServiceError(
            "this Python has no Hyper-V sockets: they need Windows and Python 3.12 or newer"
        )
    runtime_id, separator, service_id = address.partition(":")
    if not separator:
        raise UsageError(f"hvsock address {address!r} is not <VM GUID>:<service GUID>")
    opened = socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        opened.bind((runtime_id, service_id))
        opened.listen(1)
    except OSError as error:
        opened.close()
        raise ComputeServiceError(f"listen on hvsock {address}: {error}") from error
    return opened

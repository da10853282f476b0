"""The host end of a guest's stream: opens what a compute service's `StreamEndpoint` names.

A Unix endpoint is a socket on which the service already listens: it is connected to at once, and
bytes flow when the guest dials. A Hyper-V endpoint is bound and listened on here, and the guest's
connection is accepted. Either way one listener gives one connected socket.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from harness.errors import (
    ComputeServiceError,
    ComputeTimeoutError,
    SystemExitedError,
    UsageError,
)
from harness.hcs.service import ComputeService, StreamEndpoint, SystemState

# A vsock port as a Hyper-V socket service: its number in hexadecimal, then this (hvsocket.h,
# HV_GUID_VSOCK_TEMPLATE).
_VSOCK_TEMPLATE: Final = "-facb-11e6-bd58-64006a7986d3"
_CONNECT_TIMEOUT_S: Final = 10.0
_LOOK_S: Final = 0.25  # how often a listener looks whether its guest still runs

ListenHyperV = Callable[[str, str], socket.socket]
"""Returns a socket that listens for a virtual machine (GUID) on a service (GUID)."""


class StreamListener:
    """One stream that a guest is going to open; a context manager that gives up what is not taken.

    The socket that `accept` returns belongs to the caller and outlives the listener.
    """

    def __init__(
        self,
        endpoint: StreamEndpoint,
        held: socket.socket,
        *,
        connected: bool,
        gone: Callable[[], bool] | None = None,
    ) -> None:
        """`gone` says whether the guest has ended, so that nobody waits for its dial."""
        self.endpoint = endpoint
        self._held: socket.socket | None = held
        self._connected = connected
        self._gone = gone

    def accept(self, timeout_s: float) -> socket.socket:
        """Return the connected, blocking socket; can be called once.

        Raises ComputeTimeoutError when no guest connected within `timeout_s`; it can be called
        again then. Raises SystemExitedError once the guest is gone. A Unix endpoint is connected
        from the start: there the guest's dial shows as bytes, and a guest that is gone as the end
        of the stream.
        """
        if self._held is None:
            raise UsageError(f"the stream {self.endpoint.address} was accepted or closed already")
        if self._connected:
            taken, self._held = self._held, None
            return taken
        taken = self._await_dial(self._held, time.monotonic() + timeout_s, timeout_s)
        taken.setblocking(True)
        self.close()
        return taken

    def _await_dial(self, held: socket.socket, deadline: float, timeout_s: float) -> socket.socket:
        while True:
            left = deadline - time.monotonic()
            try:
                held.settimeout(max(0.001, min(left, _LOOK_S)))
                taken, _ = held.accept()
            except TimeoutError:
                pass
            except OSError as error:
                raise ComputeServiceError(f"accept on {self.endpoint.address}: {error}") from error
            else:
                return taken
            if self._gone is not None and self._gone():
                raise SystemExitedError(
                    f"the guest ended and never connected to {self.endpoint.address}"
                )
            if time.monotonic() >= deadline:
                raise ComputeTimeoutError(
                    f"no guest connected to {self.endpoint.address} within {timeout_s:g} s"
                )

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
    """Return the address of a vsock port of a virtual machine: `<VM GUID>:<service GUID>`.

    Raises UsageError for a machine that is no GUID, or a port that is none.
    """
    try:
        machine = uuid.UUID(runtime_id)
    except ValueError:
        raise UsageError(f"{runtime_id!r} is not the GUID of a virtual machine") from None
    if not 0 <= port < 1 << 32:
        raise UsageError(f"{port} is no vsock port: those have 32 bits")
    return f"{machine}:{port:08x}{_VSOCK_TEMPLATE}"


def listen_hyperv(runtime_id: str, service_id: str) -> socket.socket:
    """Return a Hyper-V socket that listens for one machine on one service.

    Raises ComputeServiceError where Python has none (Windows and Python 3.12 have), or where the
    machine or the right to listen is missing.
    """
    family = getattr(socket, "AF_HYPERV", None)
    protocol = getattr(socket, "HV_PROTOCOL_RAW", None)
    if family is None or protocol is None:
        raise ComputeServiceError(
            "this Python has no Hyper-V sockets: they need Windows and Python 3.12 or newer"
        )
    opened = socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        opened.bind((runtime_id, service_id))
        opened.listen(1)
    except OSError as error:
        opened.close()
        raise ComputeServiceError(f"listen on hvsock {runtime_id}:{service_id}: {error}") from error
    return opened


def open_listener(
    endpoint: StreamEndpoint,
    *,
    listen: ListenHyperV = listen_hyperv,
    gone: Callable[[], bool] | None = None,
) -> StreamListener:
    """Return the listener of an endpoint: `unix` (a path) or `hvsock` (see `hvsock_address`).

    Raises ComputeServiceError when nothing listens there or this system has no such sockets, and
    UsageError for a transport that does not exist.
    """
    match endpoint.transport:
        case "unix":
            return StreamListener(endpoint, _connect_unix(endpoint.address), connected=True)
        case "hvsock":
            runtime_id, separator, service_id = endpoint.address.partition(":")
            if not separator:
                raise UsageError(
                    f"hvsock address {endpoint.address!r} is not <VM GUID>:<service GUID>"
                )
            return StreamListener(
                endpoint, listen(runtime_id, service_id), connected=False, gone=gone
            )
    raise UsageError(f"stream transport {endpoint.transport!r}: known are unix and hvsock")


@dataclass(frozen=True, slots=True)
class GuestStreams:
    """The streams that one system's guest opens to this host."""

    service: ComputeService
    system_id: str
    listen_hyperv: ListenHyperV = listen_hyperv

    def listen(self, port: int) -> StreamListener:
        """Return the listener of a port. Raises ComputeServiceError; nothing is left then."""
        endpoint = self.service.listen(self.system_id, port)
        try:
            return open_listener(endpoint, listen=self.listen_hyperv, gone=self._gone)
        except BaseException:
            with contextlib.suppress(ComputeServiceError):
                self.service.unlisten(self.system_id, port)
            raise

    def unlisten(self, port: int) -> None:
        """Give up a port that the guest has not connected to; others are fine."""
        self.service.unlisten(self.system_id, port)

    def _gone(self) -> bool:
        try:
            return self.service.properties(self.system_id).state is SystemState.STOPPED
        except ComputeServiceError:
            return True


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

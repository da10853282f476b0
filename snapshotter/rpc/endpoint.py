"""Where a gRPC server's callers come in: a Unix socket, or a named pipe of Windows."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol

from snapshotter.errors import InvalidArgumentError, UnavailableError
from snapshotter.platform.local import local_pipe_calls
from snapshotter.platform.namedpipe import PipeListener, pipe_path
from snapshotter.platform.pipecalls import PipeCalls
from snapshotter.platform.winerror import ACCESS_DENIED, winerror_of
from snapshotter.rpc.address import claimed, private_umask, socket_path
from snapshotter.rpc.innerhop import LOOPBACK, AnnouncedPeers
from snapshotter.rpc.pipebridge import PipeBridge

_NPIPE: Final = "npipe:"
_DRAIN_S: Final = 5.0
"""For clients to take what was sent to them before the end."""


class Endpoint(Protocol):
    """In the order of the calls: `claimed` around all, `bind`, then the server starts, `open`,
    `leave`, then the server stops. Raises UnavailableError.
    """

    @property
    def interceptors(self) -> Sequence[Any]:
        """What the server has to be made with."""
        ...

    def claimed(self) -> AbstractContextManager[None]:
        """Hold the address, and give it up in the end, when every answer is delivered."""
        ...

    def bind(self, server: Any) -> None:  # noqa: ANN401, untyped library
        """Add the port on which the gRPC server is to listen."""
        ...

    def open(self) -> None:
        """Take callers; the server serves."""
        ...

    def leave(self) -> None:
        """Take no new callers."""
        ...


class UnixEndpoint:
    """A Unix socket: gRPC listens on it itself."""

    interceptors: Sequence[Any] = ()

    def __init__(self, path: Path) -> None:
        self._path = path

    def claimed(self) -> AbstractContextManager[None]:
        """Hold the socket's path."""
        return claimed(self._path)

    def bind(self, server: Any) -> None:  # noqa: ANN401, untyped library
        """Make the socket, for this account alone."""
        try:
            with private_umask():
                server.add_insecure_port(f"unix://{os.fspath(self._path)}")
        except RuntimeError as error:
            raise UnavailableError(
                f"cannot listen on {self._path}: check that its directory exists and is writable"
            ) from error

    def open(self) -> None:
        """Nothing: gRPC takes callers as soon as it has started."""

    def leave(self) -> None:
        """Nothing: gRPC closes the socket first of all."""


class PipeEndpoint:
    r"""A named pipe `\\.\pipe\NAME` for SYSTEM and Administrators, bridged to loopback TCP."""

    def __init__(self, path: str, calls: PipeCalls, *, drain_s: float = _DRAIN_S) -> None:
        self._path = path
        self._calls = calls
        self._drain_s = drain_s
        self._peers = AnnouncedPeers()
        self._listener: PipeListener | None = None
        self._bridge: PipeBridge | None = None
        self.port = 0
        """Of loopback, where the gRPC server listens once it is bound."""

    @property
    def interceptors(self) -> Sequence[Any]:
        """What refuses everybody else on the loopback port."""
        return (self._peers,)

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the pipe's name; in the end wait for what is on its way to clients."""
        try:
            self._listener = PipeListener.open(self._calls, self._path)
        except OSError as error:
            hint = ""
            if winerror_of(error) == ACCESS_DENIED:
                hint = (
                    "; another server has this pipe (stop it or use another name),"
                    " or this account is no administrator"
                )
            raise UnavailableError(
                f"cannot listen on {self._path}: {error.strerror}{hint}"
            ) from error
        try:
            yield
        finally:
            if self._bridge is not None:
                self._bridge.close(grace_s=self._drain_s)
            self._listener.close()

    def bind(self, server: Any) -> None:  # noqa: ANN401, untyped library
        """Have gRPC listen on a free loopback port."""
        try:
            self.port = server.add_insecure_port(f"{LOOPBACK}:0")
        except RuntimeError as error:
            raise UnavailableError(f"cannot listen on a port of {LOOPBACK}: {error}") from error

    def open(self) -> None:
        """Take clients, those that have waited first."""
        assert self._listener is not None, "the name is claimed first"
        self._bridge = PipeBridge(self._listener, self.port, self._peers)
        self._bridge.start()

    def leave(self) -> None:
        """Take no new clients."""
        if self._bridge is not None:
            self._bridge.stop_accepting()


def endpoint_at(address: str, *, pipes: Callable[[], PipeCalls] = local_pipe_calls) -> Endpoint:
    """The endpoint of `unix:///path` or `npipe:////./pipe/NAME`. Raises InvalidArgumentError."""
    if not address.startswith(_NPIPE):
        return UnixEndpoint(socket_path(address))
    path = pipe_path(address.removeprefix(_NPIPE).removeprefix("//"))
    if path is None:
        raise InvalidArgumentError(
            f"cannot listen on {address!r}: expected npipe:////./pipe/NAME,"
            " such as npipe:////./pipe/lcow-snapshotter"
        )
    return PipeEndpoint(path, pipes())

"""One gRPC server at one endpoint: a Unix socket, or a named pipe of Windows.

::

    Server.start -> serving --stop--> health says NOT_SERVING, no new calls
                                      --calls done, or the grace over--> stopped

A call that is still at work after the grace is cancelled for its caller, but its thread cannot
be stopped; what it leaves is what a killed process leaves, and the next recovery mends it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Protocol, Self

import grpc

from snapshotter.rpc.calls import Calls
from snapshotter.rpc.endpoint import Endpoint, UnixEndpoint
from snapshotter.rpc.health import HealthService
from snapshotter.rpc.streams import STREAM_WORKERS, Patience, Streams

_log = logging.getLogger(__name__)

DEFAULT_WORKERS: Final = 32
"""Threads, and so the number of calls at work at the same time; others wait. Not counted are those
of the quick calls and of streams."""

_QUICK_WORKERS: Final = 8
"""Threads for the calls that need the store alone. One of them does the work of all that write, and
more of them only take the interpreter from it: sixteen clients are served in half the time."""

_PATIENCE: Final = Patience()

_CUT_S: Final = 5.0

_MAX_MESSAGE: Final = 16 << 20
"""containerd's own bound (defaults.DefaultMaxRecvMsgSize)."""


class Service(Protocol):
    """A service of this package."""

    @property
    def name(self) -> str:
        """Its full name."""
        ...

    def handler(self, calls: Calls) -> Any:  # noqa: ANN401, untyped library
        """What a gRPC server takes."""
        ...


class Server:
    """A server that listens. Start it with `Server.start`."""

    def __init__(
        self,
        server: Any,  # noqa: ANN401, untyped library
        workers: Sequence[ThreadPoolExecutor],
        streams: Streams,
        calls: Calls,
        health: HealthService,
        endpoint: Endpoint,
        claim: contextlib.ExitStack,
    ) -> None:
        self._server = server
        self._workers = workers
        self._streams = streams
        self._calls = calls
        self._health = health
        self._endpoint = endpoint
        self._claim = claim

    @classmethod
    def start(
        cls,
        where: Path | Endpoint,
        services: Sequence[Service],
        *,
        workers: int = DEFAULT_WORKERS,
        stream_workers: int = STREAM_WORKERS,
        patience: Patience = _PATIENCE,
    ) -> Self:
        """Listen at an endpoint, or a Unix socket's path; serve `services`, and health beside them.

        `patience` is for clients that do not read the streams that they asked for.

        Raises UnavailableError: another server has the address, the system refuses.
        """
        endpoint = UnixEndpoint(where) if isinstance(where, Path) else where
        quick = ThreadPoolExecutor(min(workers, _QUICK_WORKERS), thread_name_prefix="quick")
        streams = Streams(workers=stream_workers, patience=patience)
        calls = Calls(quick, streams)
        health = HealthService([service.name for service in services])
        with contextlib.ExitStack() as claim:
            claim.enter_context(endpoint.claimed())
            pool = ThreadPoolExecutor(workers, thread_name_prefix="call")
            server = grpc.server(
                pool,
                interceptors=endpoint.interceptors,
                options=[
                    ("grpc.max_receive_message_length", _MAX_MESSAGE),
                    ("grpc.max_send_message_length", _MAX_MESSAGE),
                    ("grpc.so_reuseport", 0),
                    # A ping with each message to measure a bandwidth that a socket here has not.
                    ("grpc.http2.bdp_probe", 0),
                ],
            )
            server.add_generic_rpc_handlers(
                [service.handler(calls) for service in (*services, health)]
            )
            endpoint.bind(server)
            server.start()
            endpoint.open()
            streams.start()
            return cls(
                server,
                (pool, quick, streams.pool),
                streams,
                calls,
                health,
                endpoint,
                claim.pop_all(),
            )

    def stop(self, *, grace_s: float, cut_s: float = _CUT_S) -> bool:
        """Take no more calls, and whether those under way ended within the grace.

        Those that are not are cancelled then; `cut_s` is for them to notice.
        """
        self._health.stop()
        self._endpoint.leave()
        # gRPC waits for the connection of a client that reads nothing, for as long as there is one.
        ended = self._server.stop(grace_s).wait(grace_s + cut_s)
        idle = ended and self._calls.wait_idle(timeout_s=cut_s)
        self._streams.stop()
        if not idle:
            _log.warning("calls are still at work after %g s; they are abandoned", grace_s)
        for pool in self._workers:
            pool.shutdown(wait=idle, cancel_futures=True)
        self._claim.close()
        return idle

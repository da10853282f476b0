"""What every call has in common: an error becomes a status, and a line goes to the log.

A line has the fields `method`, `key`, `duration_ms`, `code` and, where the call failed, `error`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc

from snapshotter.rpc.descriptors import Message, MessageClass
from snapshotter.rpc.status import INTERNAL, status, status_name
from snapshotter.rpc.streams import Streams

_log = logging.getLogger(__name__)

CALL_FIELDS: Final = "call_fields"
"""The attribute of a log record that holds the fields of a call."""


def call_fields(record: logging.LogRecord) -> Mapping[str, object]:
    """The fields of the call that a log record is about; none for another record."""
    fields: Mapping[str, object] = getattr(record, CALL_FIELDS, {})
    return fields


class Call(Protocol):
    """The caller's side of a call under way (grpc.ServicerContext)."""

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Have `callback` called at the end of the call; False where it is over already."""
        ...

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers of the request."""
        ...

    def cancel(self) -> None:
        """End the call: the client gets CANCELLED, and whoever waits for it goes on."""
        ...

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        """End the call with an error; it raises."""
        ...


@dataclass(frozen=True, slots=True)
class Method:
    """A method of a service: what it takes, and what of it the log names.

    `level` is that of a call that went well; failed ones are logged from INFO on. A `quick` one
    waits for the store alone, never for its client; few of them at a time get done the soonest.
    """

    name: str
    request: MessageClass
    key: Callable[[Message], str] = lambda _: ""
    level: int = logging.INFO
    quick: bool = False


class Calls:
    """The calls of one server; counts those under way.

    `quick` are the threads for the methods that are marked so, `streams` those for streams.
    """

    def __init__(self, quick: ThreadPoolExecutor, streams: Streams) -> None:
        self._quick = quick
        self._streams = streams
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._running = 0

    def unary(self, method: Method, answer: Callable[[Message, Call], bytes]) -> Any:  # noqa: ANN401, untyped library
        """A handler that answers a request with one encoded message."""

        def handle(request: Message, call: Call) -> bytes:
            began = self._begin()
            error: Exception | None = None
            try:
                return answer(request, call)
            except Exception as caught:  # noqa: BLE001, the boundary of a call
                error = caught
            finally:
                self._end(method, request, began, error)
            code, details = status(error)
            call.abort(code, details)
            raise AssertionError("abort raises")

        if method.quick:
            _run_on(self._quick, handle)
        return grpc.unary_unary_rpc_method_handler(handle, method.request.FromString)

    def stream(
        self, method: Method, answer: Callable[[Message, Call], Generator[bytes, None, None]]
    ) -> Any:  # noqa: ANN401, untyped library
        """A handler that answers a request with any number of encoded messages."""
        watch = self._streams.watch

        def handle(request: Message, call: Call) -> Iterator[bytes]:
            began = self._begin()
            error: BaseException | None = None
            try:
                with (
                    contextlib.closing(answer(request, call)) as answers,
                    watch.stream(call, answers) as stream,
                ):
                    for message in answers:
                        with watch.waiting(stream):
                            yield message
                        if stream.given_up:
                            error = GeneratorExit()  # as if the caller had gone
                            return
            except GeneratorExit as caught:
                error = caught  # the caller has gone
                raise
            except Exception as caught:  # noqa: BLE001, the boundary of a call
                error = caught
            finally:
                self._end(method, request, began, error)
            if isinstance(error, Exception):
                code, details = status(error)
                call.abort(code, details)

        _run_on(self._streams.pool, handle)
        return grpc.unary_stream_rpc_method_handler(handle, method.request.FromString)

    def wait_idle(self, *, timeout_s: float) -> bool:
        """Whether no call is under way, waiting so long for it."""
        with self._idle:
            return self._idle.wait_for(lambda: self._running == 0, timeout_s)

    def _begin(self) -> float:
        with self._lock:
            self._running += 1
        return time.perf_counter()

    def _end(
        self, method: Method, request: Message, began: float, error: BaseException | None
    ) -> None:
        duration_s = time.perf_counter() - began
        with self._lock:
            self._running -= 1
            if self._running == 0:
                self._idle.notify_all()
        code = status_name(error)
        bug = code == INTERNAL
        level = logging.ERROR if bug else method.level
        if isinstance(error, Exception):
            level = max(level, logging.INFO)
        if not _log.isEnabledFor(level):
            return
        fields: dict[str, object] = {
            "method": method.name,
            "key": method.key(request),
            "duration_ms": round(duration_s * 1000, 3),
            "code": code,
        }
        if isinstance(error, Exception):
            fields["error"] = str(error)
        # Not by `log`, which looks for the line of code that calls it; it is always this one.
        trace = None if error is None or not bug else (type(error), error, error.__traceback__)
        record = logging.LogRecord(_log.name, level, __file__, 0, "call", (), trace)
        setattr(record, CALL_FIELDS, fields)
        _log.handle(record)


def _run_on(pool: ThreadPoolExecutor, handle: Callable[..., object]) -> None:
    """Have grpcio run `handle` on these threads; a version that cannot takes the server's."""
    handle.experimental_thread_pool = pool  # type: ignore[attr-defined]

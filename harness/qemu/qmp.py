"""QMP, QEMU's control protocol: a parser without I/O and a small synchronous client.

Source: QEMU docs/interop/qmp-spec. Answers are matched by id, so that several threads can have a
command under way each; QEMU executes them in order.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from harness.errors import (
    ComputeServiceError,
    ComputeTimeoutError,
    ProtocolError,
    SystemExitedError,
)
from harness.qemu.loop import READ, IoLoop

_MAX_LINE: Final = 16 * 1024 * 1024
_SEND_TIMEOUT_S: Final = 10.0
_EVENTS_KEPT: Final = 1024


@dataclass(frozen=True, slots=True)
class QmpCommand:
    """A command and its arguments."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def encode(self, request_id: int) -> bytes:
        """Return the line that is sent."""
        message: dict[str, Any] = {"execute": self.name, "id": request_id}
        if self.arguments:
            message["arguments"] = dict(self.arguments)
        return json.dumps(message).encode() + b"\r\n"


@dataclass(frozen=True, slots=True)
class QmpEvent:
    """An asynchronous event; `sequence` counts the events of a client from 1."""

    sequence: int
    name: str
    data: Mapping[str, Any]


class QmpError(ComputeServiceError):
    """QEMU refused `command`; `error_class` is such as DeviceNotFound."""

    def __init__(self, command: str, error_class: str, description: str) -> None:
        super().__init__(f"QEMU refused {command}: {description}")
        self.command = command
        self.error_class = error_class
        self.description = description


class QmpParser:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive(self, data: bytes) -> list[dict[str, Any]]:
        """Return the messages that `data` completes, cut anywhere. Raises ProtocolError."""
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = bytearray(rest)
        if len(rest) > _MAX_LINE:
            raise ProtocolError(f"QMP: a line of more than {_MAX_LINE} bytes")
        return [self._message(line) for line in lines if line.strip()]

    @staticmethod
    def _message(line: bytes | bytearray) -> dict[str, Any]:
        try:
            message = json.loads(line)
        except ValueError as error:
            raise ProtocolError(f"QMP: {line[:80]!r} is not JSON") from error
        if not isinstance(message, dict):
            raise ProtocolError(f"QMP: {line[:80]!r} is not an object")
        return message


@dataclass(slots=True)
class _Pending:
    answer: dict[str, Any] | None = None


class QmpClient:
    """A client on a connected socket, read by an I/O loop. Owns the socket."""

    def __init__(
        self, loop: IoLoop, control: socket.socket, *, on_event: Callable[[QmpEvent], None]
    ) -> None:
        self._loop = loop
        self._socket = control
        self._on_event = on_event
        self._parser = QmpParser()
        self._ids = itertools.count(1)
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        # Guarded by _changed:
        self._pending: dict[int, _Pending] = {}
        self._events: collections.deque[QmpEvent] = collections.deque(maxlen=_EVENTS_KEPT)
        self._event_count = 0
        self._greeting: Mapping[str, Any] | None = None
        self._closed: str | None = None  # why

    def connect(self, deadline: float) -> Mapping[str, Any]:
        """Return QEMU's greeting after agreeing on capabilities; `deadline` is monotonic time.

        Raises SystemExitedError when QEMU closes the socket, ComputeTimeoutError at the deadline.
        """
        self._socket.settimeout(_SEND_TIMEOUT_S)
        self._loop.run(lambda: self._loop.watch(self._socket, READ, self._readable))
        with self._changed:
            while self._greeting is None:
                self._wait(deadline, "no greeting on the QMP socket")
            greeting = self._greeting
        self.execute(QmpCommand("qmp_capabilities"), deadline=deadline)
        return greeting

    def execute(self, command: QmpCommand, *, deadline: float, pass_fds: Sequence[int] = ()) -> Any:  # noqa: ANN401 - JSON
        """Return a command's result. Raises QmpError, SystemExitedError, or ComputeTimeoutError.

        After a ComputeTimeoutError QEMU may still carry the command out. `pass_fds` go with it
        (`getfd` takes one); the caller keeps its own.
        """
        (answer,) = self._exchange([command], deadline, pass_fds)
        if isinstance(answer, QmpError):
            raise answer
        return answer

    def execute_all(self, commands: Sequence[QmpCommand], *, deadline: float) -> list[Any]:
        """Return each command's result or its QmpError, having sent all before waiting for one.

        QEMU carries them out in order, a failed one or not. Raises as `execute` does otherwise.
        """
        return self._exchange(commands, deadline, ()) if commands else []

    def _exchange(
        self, commands: Sequence[QmpCommand], deadline: float, pass_fds: Sequence[int]
    ) -> list[Any]:
        requests = {next(self._ids): command for command in commands}
        waiting = {request_id: _Pending() for request_id in requests}
        lines = b"".join(command.encode(request_id) for request_id, command in requests.items())
        name = commands[0].name
        with self._changed:
            self._check_open()
            self._pending |= waiting
        try:
            with self._sending:
                self._send(lines, pass_fds)
            with self._changed:
                for request_id, pending in waiting.items():
                    name = requests[request_id].name
                    while pending.answer is None:
                        self._wait(deadline, f"no answer to {name}")
        except TimeoutError as error:
            raise ComputeTimeoutError(f"QEMU does not read its QMP socket: {error}") from error
        except OSError as error:
            raise SystemExitedError(f"{name}: QEMU is gone ({error})") from error
        finally:
            with self._changed:
                for request_id in requests:
                    self._pending.pop(request_id, None)
        return [
            _result(requests[request_id], pending.answer or {})
            for request_id, pending in waiting.items()
        ]

    def _send(self, line: bytes, pass_fds: Sequence[int]) -> None:
        if pass_fds and sys.platform != "win32":
            # The descriptors go with the first byte, whatever of the line is taken at once.
            line = line[socket.send_fds(self._socket, [line], list(pass_fds)) :]
        self._socket.sendall(line)

    @property
    def event_cursor(self) -> int:
        """Sequence number of the last event so far, for `wait_event`."""
        with self._changed:
            return self._event_count

    def wait_event(
        self, matches: Callable[[QmpEvent], bool], *, after: int, deadline: float
    ) -> QmpEvent:
        """Return the first matching event with a sequence above `after`, waiting for it.

        Raises SystemExitedError or ComputeTimeoutError.
        """
        with self._changed:
            while True:
                for event in self._events:
                    if event.sequence > after and matches(event):
                        return event
                self._wait(deadline, "the expected event did not come")

    def drain(self) -> None:
        """Read what QEMU left behind when it ended, then close. Loop thread only."""
        with contextlib.suppress(OSError):
            self._socket.setblocking(False)
            while data := self._socket.recv(65536):
                self._take(data)
        self._close("QEMU ended")

    def close(self) -> None:
        """Close the socket; pending commands fail. May be repeated."""
        self._loop.run(lambda: self._close("the QMP client was closed"))

    def _check_open(self) -> None:
        if self._closed is not None:
            raise SystemExitedError(self._closed)

    def _wait(self, deadline: float, what: str) -> None:
        """Wait for a change, with the condition held; the caller looks again at what it wants."""
        self._check_open()
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise ComputeTimeoutError(f"QEMU: {what} within the deadline")
        self._changed.wait(remaining)

    def _readable(self, _events: int) -> None:
        try:
            data = self._socket.recv(65536)
        except OSError:
            data = b""
        if data:
            self._take(data)
        else:
            self._close("QEMU closed its QMP socket")

    def _take(self, data: bytes) -> None:
        try:
            messages = self._parser.receive(data)
        except ProtocolError as error:
            self._close(str(error))
            return
        for message in messages:
            if "event" in message:
                self._take_event(message)
                continue
            with self._changed:
                if "QMP" in message:
                    self._greeting = message["QMP"]
                elif isinstance(message.get("id"), int) and message["id"] in self._pending:
                    self._pending[message["id"]].answer = message
                # Anything else answers a command whose caller gave up.
                self._changed.notify_all()

    def _take_event(self, message: Mapping[str, Any]) -> None:
        with self._changed:
            self._event_count += 1
            event = QmpEvent(self._event_count, message["event"], message.get("data") or {})
            self._events.append(event)
            self._changed.notify_all()
        self._on_event(event)

    def _close(self, reason: str) -> None:
        self._loop.unwatch(self._socket)
        self._socket.close()
        with self._changed:
            if self._closed is None:
                self._closed = reason
            self._changed.notify_all()


def _result(command: QmpCommand, answer: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
    if "error" in answer:
        error = answer["error"]
        return QmpError(command.name, error.get("class", ""), error.get("desc", ""))
    return answer.get("return")

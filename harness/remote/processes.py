"""Processes in WinRS shells: their streams over two connections, one for each direction.

A Receive waits on the host for output while a Send goes its way, and a sealed connection carries
one request at a time. Protocol: [MS-WSMV] 3.1.4.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Final

from pypsrp.shell import CommandState, SignalCode

from harness.errors import (
    ConnectionLostError,
    OutputLostError,
    RemoteError,
    RemoteTimeoutError,
    ShellGoneError,
)
from harness.remote.deadline import Deadline
from harness.remote.links import Link
from harness.remote.transport import CompletedRemote, Output

UNKNOWN_EXIT: Final = 0xFFFFFFFF
"""The exit code of a process whose host did not tell one: not zero, for nobody knows."""

_STREAMS: Final = "stdout stderr"
_INLINE_STDIN: Final = 4096  # an anonymous pipe on Windows holds as much without a reader
_POLL_S: Final = 2.0
_TIDY_S: Final = 10.0
_SETTLE_S: Final = 0.5


class WinRSProcess:
    """A process in a WinRS shell: reading and writing may happen in two threads at once."""

    def __init__(self, host: str, command_id: str, *, receive: Link, send: Link) -> None:
        self.command_id = command_id
        self._host = host
        self._receive = receive
        self._send = send
        self._owns_links = False
        self._early: Output | None = None
        self._exit_code: int | None = None
        self._stdin_closed = False

    def write(self, data: bytes, *, deadline: Deadline) -> None:
        """See `RemoteProcess.write`; many envelopes where the data is long."""
        view = memoryview(data)
        while view:
            # Asked for each time: a wire made anew may have another envelope.
            size = self._send.payload_size
            self._post(bytes(view[:size]), end=None, deadline=deadline)
            view = view[size:]

    def close_stdin(self, *, deadline: Deadline) -> None:
        """See `RemoteProcess.close_stdin`."""
        if not self._stdin_closed:
            self._post(b"", end=True, deadline=deadline)
            self._stdin_closed = True

    def _post(self, data: bytes, *, end: bool | None, deadline: Deadline) -> None:
        self._send.repeat(
            "send input",
            deadline,
            lambda winrs: winrs.send("stdin", data, command_id=self.command_id, end=end),
            idempotent=False,
        )

    def read(self, *, deadline: Deadline) -> Output:
        """See `RemoteProcess.read`."""
        if self._early is not None:
            early, self._early = self._early, None
            return early
        if self._exit_code is not None:
            return Output(exit_code=self._exit_code)
        while True:
            try:
                state, code, streams = self._receive.repeat(
                    "receive output",
                    deadline,
                    lambda winrs: winrs.receive(_STREAMS, self.command_id),
                    idempotent=False,
                )
            except RemoteTimeoutError as error:
                if error.code is None and error.maybe_ran:
                    # The host went silent under a request: its answer may yet be on its way.
                    raise OutputLostError(
                        "it went silent while output was awaited", host=self._host, maybe_ran=True
                    ) from error
                if deadline.passed:
                    raise
                continue
            except ShellGoneError as error:
                error.maybe_ran = True
                raise
            except OutputLostError:
                raise
            except ConnectionLostError as error:
                if not error.maybe_ran:
                    raise
                raise OutputLostError(
                    f"output may be missing: {error}", host=self._host, maybe_ran=True
                ) from error
            if state == CommandState.DONE:
                self._exit_code = UNKNOWN_EXIT if code is None else code & 0xFFFFFFFF
            output = Output(streams["stdout"], streams["stderr"], self._exit_code)
            if output != Output():
                return output

    def probe_started(self, *, deadline: Deadline) -> None:
        """Return if the host knows the command; what it wrote is kept for `read`.

        Raises ShellGoneError if not.
        """
        with contextlib.suppress(RemoteTimeoutError):
            self._early = self.read(deadline=deadline.capped(_SETTLE_S))

    def terminate(self, *, deadline: Deadline) -> None:
        """See `RemoteProcess.terminate`; also what a finished command needs to be forgotten."""
        with contextlib.suppress(ShellGoneError):
            # A Send that blocks on a full pipe, or a long poll, may hold a connection for long.
            link = self._receive if self._send.busy and not self._receive.busy else self._send
            link.repeat(
                "end the command",
                deadline,
                lambda winrs: winrs.signal(SignalCode.TERMINATE, self.command_id),
                idempotent=True,
            )

    def own_links(self) -> None:
        """Have `close` end the connections as well."""
        self._owns_links = True

    def close(self) -> None:
        """See `RemoteProcess.close`."""
        with contextlib.suppress(RemoteError):
            self.terminate(deadline=Deadline.after(_TIDY_S))
        if self._owns_links:
            self._receive.close()
            self._send.close()


class Feeder(threading.Thread):
    """Writes standard input while somebody else reads: a full pipe must not stop both."""

    def __init__(self, process: WinRSProcess, data: bytes, deadline: Deadline) -> None:
        super().__init__(name=f"stdin of {process.command_id}", daemon=True)
        self._process = process
        self._data = data
        self._deadline = deadline
        self.error: RemoteError | None = None

    def run(self) -> None:
        try:
            self._process.write(self._data, deadline=self._deadline)
            self._process.close_stdin(deadline=self._deadline)
        except RemoteError as error:
            self.error = error


def finish(
    process: WinRSProcess, program: str, *, stdin: bytes | None, deadline: Deadline
) -> CompletedRemote:
    """Feed a process, read it to its end, and return what it left; see `Shell.run`."""
    feeder = None
    if stdin is not None:
        feeder = Feeder(process, stdin, deadline)
        if len(stdin) <= _INLINE_STDIN:
            feeder.run()
        else:
            feeder.start()
    stdout: list[bytes] = []
    stderr: list[bytes] = []
    while True:
        if feeder is not None and isinstance(feeder.error, ConnectionLostError):
            raise feeder.error
        try:
            output = process.read(deadline=deadline.capped(_POLL_S) if feeder else deadline)
        except RemoteTimeoutError as error:
            if not deadline.passed:
                continue
            tail = b"".join([*stdout, *stderr])[-400:].decode(errors="replace")
            raise RemoteTimeoutError(
                f"{program} has not ended in time and was ended; its last output: {tail!r}",
                host=error.host,
                maybe_ran=True,
            ) from error
        stdout.append(output.stdout)
        stderr.append(output.stderr)
        if output.exit_code is not None:
            break
    if feeder is not None and feeder.is_alive():
        feeder.join(timeout=_TIDY_S)  # its Send fails once the command is gone
    return CompletedRemote(output.exit_code, b"".join(stdout), b"".join(stderr))

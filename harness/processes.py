"""Processes in the guest, with their standard streams.

The host listens on one port per stream before it asks for the process; the guest dials them. Each
output stream is read by a thread of its own, so that a process that fills one pipe while nobody
reads the other cannot stall.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import BridgeClosedError, ComputeTimeoutError, HarnessError
from harness.gcs.guest import GuestClient
from harness.gcs.prot import StdioPorts
from harness.hcs.service import FIRST_STDIO_PORT
from harness.hcs.streams import GuestStreams, StreamListener

Sink = Callable[[bytes], object]
"""Takes a part of an output stream; an OSError of it closes the stream."""

_CHUNK = 256 * 1024
_DRAIN_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Completed:
    """A finished process; a negative code never occurs: death by signal N is 128+N."""

    exit_code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output, decoded and stripped."""
        return self.stdout.decode(errors="replace").strip()


class _Collector(threading.Thread):
    """Reads one stream to its end, then closes it; a sink takes its bytes as they come."""

    def __init__(self, stream: socket.socket, name: str, sink: Sink | None) -> None:
        super().__init__(name=name, daemon=True)
        self._stream = stream
        self._parts: list[bytes] = []
        self._sink = sink or self._parts.append

    def run(self) -> None:
        with contextlib.suppress(OSError), self._stream:
            while part := self._stream.recv(_CHUNK):
                self._sink(part)

    def collected(self) -> bytes:
        return b"".join(self._parts)


class GuestProcess:
    """A process that was started in the guest; `wait` gives its code and output."""

    def __init__(
        self,
        guest: GuestClient,
        *,
        container_id: str | None,
        process_id: int,
        stdin: socket.socket | None,
        collectors: Mapping[str, _Collector],
    ) -> None:
        self.process_id = process_id
        self._guest = guest
        self._container_id = container_id
        self._stdin = stdin
        self._collectors = dict(collectors)

    def write_stdin(self, data: bytes) -> None:
        """Send bytes to standard input. Raises BridgeClosedError where the guest is gone."""
        if self._stdin is None:
            raise HarnessError("the process was started without standard input")
        try:
            self._stdin.sendall(data)
        except OSError as error:
            raise BridgeClosedError(f"standard input of {self.process_id}: {error}") from error

    def close_stdin(self) -> None:
        """End standard input; the process reads end-of-file. A second call does nothing."""
        if self._stdin is not None:
            with contextlib.suppress(OSError):
                self._stdin.shutdown(socket.SHUT_WR)
            self._stdin.close()
            self._stdin = None

    def signal(self, number: int) -> None:
        """Send a signal."""
        self._guest.signal_process(self._container_id, self.process_id, number)

    def wait(self, *, timeout_s: float | None = 60.0) -> Completed:
        """Return code and output; None waits as long as it takes.

        Raises ComputeTimeoutError, BridgeClosedError, GuestError.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        code = self._guest.wait_process(self._container_id, self.process_id, timeout_s=timeout_s)
        self.close_stdin()
        for collector in self._collectors.values():
            left = None if deadline is None else deadline - time.monotonic()
            collector.join(None if left is None else max(_DRAIN_TIMEOUT_S, left))
            if collector.is_alive():
                raise ComputeTimeoutError(
                    f"process {self.process_id} ended but {collector.name} stays open"
                )
        output = {name: collector.collected() for name, collector in self._collectors.items()}
        return Completed(code, output.get("stdout", b""), output.get("stderr", b""))


class ProcessStarter:
    """Starts processes in one guest; allocates stream ports, which are never used twice."""

    def __init__(self, streams: GuestStreams, guest: GuestClient) -> None:
        self._streams = streams
        self._guest = guest
        self._ports = itertools.count(FIRST_STDIO_PORT)

    def start(
        self,
        args: Sequence[str] = (),
        *,
        container_id: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        oci_process: Mapping[str, Any] | None = None,
        with_stdin: bool = False,
        sinks: Mapping[str, Sink] | None = None,
        timeout_s: float = 60.0,
    ) -> GuestProcess:
        """Start `args` in the utility VM, or in a container its init or (`oci_process`) one more.

        `sinks` ("stdout", "stderr") take output as it comes, in a thread each; what has no sink is
        collected for `wait`.

        Raises GuestError where the guest cannot start it; no stream is left open then.
        """
        names = ["stdin"] if with_stdin else []
        names += ["stdout", "stderr"]
        with contextlib.ExitStack() as listening, contextlib.ExitStack() as undo:
            listeners: dict[str, StreamListener] = {}
            ports: dict[str, int] = {}
            for name in names:
                ports[name] = next(self._ports)
                listening.callback(self._streams.unlisten, ports[name])
                listeners[name] = listening.enter_context(self._streams.listen(ports[name]))
            process_id = self._guest.execute_process(
                container_id,
                args=args,
                env=env or {},
                cwd=cwd,
                oci_process=oci_process,
                stdio=StdioPorts(
                    stdin=ports.get("stdin", 0), stdout=ports["stdout"], stderr=ports["stderr"]
                ),
                timeout_s=timeout_s,
            )
            streams = {
                name: undo.enter_context(listener.accept(timeout_s))
                for name, listener in listeners.items()
            }
            undo.pop_all()
        stdin = streams.pop("stdin", None)
        collectors = {
            name: _Collector(stream, f"{name} of process {process_id}", (sinks or {}).get(name))
            for name, stream in streams.items()
        }
        for collector in collectors.values():
            collector.start()
        return GuestProcess(
            self._guest,
            container_id=container_id,
            process_id=process_id,
            stdin=stdin,
            collectors=collectors,
        )

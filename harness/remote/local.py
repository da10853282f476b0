"""The machine we run on, as a host: the same calls without a network."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Final, Self

from harness.errors import ConnectionLostError, RemoteCommandError, RemoteTimeoutError
from harness.remote.deadline import Deadline
from harness.remote.transport import CompletedRemote, Output

_CHUNK: Final = 64 * 1024
_TIDY_S: Final = 5.0


class LocalProcess:
    """A process of this machine in a group of its own. Implements `RemoteProcess`."""

    def __init__(self, popen: subprocess.Popen[bytes], *, host: str) -> None:
        self._popen = popen
        self._host = host
        self._parts: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._open = 2
        self._readers = [
            threading.Thread(target=self._pump, args=(name, stream), daemon=True)
            for name, stream in (("stdout", popen.stdout), ("stderr", popen.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def _pump(self, name: str, stream: IO[bytes] | None) -> None:
        assert stream is not None
        with contextlib.suppress(OSError, ValueError):
            while part := os.read(stream.fileno(), _CHUNK):
                self._parts.put((name, part))
        self._parts.put((name, b""))

    def write(self, data: bytes, *, deadline: Deadline) -> None:
        """See `RemoteProcess.write`. Raises ConnectionLostError when the process reads no more."""
        assert self._popen.stdin is not None
        if deadline.passed:
            raise RemoteTimeoutError("send input: no time left", host=self._host)
        try:
            self._popen.stdin.write(data)
            self._popen.stdin.flush()
        except (OSError, ValueError) as error:
            raise ConnectionLostError(
                f"the process reads no more: {error}", host=self._host, maybe_ran=True
            ) from error

    def close_stdin(self, *, deadline: Deadline) -> None:
        """See `RemoteProcess.close_stdin`."""
        del deadline  # closing a pipe takes no time
        assert self._popen.stdin is not None
        with contextlib.suppress(OSError):
            self._popen.stdin.close()

    def read(self, *, deadline: Deadline) -> Output:
        """See `RemoteProcess.read`."""
        while self._open:
            try:
                name, part = self._parts.get(timeout=deadline.remaining_s)
            except queue.Empty:
                raise RemoteTimeoutError("nothing yet", host=self._host, maybe_ran=True) from None
            if part:
                return Output(part, b"") if name == "stdout" else Output(b"", part)
            self._open -= 1
        try:
            code = self._popen.wait(timeout=deadline.remaining_s)
        except subprocess.TimeoutExpired:
            raise RemoteTimeoutError("it runs", host=self._host, maybe_ran=True) from None
        # As a POSIX shell tells it: death by signal N is 128 + N.
        return Output(exit_code=code & 0xFFFFFFFF if code >= 0 else 128 - code)

    def terminate(self, *, deadline: Deadline) -> None:
        """See `RemoteProcess.terminate`."""
        if sys.platform == "win32":
            self._popen.kill()
        else:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout=deadline.remaining_s)

    def close(self) -> None:
        """See `RemoteProcess.close`."""
        self.terminate(deadline=Deadline.after(_TIDY_S))
        self.close_stdin(deadline=Deadline.after(_TIDY_S))
        for reader in self._readers:
            reader.join(timeout=_TIDY_S)
        for stream in (self._popen.stdout, self._popen.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


class LocalShell:
    """An environment and a folder on this machine. Implements `Shell`."""

    def __init__(
        self,
        host: str,
        *,
        environment: Mapping[str, str] | None = None,
        working_directory: str | None = None,
    ) -> None:
        self._host = host
        self._environment = {**os.environ, **(environment or {})}
        self._directory = working_directory
        self._started: list[LocalProcess] = []

    def start(self, argv: Sequence[str], *, deadline: Deadline) -> LocalProcess:
        """See `Shell.start`. Raises RemoteCommandError for a program that cannot be started."""
        if deadline.passed:
            raise RemoteTimeoutError(f"start {argv[0]}: no time left", host=self._host)
        try:
            popen = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment,
                cwd=self._directory,
                start_new_session=True,
            )
        except OSError as error:
            raise RemoteCommandError(
                str(error), host=self._host, code=error.errno, command=argv[0]
            ) from error
        process = LocalProcess(popen, host=self._host)
        self._started.append(process)
        return process

    def start_alone(self, argv: Sequence[str], *, deadline: Deadline) -> LocalProcess:
        """See `Shell.start_alone`: here, every process has its own pipes."""
        return self.start(argv, deadline=deadline)

    def run(
        self, argv: Sequence[str], *, deadline: Deadline, stdin: bytes | None = None
    ) -> CompletedRemote:
        """See `Shell.run`."""
        process = self.start(argv, deadline=deadline)
        self._started.remove(process)
        feeder = threading.Thread(target=_feed, args=(process, stdin or b"", deadline), daemon=True)
        feeder.start()
        stdout: list[bytes] = []
        stderr: list[bytes] = []
        try:
            while True:
                output = process.read(deadline=deadline)
                stdout.append(output.stdout)
                stderr.append(output.stderr)
                if output.exit_code is not None:
                    break
        finally:
            process.close()
        feeder.join(timeout=_TIDY_S)
        return CompletedRemote(output.exit_code, b"".join(stdout), b"".join(stderr))

    def close(self) -> None:
        """See `Shell.close`."""
        while self._started:
            self._started.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _feed(process: LocalProcess, data: bytes, deadline: Deadline) -> None:
    # A process that ends before it has read everything is no error.
    with contextlib.suppress(ConnectionLostError, RemoteTimeoutError):
        process.write(data, deadline=deadline)
    process.close_stdin(deadline=deadline)


class LocalTransport:
    """The way to this machine. Implements `Transport`."""

    def __init__(self, host: str = "local") -> None:
        self._host = host

    @property
    def host(self) -> str:
        """The name that it was given."""
        return self._host

    def run(
        self,
        argv: Sequence[str],
        *,
        deadline: Deadline,
        stdin: bytes | None = None,
        idempotent: bool = False,
    ) -> CompletedRemote:
        """See `Transport.run`; there is no connection to lose."""
        del idempotent
        with self.open_shell(deadline=deadline) as shell:
            return shell.run(argv, deadline=deadline, stdin=stdin)

    def open_shell(
        self,
        *,
        deadline: Deadline,
        environment: Mapping[str, str] | None = None,
        working_directory: str | None = None,
    ) -> LocalShell:
        """See `Transport.open_shell`."""
        del deadline
        return LocalShell(self._host, environment=environment, working_directory=working_directory)

    def close(self) -> None:
        """See `Transport.close`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

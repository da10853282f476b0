"""What every way to a host offers: run a command, keep a shell, stream a process.

`WinRM` (a Windows host) and `LocalTransport` (this machine) implement it; values are plain, so that
a call can be written down and played back. Errors are `RemoteError`s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from harness.remote.deadline import Deadline


@dataclass(frozen=True, slots=True)
class CompletedRemote:
    """A finished command; `exit_code` is unsigned, 32 bits wide on Windows."""

    exit_code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output, decoded and stripped."""
        return self.stdout.decode(errors="replace").strip()


@dataclass(frozen=True, slots=True)
class Output:
    """What a process wrote since the last read; `exit_code` is None while it runs."""

    stdout: bytes = b""
    stderr: bytes = b""
    exit_code: int | None = None


class RemoteProcess(Protocol):
    """A running process with its streams; one thread may write while another reads."""

    def write(self, data: bytes, *, deadline: Deadline) -> None:
        """Hand `data` to its standard input."""
        ...

    def close_stdin(self, *, deadline: Deadline) -> None:
        """End its standard input; may be repeated."""
        ...

    def read(self, *, deadline: Deadline) -> Output:
        """Return what it wrote, once there is something or it has ended.

        Raises RemoteTimeoutError when the deadline passes first: nothing is lost, read again.
        Raises OutputLostError when a part of the output may be missing; reading may go on.
        """
        ...

    def terminate(self, *, deadline: Deadline) -> None:
        """End the process and its children; may be repeated."""
        ...

    def close(self) -> None:
        """Terminate it if it runs, and let go of its connections; never raises."""
        ...


class Shell(Protocol):
    """A place where processes start, with its environment and folder."""

    def start(self, argv: Sequence[str], *, deadline: Deadline) -> RemoteProcess:
        """Start a process."""
        ...

    def start_alone(self, argv: Sequence[str], *, deadline: Deadline) -> RemoteProcess:
        """Start a process that has the shell, and its one connection, for itself.

        One thread at a time may use it, and nothing else runs in the shell until it was closed.
        """
        ...

    def run(
        self, argv: Sequence[str], *, deadline: Deadline, stdin: bytes | None = None
    ) -> CompletedRemote:
        """Run a command to its end; `stdin` is all its standard input, None leaves it alone.

        Raises RemoteTimeoutError when it has not ended by the deadline; it is ended then.
        """
        ...

    def close(self) -> None:
        """End the shell and what runs in it; never raises."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class Transport(Protocol):
    """The way to one host."""

    @property
    def host(self) -> str:
        """The host's name, for errors and reports."""
        ...

    def run(
        self,
        argv: Sequence[str],
        *,
        deadline: Deadline,
        stdin: bytes | None = None,
        idempotent: bool = False,
    ) -> CompletedRemote:
        """Run a command to its end and return its exit code and output; see `Shell.run`.

        It is repeated after a lost connection only where it cannot have run, or is `idempotent`.
        """
        ...

    def open_shell(
        self,
        *,
        deadline: Deadline,
        environment: Mapping[str, str] | None = None,
        working_directory: str | None = None,
    ) -> Shell:
        """Return a new shell; leave it with `close` or as a context manager."""
        ...

    def close(self) -> None:
        """Let go of everything; never raises."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

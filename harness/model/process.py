"""Processes of the model: a thread each, with signals, standard streams and children."""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import contextlib
import errno
import itertools
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from harness.model.namespace import Namespace

_IGNORED: Final = frozenset({signal.SIGCHLD, signal.SIGCONT, signal.SIGWINCH, signal.SIGURG})


class Ended(BaseException):
    """The process ends with this code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Sink(Protocol):
    """Where output goes."""

    def write(self, data: bytes) -> None:
        """Write all of it. Raises OSError."""
        ...


class Source(Protocol):
    """Where input comes from."""

    def read(self) -> bytes:
        """Return what is there, b"" at the end."""
        ...


@dataclass
class Buffer:
    """Bytes in memory, as both."""

    data: bytes = b""

    def write(self, data: bytes) -> None:
        """Keep more bytes."""
        self.data += data

    def read(self) -> bytes:
        """Return everything once."""
        taken, self.data = self.data, b""
        return taken


@dataclass
class Descriptor:
    """A file descriptor of this program: a pipe to the agent's relay."""

    number: int

    def write(self, data: bytes) -> None:
        """Write all of it."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.number, view) :]

    def read(self) -> bytes:
        """Return what is there."""
        return os.read(self.number, 64 * 1024)


@dataclass
class Streams:
    """Standard streams by number."""

    stdin: Source
    stdout: Sink
    stderr: Sink


@dataclass(eq=False)
class Process:
    """One process, or the shell that runs in it; `run` is its program."""

    pid: int
    namespace: Namespace
    streams: Streams
    env: dict[str, str]
    cwd: str
    argv: tuple[str, ...]
    lock: threading.RLock
    """Held around everything that touches files: the kernel's big lock."""
    pids: itertools.count[int]
    rootfs: str = "/"
    """Where its root is in the utility VM's own namespace."""
    shown_pid: int = 0
    """What the container's own process table calls it."""
    traps: dict[int, Callable[[], None]] = field(default_factory=dict)
    children: list[Process] = field(default_factory=list)
    exit_code: int | None = None
    _signals: list[int] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _descriptors: tuple[int, ...] = ()

    def start(self, program: Callable[[Process], int], *, descriptors: Sequence[int] = ()) -> None:
        """Run it in a thread; `descriptors` are closed at its end."""
        self._descriptors = tuple(descriptors)
        threading.Thread(
            target=self._run, args=(program,), name=f"model process {self.pid}", daemon=True
        ).start()

    def _run(self, program: Callable[[Process], int]) -> None:
        try:
            code = program(self)
        except Ended as ended:
            code = ended.code
        except BrokenPipeError:
            code = 128 + signal.SIGPIPE
        except OSError as error:
            with contextlib.suppress(OSError):
                self.streams.stderr.write(f"{self.argv[0]}: {error.strerror}\n".encode())
            code = 126 if error.errno == errno.EACCES else 1
        for number in self._descriptors:
            with contextlib.suppress(OSError):
                os.close(number)
        with self._changed:
            self.exit_code = code
            self._changed.notify_all()

    def fork(self, *, streams: Streams | None = None) -> Process:
        """Return a child that is not started yet."""
        child = Process(
            pid=next(self.pids),
            namespace=self.namespace,
            streams=streams or self.streams,
            env=dict(self.env),
            cwd=self.cwd,
            argv=self.argv,
            lock=self.lock,
            pids=self.pids,
            rootfs=self.rootfs,
        )
        child.shown_pid = child.pid
        self.children.append(child)
        return child

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Return the exit code, or None after the timeout."""
        with self._changed:
            self._changed.wait_for(lambda: self.exit_code is not None, timeout_s)
            return self.exit_code

    def signal(self, number: int) -> bool:
        """Send a signal; False if it has ended."""
        with self._changed:
            if self.exit_code is not None:
                return False
            if number not in _IGNORED and number:
                self._signals.append(number)
                self._changed.notify_all()
            return True

    def kill_all(self) -> None:
        """Kill it and all its descendants."""
        for child in self.children:
            child.kill_all()
        self.signal(signal.SIGKILL)

    def poll(self) -> None:
        """Take the signals that have come: run a trap, or end. Called between commands."""
        while True:
            with self._changed:
                if not self._signals:
                    return
                number = self._signals.pop(0)
            trap = self.traps.get(number) if number != signal.SIGKILL else None
            # PID 1 of a container gets no signal that it does not handle, but SIGKILL.
            if trap is not None:
                trap()
            elif self.shown_pid != 1 or number == signal.SIGKILL:
                raise Ended(128 + number)

    def pause(self, timeout_s: float | None, *, until: Process | None = None) -> bool:
        """Sleep until the time is over, the other process ended, or a signal came (then False)."""
        if until is not None:
            threading.Thread(target=self._wake_after, args=(until,), daemon=True).start()
        with self._changed:
            self._changed.wait_for(
                lambda: bool(self._signals) or (until is not None and until.exit_code is not None),
                timeout_s,
            )
            interrupted = bool(self._signals)
        self.poll()
        return not interrupted

    def _wake_after(self, other: Process) -> None:
        other.wait()
        with self._changed:
            self._changed.notify_all()


def environment(settings: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Return an environment of KEY=VALUE strings."""
    if isinstance(settings, Mapping):
        return dict(settings)
    return dict(setting.split("=", 1) for setting in settings if "=" in setting)

"""Real local processes behind a remote command: pipes with back-pressure, a job, exit codes.

::

    Send ──> stdin pipe ──> process ──> stdout, stderr pipes ──> pumps ──> buffers ──> Receive

A pump stops reading when its buffer is full, so that a client that does not fetch blocks the
process, as a pipe does. A command is `running` until its body has returned, then `ended` once both
pipes are drained, then `done` once the client has been told.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from harness.errors import HarnessError
from harness.winrmd import faults

log = logging.getLogger(__name__)

_BUFFER_LIMIT: Final = 1 << 20
_READ_SIZE: Final = 1 << 16
# A child left in the background may hold the pipes open for ever: Done does not wait for it longer.
_DRAIN_S: Final = 0.5

CONTROL_C_EXIT: Final = 0xC000013A  # STATUS_CONTROL_C_EXIT
TERMINATED: Final = 1  # TerminateProcess(process, 1), what taskkill gives
_STATUS_BY_SIGNAL: Final[Mapping[str, int]] = {
    "SIGINT": CONTROL_C_EXIT,
    "SIGTERM": CONTROL_C_EXIT,
    "SIGSEGV": 0xC0000005,  # STATUS_ACCESS_VIOLATION
    "SIGBUS": 0xC0000006,  # STATUS_IN_PAGE_ERROR
    "SIGILL": 0xC000001D,  # STATUS_ILLEGAL_INSTRUCTION
    "SIGFPE": 0xC0000094,  # STATUS_INTEGER_DIVIDE_BY_ZERO
    "SIGABRT": 3,  # what abort() of the C runtime exits with
}


if sys.platform != "win32":
    _KILL: Final = signal.SIGKILL
else:
    _KILL: Final = signal.SIGTERM


class JobEndedError(HarnessError):
    """The job was ended: nothing more starts in it."""


@dataclass(frozen=True, slots=True)
class Descriptors:
    """The three standard descriptors that a command reads from and writes to."""

    stdin: int
    stdout: int
    stderr: int


def windows_exit_code(returncode: int) -> int:
    """Return the exit code as Windows shows it: unsigned, NTSTATUS for what a signal ended."""
    if returncode >= 0:
        return returncode
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        return TERMINATED
    return _STATUS_BY_SIGNAL.get(name, TERMINATED)


class Job:
    """The processes of one command, each a session and process group of its own.

    A process is waited for without reaping it, so that its group id stays taken until `end`:
    killing the group can never meet a stranger who got the number afterwards.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[bytes]] = []
        self.ending = threading.Event()

    def start(
        self,
        argv: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        descriptors: Descriptors,
    ) -> subprocess.Popen[bytes]:
        """Start a process. Raises OSError, or JobEndedError once the job was ended."""
        with self._lock:
            if self.ending.is_set():
                raise JobEndedError("the job was ended")
            process = subprocess.Popen(
                list(argv),
                stdin=descriptors.stdin,
                stdout=descriptors.stdout,
                stderr=descriptors.stderr,
                cwd=directory,
                env=dict(environment),
                start_new_session=True,
            )
            self._processes.append(process)
            return process

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        """Return the exit code of a process of this job, as Windows shows it."""
        if sys.platform != "win32":
            try:
                found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            except ChildProcessError:
                # `end` came first and has reaped it, or does so now; or a stranger did.
                with self._lock:
                    return windows_exit_code(_reap(process))
            assert found is not None
            code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        else:
            code = process.wait()
        return windows_exit_code(code)

    def interrupt(self) -> None:
        """Send Ctrl-C to everything that runs, and let nothing more start."""
        self.ending.set()
        self._signal(signal.SIGINT)

    def end(self) -> None:
        """Kill everything that runs and reap it; may be called again."""
        self.ending.set()
        self._signal(_KILL)
        with self._lock:
            for process in self._processes:
                _reap(process)
            self._processes.clear()

    def _signal(self, number: int) -> None:
        with self._lock:
            for process in self._processes:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    if sys.platform != "win32":
                        os.killpg(process.pid, number)
                    else:
                        process.terminate()


def _reap(process: subprocess.Popen[bytes]) -> int:
    """Return the status of a process that has ended or was killed; it is no zombie afterwards.

    `Popen.wait` says 0 of a process that somebody else reaped: a success that nobody saw. Here it
    counts as killed.
    """
    if sys.platform != "win32" and process.returncode is None:
        try:
            _, status = os.waitpid(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            process.returncode = -_KILL
    return process.wait()


@dataclass(slots=True)
class _Output:
    data: bytearray = field(default_factory=bytearray)
    ended: bool = False
    end_told: bool = False


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a stream, or its end."""

    stream: str
    data: bytes
    end: bool = False


@dataclass(frozen=True, slots=True)
class Received:
    """What `receive` found; `exit_code` is None while the command goes on."""

    chunks: tuple[Chunk, ...]
    exit_code: int | None


class RunningCommand:
    """One remote command: `body` runs in a thread, with pipes that this object owns.

    `body` gets the descriptors and the job, and returns the exit code (unsigned 32 bits).
    """

    def __init__(self, command_id: str, body: Callable[[Descriptors, Job], int]) -> None:
        self.command_id = command_id
        self.job = Job()
        self._body = body
        self._changed = threading.Condition()
        self._streams = {"stdout": _Output(), "stderr": _Output()}
        self._exit_code: int | None = None
        self._last_byte = 0.0
        self._closed = False
        self._stdin: int | None = None
        self._stdin_lock = threading.Lock()

    @property
    def running(self) -> bool:
        """Whether the command has not ended."""
        return self._exit_code is None

    def start(self) -> None:
        """Make the pipes and begin."""
        stdin_read, self._stdin = os.pipe()
        stdout_read, stdout_write = os.pipe()
        stderr_read, stderr_write = os.pipe()
        if sys.platform != "win32":
            os.set_blocking(self._stdin, False)
        mine = Descriptors(stdin_read, stdout_write, stderr_write)
        for name, descriptor in (("stdout", stdout_read), ("stderr", stderr_read)):
            self._thread(self._pump, name, descriptor)
        self._thread(self._run, mine)

    def _thread(self, target: Callable[..., None], *arguments: object) -> None:
        name = f"winrm command {self.command_id}"
        threading.Thread(target=target, args=arguments, name=name, daemon=True).start()

    def _run(self, mine: Descriptors) -> None:
        try:
            code = self._body(mine, self.job) & 0xFFFFFFFF
        except JobEndedError:
            code = CONTROL_C_EXIT
        except Exception:
            log.exception("a command of the WinRM endpoint failed in the endpoint itself")
            code = TERMINATED
        finally:
            for descriptor in (mine.stdin, mine.stdout, mine.stderr):
                os.close(descriptor)
        with self._changed:
            self._exit_code = code
            self._last_byte = time.monotonic()
            self._changed.notify_all()

    def _pump(self, name: str, descriptor: int) -> None:
        output = self._streams[name]
        try:
            while True:
                data = os.read(descriptor, _READ_SIZE)
                with self._changed:
                    self._last_byte = time.monotonic()
                    if data and not output.ended:
                        output.data += data
                    else:
                        output.ended = True
                    self._changed.notify_all()
                    while len(output.data) > _BUFFER_LIMIT and not self._closed:
                        self._changed.wait()
                    if output.ended or self._closed:
                        return
        finally:
            os.close(descriptor)
            with self._changed:
                output.ended = True
                self._changed.notify_all()

    def receive(
        self, streams: Sequence[str], *, limit: int, deadline: float, hold_s: float = 0.0
    ) -> Received:
        """Wait for output or the end, and return at most `limit` bytes of it.

        With `hold_s`, output is gathered for that long first. Raises the time-out fault at
        `deadline`, and the aborted fault if the command is closed meanwhile.
        """
        with self._changed:
            if hold_s:
                self._gather(limit, deadline, hold_s)
            while True:
                if self._closed:
                    raise faults.operation_aborted()
                self._give_up_on_background()
                chunks = self._take(streams, limit)
                wanted = [self._streams[name] for name in streams if name in self._streams]
                drained = all(not output.data and output.ended for output in wanted)
                if self._exit_code is not None and drained:
                    for name, output in self._streams.items():
                        if name in streams and not output.end_told:
                            output.end_told = True
                            chunks.append(Chunk(name, b"", end=True))
                    return Received(tuple(chunks), self._exit_code)
                if chunks:
                    return Received(tuple(chunks), None)
                left = deadline - time.monotonic()
                if left <= 0:
                    raise faults.timed_out()
                ended = self._exit_code is not None
                self._changed.wait(min(left, _DRAIN_S / 4) if ended else left)

    def _gather(self, limit: int, deadline: float, hold_s: float) -> None:
        until: float | None = None
        while not self._closed:
            ready = sum(len(output.data) for output in self._streams.values())
            drained = all(output.ended for output in self._streams.values())
            if ready >= limit or (self._exit_code is not None and drained):
                return
            now = time.monotonic()
            if until is None and ready:
                until = min(now + hold_s, deadline)
            left = (deadline if until is None else until) - now
            if left <= 0:
                return
            self._changed.wait(left)

    def _give_up_on_background(self) -> None:
        if self._exit_code is None or time.monotonic() - self._last_byte < _DRAIN_S:
            return
        for output in self._streams.values():
            output.ended = True

    def _take(self, streams: Sequence[str], limit: int) -> list[Chunk]:
        chunks: list[Chunk] = []
        for name in streams:
            output = self._streams.get(name)
            if output is not None and output.data and limit > 0:
                data = bytes(output.data[:limit])
                del output.data[:limit]
                limit -= len(data)
                chunks.append(Chunk(name, data))
        if chunks:
            self._changed.notify_all()
        return chunks

    def send(self, data: bytes, *, end: bool, deadline: float) -> None:
        """Write to the standard input, and close it with `end`.

        Raises the time-out fault (with part of the data written, as on Windows) when the
        process does not read, and the pipe fault when it cannot any more.
        """
        with self._stdin_lock:
            if self._stdin is None:
                if data:
                    raise faults.pipe_closing()
                return
            view = memoryview(data)
            while view:
                left = deadline - time.monotonic()
                _, writable, _ = select.select([], [self._stdin], [], max(0.0, min(left, 0.1)))
                if self._closed:
                    raise faults.operation_aborted()
                try:
                    if writable:
                        view = view[os.write(self._stdin, view[:_READ_SIZE]) :]
                except BlockingIOError:
                    continue
                except OSError:
                    raise faults.pipe_closing() from None
                if view and left <= 0:
                    raise faults.timed_out()
            if end:
                self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin is not None:
            os.close(self._stdin)
            self._stdin = None

    def close(self) -> None:
        """Kill what runs and wake who waits; may be called again."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.job.end()
        with self._stdin_lock:
            self._close_stdin()

"""Owns every QEMU child: spawns, reaps, and sees to it that none outlives this process.

A child gets PR_SET_PDEATHSIG, so that the kernel kills it when its parent dies, even by SIGKILL.
That signal really fires when the *thread* that spawned the child ends, which is why the I/O thread
of the service spawns all of them and ends only after the last was reaped.

The signal is set by setpriv(1), not by `preexec_fn`: running Python between fork and exec can
deadlock in a process that has threads. A parent that dies before setpriv runs is caught by the
shell behind it, which compares its parent's id before it becomes QEMU.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Final

from harness.errors import ComputeServiceError, MissingProgramError
from harness.hcs.consoletail import Tail
from harness.qemu.loop import READ, IoLoop

_REAP_S: Final = 5.0
_GUARD: Final = '[ "$PPID" = "$0" ] && exec "$@"'


class Child:
    """A child process; its combined stdout and stderr are kept (the last 64 KiB)."""

    def __init__(self, command: Sequence[str], process: subprocess.Popen[bytes]) -> None:
        self.command = tuple(command)
        self.pid = process.pid
        self.output = Tail()
        self._process = process
        self._exited = threading.Event()

    @property
    def exit_code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._process.returncode if self._exited.is_set() else None

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended and was reaped, waiting up to `timeout_s` for that."""
        return self._exited.wait(timeout_s)

    def kill(self) -> None:
        """Send SIGKILL; a child that has ended is fine."""
        self._process.kill()

    def reap(self) -> None:
        """Collect the exit code of an ended child. Loop thread only."""
        self._process.wait()
        self._exited.set()


class Supervisor:
    """Spawns and reaps children in one I/O thread."""

    def __init__(self, loop: IoLoop) -> None:
        self._loop = loop
        self._children: set[Child] = set()  # loop thread only

    def kill_all(self) -> None:
        """Kill and reap what still runs: children of a launch that was interrupted."""
        for child in self._loop.run(lambda: list(self._children)):
            child.kill()
            child.wait(_REAP_S)

    def spawn(
        self, command: Sequence[str], *, pass_fds: Sequence[int], on_exit: Callable[[Child], None]
    ) -> Child:
        """Return a started child that dies with this process.

        `on_exit` runs in the I/O thread after the child was reaped and its output was read. Raises
        MissingProgramError for setpriv, OSError when the system cannot start it.
        """
        if sys.platform != "win32":
            setpriv = shutil.which("setpriv")
            if setpriv is None:
                raise MissingProgramError("setpriv", install="apt install util-linux")
            guarded = [setpriv, "--pdeathsig", "KILL", "--", "/bin/sh", "-c", _GUARD]
            return self._loop.run(
                lambda: self._spawn([*guarded, str(os.getpid())], command, pass_fds, on_exit)
            )
        else:  # noqa: RET505 - mypy understands platforms in this form only
            raise MissingProgramError("QEMU's supervisor", install="it needs Linux")

    def _spawn(
        self,
        guard: Sequence[str],
        command: Sequence[str],
        pass_fds: Sequence[int],
        on_exit: Callable[[Child], None],
    ) -> Child:
        if sys.platform != "win32":
            reader, writer = os.pipe()
            try:
                process = subprocess.Popen(
                    [*guard, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=writer,
                    stderr=subprocess.STDOUT,
                    pass_fds=pass_fds,
                    start_new_session=True,  # Ctrl-C at the terminal is for the harness to handle
                )
            except BaseException:
                os.close(reader)
                raise
            finally:
                os.close(writer)
            child = Child(command, process)
            self._children.add(child)
            os.set_blocking(reader, False)
            ended = os.pidfd_open(process.pid)

            def read_output(_events: int) -> None:
                if _read_available(reader, child.output):
                    self._loop.unwatch(reader)

            def finish(_events: int) -> None:
                self._loop.unwatch(ended)
                os.close(ended)
                _read_available(reader, child.output)
                self._loop.unwatch(reader)
                os.close(reader)
                child.reap()
                self._children.discard(child)
                on_exit(child)

            self._loop.watch(reader, READ, read_output)
            self._loop.watch(ended, READ, finish)
            return child
        else:  # noqa: RET505 - mypy understands platforms in this form only
            raise ComputeServiceError("QEMU is run on Linux only; on Windows use Hyper-V")


def describe_exit(code: int) -> str:
    """Return an exit code in words: `exit code 1` or `signal SIGKILL`."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"


def _read_available(fd: int, tail: Tail) -> bool:
    """Read what is there; whether that was the end."""
    with contextlib.suppress(BlockingIOError):
        while data := os.read(fd, 65536):
            tail.add(data)
        return True
    return False

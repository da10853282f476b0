"""Processes that the host asked for: started with their streams, waited for, signalled.

A process counts as exited once it has ended *and* its output is delivered, so whoever waits for
the exit code has all the output.
"""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import os
import threading
from collections import OrderedDict
from collections.abc import Callable

from harness.gcs.prot import INFINITE, HResult, ProcessParameters, StdioPorts
from harness.guest.errors import GuestFailure
from harness.guest.relay import StdioRelay
from harness.guest.system import DEFAULT_PATH, Child, ChildStdio, GuestSystem

_KEPT = 256  # processes of the UVM that have exited and may still be asked for


class GuestProcess:
    """One running process, and its exit code once that is known."""

    def __init__(self, child: Child, relay: StdioRelay) -> None:
        self.child = child
        self._relay = relay
        self._done = threading.Event()
        self._exit_code = -1
        self._on_exit: list[Callable[[int], None]] = []

    @property
    def pid(self) -> int:
        """Its process id in the UVM."""
        return self.child.pid

    @property
    def exited(self) -> bool:
        """Whether it has ended and its output is delivered."""
        return self._done.is_set()

    def watch(self, on_exit: Callable[[int], None] | None = None) -> None:
        """Start its relays and the thread that waits for it; `on_exit` gets the exit code."""
        self._relay.start()
        if on_exit is not None:
            self._on_exit.append(on_exit)
        threading.Thread(target=self._watch, name=f"wait-{self.pid}", daemon=True).start()

    def _watch(self) -> None:
        code = self.child.wait()
        assert code is not None, "waited without a timeout"
        self._relay.finish()
        self._exit_code = code
        self._done.set()
        for callback in self._on_exit:
            callback(code)

    def wait(self, timeout_s: float | None) -> int | None:
        """Return the exit code, or None after the timeout."""
        return self._exit_code if self._done.wait(timeout_s) else None

    def resize(self, *, height: int, width: int) -> None:
        """Set its terminal's size. Raises GuestFailure without one."""
        if not self._relay.resize(height=height, width=width):
            raise GuestFailure(HResult.INVALID_STATE, f"process {self.pid} has no terminal")


class ProcessTable:
    """The processes of one container, or of the UVM itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: OrderedDict[int, GuestProcess] = OrderedDict()

    def add(self, process: GuestProcess) -> None:
        """Note a process; one of the same id that has exited makes room."""
        with self._lock:
            self._processes.pop(process.pid, None)
            self._processes[process.pid] = process
            exited = [pid for pid, known in self._processes.items() if known.exited]
            for pid in exited[: max(0, len(exited) - _KEPT)]:
                del self._processes[pid]

    def get(self, pid: int) -> GuestProcess:
        """Return a process, running or exited. Raises GuestFailure."""
        with self._lock:
            process = self._processes.get(pid)
        if process is None:
            raise GuestFailure(HResult.NOT_FOUND, f"no process {pid}")
        return process

    def signal(self, pid: int, number: int) -> None:
        """Send a signal, 0 meaning SIGKILL. Raises GuestFailure if it has exited."""
        if not self.get(pid).child.signal(number or 9):
            raise GuestFailure(HResult.NOT_FOUND, f"process {pid} has exited")

    def wait(self, pid: int, timeout_ms: int) -> int:
        """Return the exit code. Raises GuestFailure after the timeout."""
        timeout_s = None if timeout_ms == INFINITE else timeout_ms / 1000
        code = self.get(pid).wait(timeout_s)
        if code is None:
            raise GuestFailure(HResult.TIMEOUT, f"process {pid} runs after {timeout_ms} ms")
        return code


def requested_ports(parameters: ProcessParameters, ports: StdioPorts) -> StdioPorts:
    """Return the ports of the streams that the process is to have."""
    return StdioPorts(
        stdin=ports.stdin if parameters.create_stdin else 0,
        stdout=ports.stdout if parameters.create_stdout else 0,
        stderr=ports.stderr if parameters.create_stderr else 0,
    )


def start_in_uvm(
    system: GuestSystem, parameters: ProcessParameters, ports: StdioPorts
) -> GuestProcess:
    """Start a process outside any container. On failure nothing is left. Raises GuestFailure."""
    argv = list(parameters.command_args) or parameters.command_line.split()
    if not argv:
        raise GuestFailure(HResult.INVALID_ARGUMENT, "no command")
    env = {"PATH": DEFAULT_PATH, "HOME": "/root", **parameters.environment}
    if parameters.emulate_console:
        env.setdefault("TERM", "xterm")
    program = system.find_program(argv[0], path=env["PATH"])
    if program is None:
        raise GuestFailure(HResult.NOT_FOUND, f"{argv[0]}: no such program in the utility VM")
    relay = StdioRelay.open(
        system.dial, requested_ports(parameters, ports), terminal=parameters.emulate_console
    )
    try:
        child = system.spawn(
            [program, *argv[1:]] if parameters.emulate_console else argv,
            cwd=parameters.working_directory or "/",
            env=env,
            stdio=_terminal(relay) if parameters.emulate_console else relay.pipes(),
            terminal=parameters.emulate_console,
        )
    except OSError as error:
        relay.abandon()
        raise GuestFailure(HResult.FAIL, f"{argv[0]}: {error.strerror}") from error
    except BaseException:
        relay.abandon()
        raise
    return GuestProcess(child, relay)


def _terminal(relay: StdioRelay) -> ChildStdio:
    master, slave = os.openpty()
    relay.attach_terminal(master)
    relay.own_for_child(slave)
    return ChildStdio(slave, slave, slave)

"""crun, the container runtime: its commands as this agent uses them.

Containers are started detached: crun leaves the process behind as the agent's own child, so exit
codes and signals are exact and no crun process stays. crun's own errors go to a log file: its
stderr is the container's.
"""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from harness.gcs.codec import dumps
from harness.gcs.prot import HResult
from harness.guest.errors import GuestFailure
from harness.guest.relay import StdioRelay
from harness.guest.system import Child, ChildStdio, GuestSystem

_ROOT = "/run/crun"
_RUN = "/run/lcowlab"
_DELETE_S = 30.0
_CONSOLE_S = 10.0
_LOG_MAX = 8192


class Crun:
    """Starts and removes containers and starts processes in them."""

    def __init__(self, system: GuestSystem, program: str) -> None:
        self._system = system
        self._program = program
        self._serial = itertools.count(1)

    def run(self, container_id: str, bundle: str, relay: StdioRelay, *, terminal: bool) -> Child:
        """Return the init of a container that runs now. Raises GuestFailure with crun's words."""
        command = ["run", "--detach", "--bundle", bundle]
        return self._detached(command, [container_id], relay, terminal=terminal)

    def exec(self, container_id: str, process: Mapping[str, Any], relay: StdioRelay) -> Child:
        """Return one more process of a running container. Raises GuestFailure."""
        path = f"{_RUN}/process-{next(self._serial)}.json"
        self._system.make_dirs(_RUN, 0o700)
        self._system.write_file(path, dumps(process).encode())
        try:
            command = ["exec", "--detach", "--process", path]
            terminal = bool(process.get("terminal"))
            return self._detached(command, [container_id], relay, terminal=terminal)
        finally:
            self._system.remove_file(path)

    def delete(self, container_id: str) -> None:
        """Kill what runs in a container and forget it; unknown is fine. Raises GuestFailure."""
        command = [*self._command(), "delete", "--force", container_id]
        result = self._system.run(command, timeout_s=_DELETE_S)
        if result.exit_code and "does not exist" not in result.output:
            raise GuestFailure(HResult.FAIL, f"crun delete {container_id}: {result.output.strip()}")

    def _command(self) -> list[str]:
        return [self._program, "--root", _ROOT, "--cgroup-manager", "cgroupfs"]

    def _detached(
        self, command: list[str], arguments: list[str], relay: StdioRelay, *, terminal: bool
    ) -> Child:
        self._system.make_dirs(_RUN, 0o700)
        base = f"{_RUN}/{command[0]}-{next(self._serial)}"
        log, pid_file = f"{base}.log", f"{base}.pid"
        argv = [*self._command(), "--log", log, *command, "--pid-file", pid_file]
        try:
            with contextlib.ExitStack() as stack:
                if terminal:
                    receive = stack.enter_context(_console(f"{base}.sock"))
                    argv += ["--console-socket", f"{base}.sock"]
                    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                    stack.callback(os.close, null)
                    stdio = ChildStdio(null, null, null)
                else:
                    stdio = relay.pipes()
                child = self._system.adopt(argv + arguments, pid_file=pid_file, stdio=stdio)
                if isinstance(child, int):
                    raise GuestFailure(
                        HResult.FAIL, f"crun {command[0]}: {self._errors(log, child)}"
                    )
                if terminal:
                    relay.attach_terminal(receive())
                return child
        finally:
            self._system.remove_file(log)
            self._system.remove_file(pid_file)

    def _errors(self, log: str, exit_code: int) -> str:
        try:
            text = self._system.read_at(log, 0, _LOG_MAX).decode(errors="replace").strip()
        except OSError:
            text = ""
        return text or f"exit code {exit_code}"


@contextlib.contextmanager
def _console(path: str) -> Iterator[Callable[[], int]]:
    """Yield a function that returns the terminal's master side, which crun sends to `path`."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(1)
        listener.settimeout(_CONSOLE_S)

        def receive() -> int:
            peer, _ = listener.accept()
            with peer:
                _, descriptors, _, _ = socket.recv_fds(peer, 4096, 1)
            return descriptors[0]

        try:
            yield receive
        finally:
            os.unlink(path)  # noqa: PTH108 - pathlib is slow to import

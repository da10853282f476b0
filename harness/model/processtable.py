"""The processes of one model's guest: started as threads, found while they live."""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import itertools
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Final

from harness.guest.system import ChildStdio
from harness.model.namespace import Namespace
from harness.model.process import Descriptor, Process, Streams
from harness.model.shell import find_program, run_command

_FIRST_PID: Final = 100


class ProcessTable:
    """Starts processes and knows those that run; `lock` is the guest's one lock."""

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._pids = itertools.count(_FIRST_PID)
        self._processes: list[Process] = []

    def start(
        self,
        argv: Sequence[str],
        namespace: Namespace,
        *,
        env: Mapping[str, str],
        cwd: str,
        stdio: ChildStdio,
        container: str = "",
        init: bool = False,
    ) -> Process:
        """Start a program; the caller closes its own descriptors, the process has copies."""
        own = tuple(os.dup(fd) for fd in (stdio.stdin, stdio.stdout, stdio.stderr))
        streams = Streams(*(Descriptor(fd) for fd in own))
        pid = next(self._pids)
        process = Process(
            pid, namespace, streams, dict(env), cwd, tuple(argv), self._lock, self._pids,
            rootfs=container or "/", shown_pid=1 if init else pid,
        )  # fmt: skip
        with self._lock:
            self.alive().append(process)
        process.start(run_command, descriptors=own)
        return process

    def alive(self) -> list[Process]:
        """Return those that run. Called with the lock held."""
        self._processes = [each for each in self._processes if each.exit_code is None]
        return self._processes

    def has_program(
        self, name: str, namespace: Namespace, *, env: Mapping[str, str], cwd: str
    ) -> bool:
        """Whether a process with that root, environment and directory would find a program."""
        streams = Streams(_NOTHING, _NOTHING, _NOTHING)
        probe = Process(0, namespace, streams, dict(env), cwd, (), self._lock, self._pids)
        return find_program(probe, name) is not None

    def crash(self) -> None:
        """Stop all at once."""
        with self._lock:
            for process in self._processes:
                process.kill_all()


class _Nothing:
    """A stream of a process that never runs."""

    def write(self, data: bytes) -> None:
        """Take it."""

    def read(self) -> bytes:
        """Return the end."""
        return b""


_NOTHING: Final = _Nothing()

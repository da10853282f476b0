"""Which process is meant, also after its number was given to another one.

A process is its number, the moment it started (in ticks since boot) and the boot: numbers come
back, that pair does not. Linux alone shows it in /proc.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from harness.errors import UsageError

_PROC: Final = Path("/proc")
_POLL_S: Final = 0.02
# Fields 3, 7 and 22 of /proc/PID/stat, counted behind the name.
_STATE, _TERMINAL, _START = 0, 4, 19


def require_proc() -> None:
    """Raise UsageError where processes cannot be told apart."""
    if not (_PROC / "self" / "stat").exists():
        raise UsageError(f"pretend hosts need Linux (WSL on Windows), not {sys.platform}")


def boot_id() -> str:
    """Return the identity of the running boot."""
    return (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()


def _stat(pid: int) -> list[str] | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process of one boot."""

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the identity of a running process, None where there is none (a zombie is none)."""
        fields = _stat(pid)
        if fields is None or fields[_STATE] in ("Z", "X"):
            return None
        return cls(pid, int(fields[_START]), boot_id())

    @property
    def running(self) -> bool:
        """Whether this very process runs."""
        return type(self).of(self.pid) == self

    def end(self, *, patience_s: float) -> None:
        """Terminate it, and kill it where it stays; nothing happens to another of its number."""
        if sys.platform != "win32":
            for number in (signal.SIGTERM, signal.SIGKILL):
                if not self._send(number):
                    break
                deadline = time.monotonic() + patience_s
                while self.running and time.monotonic() < deadline:
                    time.sleep(_POLL_S)
            # It is our child only where the same process that started it ends it.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, os.WNOHANG)

    def _send(self, number: signal.Signals) -> bool:
        if sys.platform == "linux":
            try:
                # The descriptor holds on to the process: what is checked is what gets the signal.
                descriptor = os.pidfd_open(self.pid)
            except ProcessLookupError:
                return False
            try:
                if self.running:
                    signal.pidfd_send_signal(descriptor, number)
                    return True
            except ProcessLookupError:
                pass  # it ended in between
            finally:
                os.close(descriptor)
        return False


def spawn_detached(argv: Sequence[str], *, environment: Mapping[str, str], log: Path) -> int:
    """Start a program that outlives this one, in a session of its own, and return its number.

    It reads nothing and writes into `log`. Raises OSError, UsageError on Windows.
    """
    if sys.platform != "win32":
        writing = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), writing, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        return os.posix_spawn(argv[0], list(argv), environment, file_actions=actions, setsid=True)
    raise UsageError("processes that outlive their starter are for Linux: use WSL on Windows")


def processes_of(folder: Path) -> list[ProcessIdentity]:
    """Return this user's processes that were started with exactly `folder` as an argument, or
    work in or below it and have no terminal: whoever looks around there is nobody's process.
    """
    found: list[ProcessIdentity] = []
    if sys.platform != "win32":
        wanted = os.fsencode(str(folder))
        for entry in _PROC.iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                if entry.stat().st_uid != os.geteuid():
                    continue
                named = wanted in (entry / "cmdline").read_bytes().split(b"\0")
                inside = (entry / "cwd").readlink().is_relative_to(folder)
            except OSError:
                continue  # it ended meanwhile
            fields = _stat(int(entry.name))
            identity = ProcessIdentity.of(int(entry.name))
            if identity and fields and (named or (inside and fields[_TERMINAL] == "0")):
                found.append(identity)
    return found

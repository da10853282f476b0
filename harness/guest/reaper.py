"""Children of the agent, collected by one thread; orphans of their descendants included.

The agent is a child subreaper: what `crun --detach` leaves behind becomes its child, so its exit
status is had like any other's. One thread looks for dead children without reaping them, then
reaps under the lock that `signal` holds, too: a signal never reaches a process id that was given
to somebody else meanwhile.
"""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_ADOPTION_S = 10.0
_POLL_S = 0.001


class ReapedChild:
    """A process whose exit the reaper reports; made by `Reaper`."""

    def __init__(self, pid: int, lock: threading.Lock) -> None:
        self.pid = pid
        self._lock = lock
        self._exited = threading.Condition(lock)
        self._exit_code: int | None = None

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Return the exit code, 128 + signal for one that was killed; None after the timeout."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._lock:
            while self._exit_code is None:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._exited.wait(left)
            return self._exit_code

    def signal(self, number: int) -> bool:
        """Send a signal; False if the process has ended already."""
        with self._lock:
            if self._exit_code is not None:
                return False
            os.kill(self.pid, number)
            return True

    def exited(self, code: int) -> None:
        """Note the exit code; the lock is held."""
        self._exit_code = code
        self._exited.notify_all()


class Reaper:
    """Collects every child of this process; there is one in a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._born = threading.Condition(self._lock)
        self._births = 0
        self._children: dict[int, ReapedChild] = {}
        self._adoptions = 0
        self._orphans: dict[int, int] = {}  # exit codes of unknown children during an adoption

    def start(self) -> None:
        """Start the thread; it never ends."""
        threading.Thread(target=self._reap, name="reaper", daemon=True).start()

    def spawn(self, start: Callable[[], int]) -> ReapedChild:
        """Return the child that `start` makes; its exit cannot be missed."""
        with self._lock:
            child = ReapedChild(start(), self._lock)
            self._children[child.pid] = child
            self._births += 1
            self._born.notify_all()
        return child

    @contextmanager
    def adopting(self) -> Iterator[Callable[[int], ReapedChild]]:
        """Yield a function that takes a process id which a command left behind, dead or alive.

        The function raises ChildProcessError for a process that is not a child of this one.
        """
        with self._lock:
            self._adoptions += 1
        try:
            yield self._adopt
        finally:
            with self._lock:
                self._adoptions -= 1
                if not self._adoptions:
                    self._orphans.clear()

    def _adopt(self, pid: int) -> ReapedChild:
        child = ReapedChild(pid, self._lock)
        deadline = time.monotonic() + _ADOPTION_S
        while True:
            there = os.path.exists(f"/proc/{pid}")
            with self._lock:
                code = self._orphans.pop(pid, None)
                if code is not None:
                    child.exited(code)
                    return child
                if _is_our_child(pid):
                    self._children[pid] = child
                    return child
            # A helper of the command may be its parent for a moment longer (crun has one). If it
            # is gone, though, somebody else has reaped it, and its code will never come.
            if not there or time.monotonic() >= deadline:
                raise ChildProcessError(errno.ECHILD, f"process {pid} is not ours")
            time.sleep(_POLL_S)

    def _reap(self) -> None:
        while True:
            with self._lock:
                births = self._births
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            except ChildProcessError:
                # Orphans come from descendants only, so the next child is one that is spawned.
                with self._lock:
                    while self._births == births:
                        self._born.wait()
                continue
            assert found is not None, "waits without WNOHANG"
            with self._lock:
                self._collect(found.si_pid)

    def _collect(self, pid: int) -> None:
        try:
            _, status = os.waitpid(pid, 0)
        except ChildProcessError:
            return  # a program that could not be executed: whoever forked it has reaped it
        code = os.waitstatus_to_exitcode(status)
        code = 128 - code if code < 0 else code
        child = self._children.pop(pid, None)
        if child is not None:
            child.exited(code)
        elif self._adoptions:
            self._orphans[pid] = code


def _is_our_child(pid: int) -> bool:
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True

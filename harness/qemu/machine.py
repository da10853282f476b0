"""One QEMU process, from launch to reaping.

Everything between the harness and QEMU goes over inherited socket pairs: no path in the file system
that could collide or be opened by someone else, and QEMU's death is an end of file at once.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from harness.errors import (
    ComputeServiceError,
    ComputeTimeoutError,
    LaunchError,
    SystemExitedError,
)
from harness.hcs.consoletail import Tail
from harness.hcs.panic import PanicScanner
from harness.qemu.loop import READ, IoLoop
from harness.qemu.qmp import QmpClient, QmpCommand, QmpEvent
from harness.qemu.supervisor import Child, Supervisor, describe_exit
from harness.qemu.translate import Descriptors, LaunchPlan

_QUIT_S: Final = 5.0  # for flushing and closing its disks
_REAP_S: Final = 5.0
_ENDING_S: Final = 2.0  # between the end of its sockets and of the process


class Machine:
    """A QEMU process that was started paused (`-S`), with its control socket and console.

    A context manager: on leaving, the process was killed and reaped. `gcs` and `stdio` are the host
    ends of the guest's two ports; they belong to whoever pumps them.
    """

    def __init__(self, loop: IoLoop) -> None:
        self._loop = loop
        # Loop thread only; `adopt` sets them.
        self._on_event: Callable[[QmpEvent], None] | None = None
        self._on_exit: Callable[[Machine], None] | None = None
        self._on_panic: Callable[[str], None] | None = None
        self._panics = PanicScanner()
        control, self._qemu_control = socket.socketpair()
        self._console, self._qemu_console = socket.socketpair()
        self.gcs, self._qemu_gcs = socket.socketpair()
        self.stdio, self._qemu_stdio = socket.socketpair()
        self._console.setblocking(False)
        self.console = Tail()
        self.qmp = QmpClient(loop, control, on_event=self._event)
        self.greeting: Mapping[str, Any] = {}
        self._plan: LaunchPlan | None = None
        self._child: Child | None = None
        self._ended = threading.Event()

    def launch(
        self,
        supervisor: Supervisor,
        plan: Callable[[Descriptors], LaunchPlan],
        *,
        deadline: float,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Start QEMU and agree on QMP; it inherits `pass_fds`, which stay the caller's, too.

        Raises LaunchError with the command, the exit code and the output, and whatever `plan`
        raises; nothing is left then.
        """
        ends = (self._qemu_control, self._qemu_gcs, self._qemu_stdio, self._qemu_console)
        try:
            descriptors = Descriptors(*(end.fileno() for end in ends))
            self._plan = plan(descriptors)
            used = ends if self._plan.has_console else ends[:-1]

            def ended(_child: Child) -> None:
                self.qmp.drain()
                self._read_console(0)
                if self._on_exit is not None:
                    self._on_exit(self)
                self._ended.set()

            if self._plan.has_console:
                self._loop.run(lambda: self._loop.watch(self._console, READ, self._read_console))
            self._child = supervisor.spawn(
                self._plan.argv,
                pass_fds=[*(end.fileno() for end in used), *pass_fds],
                on_exit=ended,
            )
        except OSError as error:
            self.close()
            argv = self._plan.argv if self._plan else ()
            raise LaunchError(
                f"QEMU cannot be started: {error}", command=argv, exit_code=None, output=""
            ) from error
        except BaseException:
            self.close()
            raise
        finally:
            for end in ends:
                end.close()
        self._connect(deadline)

    def adopt(
        self,
        *,
        on_event: Callable[[QmpEvent], None],
        on_panic: Callable[[str], None],
        on_exit: Callable[[Machine], None],
    ) -> None:
        """Report from now on, in the I/O thread: QEMU's events, the kernel's end, and QEMU's own.

        `on_panic` gets what the console said, `on_exit` comes once QEMU was reaped. A machine that
        has ended already reports that before this returns.
        """

        def take() -> None:
            self._on_event, self._on_panic, self._on_exit = on_event, on_panic, on_exit
            if self._ended.is_set():
                on_exit(self)

        self._loop.run(take)

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        assert self._child is not None, "the machine was not launched"
        return self._child.pid

    @property
    def plan(self) -> LaunchPlan:
        """What it was launched from."""
        assert self._plan is not None, "the machine was not launched"
        return self._plan

    @property
    def exit_code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._child.exit_code if self._child else None

    @property
    def output(self) -> str:
        """The last 64 KiB QEMU itself printed."""
        return self._child.output.text() if self._child else ""

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended, waiting up to `timeout_s`."""
        return self._ended.wait(timeout_s)

    def launch_error(self, message: str) -> LaunchError:
        """Return the error for a machine that did not come up."""
        code = self.exit_code
        if code is not None:
            message = f"{message}: it ended with {describe_exit(code)}"
        return LaunchError(message, command=self.plan.argv, exit_code=code, output=self.output)

    def kill(self) -> None:
        """Send QEMU SIGKILL; the end is reported as any other."""
        if self._child is not None:
            self._child.kill()

    def stop(self, *, timeout_s: float) -> None:
        """End QEMU and reap it: it closes its disks cleanly if it still answers, else it is killed.

        Raises ComputeTimeoutError for a process that even SIGKILL does not end.
        """
        if self._child is None:
            return
        deadline = time.monotonic() + timeout_s
        quit_by = time.monotonic() + min(_QUIT_S, timeout_s)
        with contextlib.suppress(ComputeServiceError):
            self.qmp.execute(QmpCommand("quit"), deadline=quit_by)
            self.wait(quit_by - time.monotonic())
        if not self._ended.is_set():
            self._child.kill()
            if not self.wait(max(_REAP_S, deadline - time.monotonic())):
                raise ComputeTimeoutError(f"QEMU (process {self.pid}) does not end after SIGKILL")

    def close(self) -> None:
        """Kill and reap the process if it still runs, and close what this object owns.

        May be repeated. Raises ComputeTimeoutError for a process that even SIGKILL does not end.
        """
        if self._child is not None and not self._ended.is_set():
            self._child.kill()
            if not self.wait(_REAP_S):
                raise ComputeTimeoutError(f"QEMU (process {self.pid}) does not end after SIGKILL")
        self.qmp.close()
        self._loop.run(self._close_console)

    def discard(self) -> None:
        """Kill and close it with its ports, which nobody has taken."""
        try:
            self.close()
        finally:
            self.gcs.close()
            self.stdio.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _connect(self, deadline: float) -> None:
        try:
            self.greeting = self.qmp.connect(deadline)
        except SystemExitedError as error:
            self.wait(_ENDING_S)
            failure = self.launch_error("QEMU did not start")
            self.close()
            raise failure from error
        except ComputeServiceError as error:
            failure = self.launch_error(f"QEMU did not answer in time ({error})")
            self.close()
            raise failure from error
        except BaseException:
            self.close()
            raise

    def _event(self, event: QmpEvent) -> None:
        if self._on_event is not None:
            self._on_event(event)

    def _read_console(self, _events: int) -> None:
        with contextlib.suppress(OSError):
            while data := self._console.recv(65536):
                self.console.add(data)
                self._report_panic(self._panics.feed(data))
            self._report_panic(self._panics.finish())
            self._close_console()

    def _report_panic(self, message: str | None) -> None:
        if message is not None and self._on_panic is not None:
            self._on_panic(message)

    def _close_console(self) -> None:
        self._loop.unwatch(self._console)
        self._console.close()

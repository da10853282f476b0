"""A process's standard streams: pipes or a terminal on its side, the host's connections on ours.

The guest dials the ports before the process starts, so a host that does not listen fails the
request and not the process. Output is pushed until the pipe ends, then half-closed; a full
connection holds the process back. `finish` returns once all output is sent, which is when a
process counts as exited. A pipe that outlives its process (a daemon holds it) is given up after
it was silent for a second. A connection stays until the host closes its half, too: hvsock may
drop what the host has not read of a connection that is closed at once.
"""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import contextlib
import errno
import fcntl
import os
import select
import struct
import threading
import time
from collections.abc import Callable
from functools import partial

from harness.gcs.mux import MAX_DATA
from harness.gcs.prot import HResult, StdioPorts
from harness.guest.errors import GuestFailure
from harness.guest.system import ChildStdio, Connection

_CHUNK = 8 * MAX_DATA  # whole frames, and many: a round of the loop costs more than the bytes
_PIPE_SIZE = 1024 * 1024  # a writer that is not held up, and few rounds of the loop here
_MOVE_FROM = 16 * 1024  # bytes; for less, a copy is cheaper than a move
_SILENT_MS = 1000
_LINGER_S = 60.0  # how long the host may take to close its half after ours


class StdioRelay:
    """The streams of one process that is about to start, or runs."""

    def __init__(self) -> None:
        self._child_fds: list[int] = []  # the process's ends
        self._own_fds: list[int] = []  # ours, each closed by whoever moves its bytes
        self._connections: list[Connection] = []
        self._outputs: list[tuple[int, Connection]] = []
        self._input: tuple[int, Connection] | None = None
        self._sent: list[threading.Event] = []  # one an output, set when all of it is sent
        self._exited, self._exit_signal = os.pipe()
        self._master: int | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, dial: Callable[[int], Connection], ports: StdioPorts, *, terminal: bool
    ) -> StdioRelay:
        """Return a relay with every port dialed. Raises GuestFailure and leaves nothing open.

        `terminal`: stdin and stdout are one terminal, which `attach_terminal` brings, and there
        is no stderr.
        """
        relay = cls()
        try:
            for name, port in (("stdin", ports.stdin), ("stdout", ports.stdout)):
                relay._dial(dial, name, port)
            if not terminal:
                relay._dial(dial, "stderr", ports.stderr)
        except BaseException:
            relay.abandon()
            raise
        return relay

    def _dial(self, dial: Callable[[int], Connection], name: str, port: int) -> None:
        if not port:
            return
        try:
            connection = dial(port)
        except OSError as error:
            raise GuestFailure(
                HResult.FAIL, f"{name} cannot be connected: {error.strerror or error}"
            ) from error
        self._connections.append(connection)
        if name == "stdin":
            self._input = (-1, connection)
        else:
            self._outputs.append((1 if name == "stdout" else 2, connection))

    def pipes(self) -> ChildStdio:
        """Return the process's ends: a pipe for each connected stream, else /dev/null."""
        ends = dict.fromkeys((0, 1, 2), -1)
        if self._input is not None:
            read, write = self._pipe()
            ends[0] = read
            self._input = (write, self._input[1])
        pumps: list[tuple[int, Connection]] = []
        for number, connection in self._outputs:
            read, write = self._pipe()
            with contextlib.suppress(OSError):  # a limit of this kernel
                fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
            ends[number] = write
            pumps.append((read, connection))
        self._outputs = pumps
        for number, end in ends.items():
            if end < 0:
                ends[number] = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
            self._child_fds.append(ends[number])
            if ends[number] in self._own_fds:
                self._own_fds.remove(ends[number])
        return ChildStdio(ends[0], ends[1], ends[2])

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        self._own_fds += ends
        return ends

    def attach_terminal(self, master: int) -> None:
        """Use a terminal's master side for input and output; the relay owns and closes it."""
        self._master = master
        self._own_fds.append(master)
        if self._input is not None:
            self._input = (os.dup(master), self._input[1])
            self._own_fds.append(self._input[0])
        self._outputs = [(os.dup(master), connection) for _, connection in self._outputs]
        self._own_fds += [fd for fd, _ in self._outputs]

    def own_for_child(self, fd: int) -> None:
        """Close `fd`, too, once the process has its copies."""
        self._child_fds.append(fd)

    def start(self) -> None:
        """Move bytes from now on; the process has its descriptors."""
        self._close_child_ends()
        if self._input is not None:
            # Nobody waits for the input's thread: it ends with the connection or the process.
            _start_thread("stdin", partial(self._push_input, *self._input))
        pull = partial(self._pull_output, is_pipe=self._master is None)
        for fd, connection in self._outputs:
            sent = threading.Event()
            self._sent.append(sent)
            _start_thread("output", partial(pull, fd, connection, sent))

    def resize(self, *, height: int, width: int) -> bool:
        """Set the terminal's size in characters; False if there is none (any more)."""
        with self._lock:
            if self._master is None:
                return False
            import termios

            size = struct.pack("<HHHH", height & 0xFFFF, width & 0xFFFF, 0, 0)
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)
            return True

    def abandon(self) -> None:
        """Close everything: the process did not start."""
        self._close_child_ends()
        for connection in self._connections:
            connection.close()
        for fd in (*self._own_fds, self._exited, self._exit_signal):
            os.close(fd)
        self._own_fds.clear()
        self._master = None

    def finish(self) -> None:
        """Wait until all output of a process that has ended is sent; connections linger."""
        os.close(self._exit_signal)  # readable from now on: pipes that stay silent are given up
        for sent in self._sent:
            sent.wait()
        if self._input is not None:
            self._input[1].close()
        with self._lock:
            if self._master is not None:
                self._own_fds.remove(self._master)
                os.close(self._master)
                self._master = None
        os.close(self._exited)

    def _close_child_ends(self) -> None:
        for fd in self._child_fds:
            os.close(fd)
        self._child_fds.clear()

    def _push_input(self, fd: int, connection: Connection) -> None:
        try:
            while data := connection.receive():
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
        except OSError:
            pass  # the process closed its stdin or ended, or the host dropped the stream
        finally:
            self._close_own(fd)
            connection.finish()

    def _pull_output(
        self, fd: int, connection: Connection, sent: threading.Event, *, is_pipe: bool
    ) -> None:
        try:
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            poller.register(self._exited, select.POLLIN)
            while self._await_output(fd, poller):
                if is_pipe and (waiting := _waiting_in(fd)) >= _MOVE_FROM:
                    connection.send_pipe(fd, waiting)
                elif data := _read(fd):
                    connection.send(data)
                else:
                    break
            connection.finish()
            self._close_own(fd)
            sent.set()
            _await_close(connection)
        except OSError:
            pass  # the host dropped the stream: the process gets SIGPIPE, as with any closed pipe
        finally:
            self._close_own(fd)
            sent.set()
            connection.close()

    def _await_output(self, fd: int, poller: select.poll) -> bool:
        """Wait for output, or the end of it; False for a pipe that outlived its process."""
        if fd in [ready_fd for ready_fd, _ in poller.poll()]:
            return True
        silent = select.poll()
        silent.register(fd, select.POLLIN)
        return bool(silent.poll(_SILENT_MS))

    def _close_own(self, fd: int) -> None:
        with self._lock:
            if fd in self._own_fds:
                self._own_fds.remove(fd)
                os.close(fd)


def _waiting_in(fd: int) -> int:
    """Return how many bytes can be read at once."""
    import termios

    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def _read(fd: int) -> bytes:
    """Return what a pipe or a terminal has; b"" at its end."""
    try:
        return os.read(fd, _CHUNK)
    except OSError as error:
        if error.errno == errno.EIO:  # a terminal whose last user is gone
            return b""
        raise


def _await_close(connection: Connection) -> None:
    """Wait for the host's half to close; not for ever."""
    deadline = time.monotonic() + _LINGER_S
    while connection.receive(timeout_s=max(0.0, deadline - time.monotonic())):
        pass


def _start_thread(name: str, target: Callable[[], None]) -> None:
    threading.Thread(target=target, name=name, daemon=True).start()

"""How this guest reaches its host: two virtio-serial ports on QEMU, vsock on Hyper-V.

On QEMU the port `gcs` is the bridge and `stdio` carries the dialed streams; both exist from the
start and end with the host. On Hyper-V everything is a vsock connection to the host, and the
bridge is dialed again whenever it ends, for two minutes or, where the guest is to stay, for ever.
"""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from harness.gcs.prot import BRIDGE_PORT
from harness.guest.muxlink import MuxLink
from harness.guest.system import ByteStream, Connection

if TYPE_CHECKING:
    import socket  # slow to import, and QEMU's guest has none

_PORTS = "/sys/class/virtio-ports"
_PORT_S = 30.0
_POLL_S = 0.001
_REDIAL_S = 0.1
_PATIENCE_S = 120.0  # as long as hcsshim's host waits for its guest: HCSSHIM_TIMEOUT_GCSCONNECTION
_DIAL_ATTEMPTS = 10  # hcsshim's guest tries as often, on ETIMEDOUT alone
_CHUNK = 32 * 1024  # virtio_console splits there
_READ_SIZE = 64 * 1024
_MOVED = 2 * 1024 * 1024  # twice what a process's pipe holds
_PAGE = 4096


class Transport(Protocol):
    """What the agent needs of either."""

    def bridges(self) -> Iterator[ByteStream]:
        """Yield the bridge, and the next one when it has ended, as long as there can be one."""
        ...

    def dial(self, port: int) -> Connection:
        """Connect to a port of the host. Raises OSError."""
        ...


class PortStream:
    """A virtio-serial port as a `ByteStream`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, size: int) -> bytes:
        """Return what has come; b"" once the host is gone, which the driver says by 0 bytes."""
        return os.read(self._fd, size)

    def write(self, data: bytes) -> None:
        """Write all of it."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view[:_CHUNK]) :]


class PipeMover:
    """Moves bytes from pipes to a virtio-serial port without their being seen.

    They go through a pipe of its own, behind the frame that announces them, so that the port gets
    both in one piece: each piece costs a turn of the host.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._source, self._sink = os.pipe()
        with contextlib.suppress(OSError):  # beyond the limit for those who are not root
            fcntl.fcntl(self._sink, fcntl.F_SETPIPE_SZ, _MOVED)

    def __call__(self, frame: bytes, pipe: int, count: int) -> None:
        """Write `frame`, then `count` bytes of `pipe`, or zeros where its writer took them back."""
        gathered = os.write(self._sink, frame)
        while count:
            moved = self._gather(pipe, count)
            if not moved and not gathered:
                moved = os.write(self._sink, bytes(min(count, _PAGE)))
            gathered += moved
            count -= moved
            if not moved or not count:
                while gathered:
                    gathered -= os.splice(self._source, self._port, gathered)

    def _gather(self, pipe: int, count: int) -> int:
        try:
            return os.splice(pipe, self._sink, count, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:  # nothing is there, or the own pipe is full
            return 0


class SocketStream:
    """A connected socket as a `ByteStream`."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def read(self, size: int) -> bytes:
        """Return what has come; b"" once the host is gone."""
        return self._socket.recv(size)

    def write(self, data: bytes) -> None:
        """Write all of it."""
        self._socket.sendall(data)


class SocketConnection:
    """A connected socket as a `Connection`."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def receive(self, *, timeout_s: float | None = None) -> bytes:
        """Return what has come; b"" once the host has finished. Raises OSError, TimeoutError."""
        # Only the receiver uses a timeout, and it does so after the sender is done.
        self._socket.settimeout(timeout_s if timeout_s is None or timeout_s > 0 else 0.001)
        return self._socket.recv(_CHUNK)

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self._socket.sendall(data)

    def send_pipe(self, fd: int, count: int) -> None:
        """Send up to `count` bytes that wait in a pipe."""
        self._socket.sendall(os.read(fd, count))

    def finish(self) -> None:
        """Half-close."""
        import socket

        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Give the stream up; wakes a receiver."""
        import socket

        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class VirtioTransport:
    """QEMU: the ports `gcs` and `stdio`."""

    def __init__(self, bridge: ByteStream, link: MuxLink) -> None:
        self._bridge = bridge
        self._link = link

    @classmethod
    def open(cls, *, on_violation: Callable[[str], None]) -> VirtioTransport:
        """Return the transport once both ports are there. Raises TimeoutError."""
        bridge = PortStream(_open_port("gcs"))
        stdio = _open_port("stdio")
        link = MuxLink(PortStream(stdio), on_violation=on_violation, move=PipeMover(stdio))
        link.start()
        return cls(bridge, link)

    def bridges(self) -> Iterator[ByteStream]:
        """Yield the one bridge: its end is the host's end."""
        yield self._bridge

    def dial(self, port: int) -> Connection:
        """Connect to a port of the host."""
        return self._link.dial(port)


class VsockTransport:
    """Hyper-V: vsock to the host, which the kernel carries over VMBus."""

    def __init__(
        self,
        *,
        patience_s: float | None = _PATIENCE_S,
        connect: Callable[[int], socket.socket] | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """`patience_s` is how long a host that takes no bridge may still come; None for ever."""
        self._patience_s = patience_s
        self._connect = connect or _connect
        self._clock = clock
        self._pause = pause

    def bridges(self) -> Iterator[ByteStream]:
        """Yield a bridge whenever the host takes one, until its time is over."""
        since = self._clock()
        while True:
            try:
                connected = self._connect(BRIDGE_PORT)
            except OSError:
                if self._patience_s is not None and self._clock() - since > self._patience_s:
                    return
                self._pause(_REDIAL_S)
                continue
            with connected:
                yield SocketStream(connected)
            since = self._clock()

    def dial(self, port: int) -> Connection:
        """Connect to a port of the host."""
        for attempt in range(_DIAL_ATTEMPTS):
            try:
                return SocketConnection(self._connect(port))
            except TimeoutError:
                if attempt == _DIAL_ATTEMPTS - 1:
                    raise
                time.sleep(_REDIAL_S)
        raise AssertionError("unreachable")


def _connect(port: int) -> socket.socket:
    import socket

    connected = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        connected.connect((socket.VMADDR_CID_HOST, port))
    except BaseException:
        connected.close()
        raise
    return connected


def _open_port(name: str) -> int:
    """Return a descriptor of the virtio-serial port of that name."""
    deadline = time.monotonic() + _PORT_S
    while time.monotonic() < deadline:
        fd = _find_port(name)
        if fd is not None:
            return fd
        time.sleep(_POLL_S)
    raise TimeoutError(errno.ETIMEDOUT, f"no virtio-serial port {name!r} after {_PORT_S:g} s")


def _find_port(name: str) -> int | None:
    # A port appears before its name does, and its device node may come later still.
    with contextlib.suppress(OSError):
        for entry in os.listdir(_PORTS):  # noqa: PTH208 - pathlib is slow to import
            with (
                contextlib.suppress(OSError),
                open(f"{_PORTS}/{entry}/name", encoding="ascii") as file,
            ):
                if file.read().strip() == name:
                    return os.open(f"/dev/{entry}", os.O_RDWR | os.O_CLOEXEC)
    return None

"""The endpoint itself: a listening port, its connections, its shells, and its reboots.

::

    off ──open──> up ──reboot / restart_service──> down ──reboot_down_s──> up
                   └──stop_service──> down (start_service)
                   └──power_off──> off (power_on) ── close ──> closed

While it is down the port is closed: clients see a refused connection. Shells and everything that
ran in them are gone; after a reboot the boot identity is another.
"""

from __future__ import annotations

import contextlib
import enum
import http.server
import logging
import socket
import socketserver
import ssl
import sys
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from harness.errors import UsageError
from harness.winrmd.auth import ConnectionAuth
from harness.winrmd.boots import Boot
from harness.winrmd.certificates import end_point_binding
from harness.winrmd.cmdshell import CmdShells
from harness.winrmd.config import EndpointConfig, Quotas
from harness.winrmd.connection import ConnectionHandler
from harness.winrmd.hostdisk import make_folders
from harness.winrmd.resources import ResourceHandler
from harness.winrmd.shells import ShellTable
from harness.winrmd.users import UserStore
from harness.winrmd.wsman import Dispatcher

log = logging.getLogger(__name__)

_REAP_EVERY_S = 0.25
_POLL_S = 0.05


class _Turn(enum.Enum):
    REBOOT = enum.auto()
    SERVICE = enum.auto()
    OFF = enum.auto()


class _Listener(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def server_bind(self) -> None:
        # HTTPServer asks the resolver for a name here: it has no use, and may take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "winrmd", int(self.server_address[1])

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, address

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exc_info()[1]
        # Clients that go away or cannot agree on TLS are their own affair.
        if not isinstance(error, OSError):
            log.error("a connection of the WinRM endpoint failed", exc_info=True)


class WinRmServer:
    """A WinRM endpoint. `resources` stand beside the cmd shell that every endpoint has.

    A context manager: it listens inside of it. `resources` are asked before the cmd shell, in
    their order. On failure to open nothing is left.
    """

    def __init__(
        self, config: EndpointConfig, *, resources: Sequence[ResourceHandler] = ()
    ) -> None:
        self.config = config
        self.dispatcher: Dispatcher
        self.tls: ssl.SSLContext | None = None
        self.shells = ShellTable()
        self._handlers = (*resources, CmdShells(config))
        self._users = UserStore(config.users, machine=config.machine, kerberos=config.kerberos)
        self._quotas = config.quotas
        self._boot = Boot.first()
        self._end_point: bytes | None = None
        self._listener: _Listener | None = None
        self._port = config.port
        self._connections: set[socket.socket] = set()
        self._lock = threading.RLock()
        self._turning = threading.Lock()  # one restart at a time
        self._closing = threading.Event()
        self._stack = contextlib.ExitStack()
        self._threads: list[threading.Thread] = []
        self.dispatcher = Dispatcher(config, self, self._handlers, self.shells)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            root = self.config.root
            if not root.is_dir():
                raise UsageError(f"{root} is no folder: make it, it stands for the host's disk")
            if self.config.tls is not None:
                self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                self.tls.load_cert_chain(self.config.tls.certificate, self.config.tls.key)
                self._end_point = end_point_binding(self.config.tls.certificate)
            stack.enter_context(self._users)
            make_folders(root, list(self.config.users))
            for handler in self._handlers:
                handler.attach(self)
            stack.callback(self._go_down)
            self._go_up()
            self._start_thread(self._reap)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        with self._turning:
            self._stack.close()
        for thread in tuple(self._threads):
            thread.join(timeout=5)

    @property
    def port(self) -> int:
        """The port that it listens on; it stays the same over reboots."""
        return self._port

    @property
    def url(self) -> str:
        """The address that clients take."""
        scheme = "http" if self.config.tls is None else "https"
        address = self.config.address
        return f"{scheme}://{f'[{address}]' if ':' in address else address}:{self._port}/wsman"

    @property
    def boot(self) -> Boot:
        """The boot that the host is in."""
        return self._boot

    @property
    def quotas(self) -> Quotas:
        """The quotas that are in force."""
        return self._quotas

    def set_quotas(self, quotas: Quotas) -> None:
        """Put other quotas in force, for shells and operations to come."""
        self._quotas = quotas

    @property
    def listening(self) -> bool:
        """Whether the port is open."""
        return self._listener is not None

    def new_auth(self) -> ConnectionAuth:
        """Return the state of a connection that has not said who it is."""
        return ConnectionAuth(
            self._users,
            schemes=self.config.auth,
            level=self.config.channel_bindings,
            end_point=self._end_point,
        )

    def entered(self, connection: socket.socket) -> bool:
        """Count a connection; False if there is no room for it."""
        with self._lock:
            full = len(self._connections) >= self._quotas.max_connections
            if self._listener is None or full:
                return False
            self._connections.add(connection)
            return True

    def left(self, connection: socket.socket) -> None:
        """Forget a connection."""
        with self._lock:
            self._connections.discard(connection)

    def _start_thread(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name="winrmd", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _go_up(self) -> None:
        handler = type("Handler", (ConnectionHandler,), {"endpoint": self})
        family = socket.AF_INET6 if ":" in self.config.address else socket.AF_INET
        kind = type("Listener", (_Listener,), {"address_family": family})
        try:
            listener = kind((self.config.address, self._port), handler)
        except OSError as error:
            where = f"{self.config.address}:{self._port}"
            raise UsageError(f"cannot listen on {where}: {error}. Choose another port") from error
        with self._lock:
            self._port = listener.server_port
            self._listener = listener
        self.dispatcher.url = self.url
        self._start_thread(listener.serve_forever, _POLL_S)

    def _go_down(self) -> None:
        """Close the port, cut every connection, end every shell; may be called again."""
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown()
            listener.server_close()
        with self._lock:
            connections = tuple(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.shells.close_all()

    def _reap(self) -> None:
        while not self._closing.wait(_REAP_EVERY_S):
            self.shells.reap()

    def reboot(self, *, after_s: float = 0.0) -> None:
        """Restart the host `after_s` from now, after a moment for replies that are under way."""
        self._start_thread(self._turn, after_s, _Turn.REBOOT)

    def restart_service(self, *, after_s: float = 0.0) -> None:
        """Restart the WinRM service: as `reboot`, in the same boot."""
        self._start_thread(self._turn, after_s, _Turn.SERVICE)

    def stop_service(self) -> None:
        """Stop the WinRM service: the port is closed and every shell has ended on return.

        Whoever does that from within a shell ends with it.
        """
        if not self._closing.wait(self.config.knobs.shutdown_grace_s):
            with self._turning:
                self._go_down()

    def start_service(self) -> None:
        """Start the WinRM service if it is stopped: the port is open on return."""
        self.power_on()

    def power_off(self, *, after_s: float = 0.0) -> None:
        """Switch the host off; `power_on` brings it back, in another boot."""
        self._start_thread(self._turn, after_s, _Turn.OFF)

    def power_on(self) -> None:
        """Switch on a host that is off."""
        with self._turning:
            if self._listener is None and not self._closing.is_set():
                self._go_up()

    def _turn(self, after_s: float, kind: _Turn) -> None:
        if self._closing.wait(after_s + self.config.knobs.shutdown_grace_s):
            return
        with self._turning:
            self._go_down()
            if kind is not _Turn.SERVICE:
                self._boot = self._boot.next()
                for handler in self._handlers:
                    handler.rebooted(self._boot)
            if kind is _Turn.OFF or self._closing.wait(self.config.knobs.reboot_down_s):
                return
            try:
                self._go_up()
            except UsageError:
                log.exception("the endpoint did not come back after its restart")

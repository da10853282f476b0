"""WinRS shells and the processes in them, over connections that may drop at any time.

::

    Command sent, no answer ──► Receive on the id that we chose
                                  ├─ known: it runs, go on with it
                                  └─ unknown: it never started, send it again
    Receive broke off       ──► OutputLostError: WinRM answers an output once
    Send broke off          ──► ConnectionLostError: nobody knows whether the bytes arrived
    Signal, Delete broke off ─► again: they may be repeated

The middle case needs a host that takes our CommandId for its own; that is seen from the first
answer, and where it is not so the caller hears ConnectionLostError with `maybe_ran`.
Protocol: [MS-WSMV] 3.1.4.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Final, Self

from pypsrp.shell import WinRS
from pypsrp.wsman import NAMESPACES

from harness.errors import ConnectionLostError, RemoteError, ShellGoneError
from harness.remote.commandline import command_line
from harness.remote.deadline import Deadline
from harness.remote.links import Connector, Link, attach
from harness.remote.processes import WinRSProcess, finish
from harness.remote.retries import call_with_retries
from harness.remote.transport import CompletedRemote
from harness.remote.wire import Wire

UTF8_CODE_PAGE: Final = 65001
_TIDY_S: Final = 10.0
_SETTLE_S: Final = 0.5


class WinRSShell:
    """A shell on the host. `run` takes turns on its own two connections; `start` makes new ones."""

    def __init__(self, connector: Connector, shell_id: str, wire: Wire) -> None:
        self.shell_id = shell_id
        self._connector = connector
        self._receive = Link(connector, shell_id, wire)
        self._send = Link(connector, shell_id)
        self._turn = threading.Lock()
        self._takes_our_ids: bool | None = None
        self._closed = False

    @classmethod
    def open(
        cls,
        connector: Connector,
        *,
        deadline: Deadline,
        environment: Mapping[str, str] | None = None,
        working_directory: str | None = None,
    ) -> WinRSShell:
        """Return a new shell.

        A Create whose answer was lost is undone by the id that we chose, then made again: shells
        count against a quota. Raises RemoteError.
        """
        undo: list[str] = []

        def once() -> WinRSShell:
            wire = connector.connect()
            try:
                while undo:
                    _delete(wire, undo[-1], deadline)
                    undo.pop()
                winrs = WinRS(
                    wire.wsman,
                    id=str(uuid.uuid4()).upper(),
                    codepage=UTF8_CODE_PAGE,
                    environment=dict(environment) if environment else None,
                    working_directory=working_directory,
                )
                undo.append(str(winrs.id))
                try:
                    with wire.request("open a shell", deadline):
                        winrs.open()
                except RemoteError as error:
                    if not error.maybe_ran:
                        undo.pop()
                    raise
                undo.pop()
                # Old hosts choose the id themselves, whatever was asked for.
                return cls(connector, str(winrs.id), wire)
            except BaseException:
                wire.close()
                raise

        return call_with_retries(
            once,
            what=f"{connector.host}: open a shell",
            policy=connector.policy,
            deadline=deadline,
            idempotent=True,
            attempts=connector.attempts,
        )

    def start(self, argv: Sequence[str], *, deadline: Deadline) -> WinRSProcess:
        """See `Shell.start`: the process has its own two connections."""
        receive = Link(self._connector, self.shell_id)
        send = Link(self._connector, self.shell_id)
        try:
            process = self._start(argv, receive=receive, send=send, deadline=deadline)
        except BaseException:
            receive.close()
            raise
        process.own_links()
        return process

    def start_alone(self, argv: Sequence[str], *, deadline: Deadline) -> WinRSProcess:
        """See `Shell.start_alone`: a connection costs a login, so it has the shell's own."""
        return self._start(argv, receive=self._receive, send=self._receive, deadline=deadline)

    def _start(
        self, argv: Sequence[str], *, receive: Link, send: Link, deadline: Deadline
    ) -> WinRSProcess:
        line = command_line(argv)

        def once() -> WinRSProcess:
            chosen = str(uuid.uuid4()).upper()
            process = WinRSProcess(self._connector.host, chosen, receive=receive, send=send)
            try:
                with receive.request("start a command", deadline) as winrs:
                    answer = winrs.command(line, [], command_id=chosen)
            except ConnectionLostError as error:
                if not (error.maybe_ran and self._takes_our_ids):
                    raise
                # A request that is still being read must not start after we looked.
                time.sleep(_SETTLE_S)
                try:
                    process.probe_started(deadline=deadline)
                except ShellGoneError:
                    error.maybe_ran = False
                    raise error from None
                return process
            told = answer.find("rsp:CommandResponse/rsp:CommandId", namespaces=NAMESPACES)
            process.command_id = (told.text if told is not None else None) or chosen
            self._takes_our_ids = process.command_id.upper() == chosen
            return process

        return call_with_retries(
            once,
            what=f"{self._connector.host}: start {argv[0]}",
            policy=self._connector.policy,
            deadline=deadline,
            idempotent=False,
            attempts=self._connector.attempts,
            same_shell=True,
        )

    def run(
        self, argv: Sequence[str], *, deadline: Deadline, stdin: bytes | None = None
    ) -> CompletedRemote:
        """See `Shell.run`."""
        with self._turn:
            process = self._start(argv, receive=self._receive, send=self._send, deadline=deadline)
            try:
                return finish(process, argv[0], stdin=stdin, deadline=deadline)
            finally:
                process.close()

    def close(self) -> None:
        """See `Shell.close`."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(RemoteError):
            self._receive.repeat(
                "close the shell",
                Deadline.after(_TIDY_S),
                lambda winrs: winrs.close(),
                idempotent=True,
            )
        self._receive.close()
        self._send.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _delete(wire: Wire, shell_id: str, deadline: Deadline) -> None:
    with (
        contextlib.suppress(ShellGoneError),
        wire.request("close a shell whose opening was lost", deadline) as wsman,
    ):
        attach(wsman, shell_id).close()

"""The shells of an endpoint: who made them, when they were last used, and when they go.

::

    Create ──> open ──(Delete | idle for IdleTimeOut | reboot)──> gone

A shell belongs to its user, not to a connection: any connection of that user may address it. One
that has an operation under way is never reaped.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from harness.winrmd import faults
from harness.winrmd.config import Quotas
from harness.winrmd.resources import Operation, ShellSession
from harness.winrmd.soap import NAMESPACES, SHELL_URI, parse_duration, xml_text


@dataclass(slots=True)
class Shell:
    """One open shell; times on `time.monotonic()`."""

    shell_id: str
    owner: str
    client_address: str
    resource_uri: str
    session: ShellSession
    input_streams: str
    output_streams: str
    idle_timeout_s: float
    created: float
    last_used: float
    active: int = 0

    def xml(self) -> str:
        """Return `rsp:Shell` as Get, Create and Enumerate show it."""
        now = time.monotonic()
        idle = 0 if self.active else int(now - self.last_used)
        return (
            f'<rsp:Shell xmlns:rsp="{SHELL_URI}"><rsp:ShellId>{xml_text(self.shell_id)}'
            f"</rsp:ShellId><rsp:ResourceUri>{xml_text(self.resource_uri)}</rsp:ResourceUri>"
            f"<rsp:Owner>{xml_text(self.owner)}</rsp:Owner>"
            f"<rsp:ClientIP>{xml_text(self.client_address)}</rsp:ClientIP>"
            f"<rsp:IdleTimeOut>PT{self.idle_timeout_s:.3f}S</rsp:IdleTimeOut>"
            f"<rsp:InputStreams>{xml_text(self.input_streams)}</rsp:InputStreams>"
            f"<rsp:OutputStreams>{xml_text(self.output_streams)}</rsp:OutputStreams>"
            "<rsp:State>Connected</rsp:State>"
            f"<rsp:ShellRunTime>{_run_time(now - self.created)}</rsp:ShellRunTime>"
            f"<rsp:ShellInactivity>{_run_time(idle)}</rsp:ShellInactivity></rsp:Shell>"
        )


def _run_time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"P{days}DT{hours}H{minutes}M{rest}S"


@dataclass(slots=True)
class ShellTable:
    """Every shell of one endpoint, by its id (upper case)."""

    _shells: dict[str, Shell] = field(default_factory=dict)
    _opening: dict[str, str] = field(default_factory=dict)  # id -> owner, not yet a shell
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def open(
        self,
        operation: Operation,
        *,
        quotas: Quotas,
        make: Callable[[str], tuple[ShellSession, str]],
    ) -> tuple[Shell, str]:
        """Return a new shell, and the XML that its session adds to the reply.

        `make` gets the shell's id. Raises WsmanFault: a quota, a taken id, or `make`'s own;
        nothing is left then.
        """
        described = operation.body.find("rsp:Shell", NAMESPACES)
        if described is None:
            raise faults.invalid_parameter()
        shell_id = (described.get("ShellId") or str(uuid.uuid4())).upper()
        try:
            uuid.UUID(shell_id)
        except ValueError:
            raise faults.invalid_parameter() from None
        idle_s = self._idle_timeout(described.findtext("rsp:IdleTimeOut", "", NAMESPACES), quotas)
        self._reserve(shell_id, operation.user, quotas)
        try:
            session, extra = make(shell_id)
        except BaseException:
            with self._lock:
                self._opening.pop(shell_id, None)
            raise
        now = time.monotonic()
        shell = Shell(
            shell_id=shell_id,
            owner=operation.user,
            client_address=operation.client_address,
            resource_uri=operation.resource_uri,
            session=session,
            input_streams=described.findtext("rsp:InputStreams", "stdin", NAMESPACES),
            output_streams=described.findtext("rsp:OutputStreams", "stdout stderr", NAMESPACES),
            idle_timeout_s=idle_s,
            created=now,
            last_used=now,
        )
        with self._lock:
            # A reboot meanwhile has forgotten the reservation: then there is no such host any more.
            if self._opening.pop(shell_id, None) is not None:
                self._shells[shell_id] = shell
                return shell, extra
        session.close()
        raise faults.operation_aborted()

    def _reserve(self, shell_id: str, owner: str, quotas: Quotas) -> None:
        with self._lock:
            owners = [shell.owner for shell in self._shells.values()] + [*self._opening.values()]
            if shell_id in self._shells or shell_id in self._opening:
                raise faults.already_exists()
            if owners.count(owner) >= quotas.max_shells_per_user:
                raise faults.too_many_shells(quotas.max_shells_per_user)
            if owner not in owners and len(set(owners)) >= quotas.max_concurrent_users:
                raise faults.too_many_users(quotas.max_concurrent_users)
            self._opening[shell_id] = owner

    @staticmethod
    def _idle_timeout(text: str, quotas: Quotas) -> float:
        if not text:
            return quotas.idle_timeout_ms / 1000
        try:
            seconds = parse_duration(text)
        except ValueError:
            raise faults.invalid_parameter() from None
        if seconds <= 0:
            raise faults.invalid_parameter()
        return seconds

    @contextlib.contextmanager
    def using(self, operation: Operation) -> Iterator[Shell]:
        """Give the shell that the selectors name, kept alive meanwhile. Raises WsmanFault."""
        with self._lock:
            shell = self._find(operation)
            shell.active += 1
        try:
            yield shell
        finally:
            with self._lock:
                shell.active -= 1
                shell.last_used = time.monotonic()

    def _find(self, operation: Operation) -> Shell:
        shell_id = operation.selector("ShellId")
        shell = self._shells.get(shell_id.upper())
        if shell is None or shell.owner != operation.user:
            raise faults.shell_missing(shell_id)
        return shell

    def delete(self, operation: Operation) -> None:
        """End the shell that the selectors name. Raises WsmanFault if there is none."""
        with self._lock:
            shell = self._find(operation)
            del self._shells[shell.shell_id]
        shell.session.close()

    def listed(self) -> tuple[Shell, ...]:
        """Return every shell, oldest first."""
        with self._lock:
            return tuple(self._shells.values())

    def reap(self) -> int:
        """End the shells that were idle for too long; return how many."""
        now = time.monotonic()
        with self._lock:
            over = [
                shell
                for shell in self._shells.values()
                if not shell.active and now - shell.last_used > shell.idle_timeout_s
                # A process that nobody reads from does not keep a shell alive; Windows agrees.
            ]
            for shell in over:
                del self._shells[shell.shell_id]
        for shell in over:
            shell.session.close()
        return len(over)

    def close_all(self) -> None:
        """End every shell, those being opened too."""
        with self._lock:
            shells = list(self._shells.values())
            self._shells.clear()
            self._opening.clear()
        for shell in shells:
            shell.session.close()

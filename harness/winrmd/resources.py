"""What a WS-Management resource must do to stand behind the endpoint.

The endpoint parses, authenticates, seals, counts quotas, owns shells (who made one, when it was
last used, when it is reaped) and finds the handler of a request by its resource URI. A handler
answers with the XML that belongs into `s:Body`, or raises `faults.WsmanFault`.

::

    WinRmServer ── Dispatcher ──┬── ShellTable ── Shell ── ShellSession   (cmd.exe, PSRP)
                                └── ResourceHandler                        (CIM, winrm/config)

Handlers are called from many threads at once, one for each connection.
"""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.winrmd.boots import Boot
from harness.winrmd.config import Quotas


@dataclass(frozen=True, slots=True)
class Operation:
    """One request, parsed and authenticated.

    `name` is the last part of the action (`Create`, `Receive`, `GetSecurityDescriptor`, …);
    `deadline` is on `time.monotonic()`: answer, or raise `faults.timed_out()`, before it;
    `payload_limit` counts the bytes that fit a reply once they are base64.
    Option and selector names are as sent; `option` and `selector` ignore their case.
    """

    action: str
    name: str
    resource_uri: str
    message_id: str
    body: ET.Element
    user: str
    client_address: str
    deadline: float
    payload_limit: int
    selectors: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def seconds_left(self) -> float:
        """How long this operation may still take, never negative."""
        return max(0.0, self.deadline - time.monotonic())

    def option(self, name: str, default: str = "") -> str:
        """Return the value of an option, or `default`."""
        return _lookup(self.options, name, default)

    def selector(self, name: str, default: str = "") -> str:
        """Return the value of a selector, or `default`."""
        return _lookup(self.selectors, name, default)


def _lookup(values: Mapping[str, str], name: str, default: str) -> str:
    for key, value in values.items():
        if key.lower() == name.lower():
            return value
    return default


class HostControl(Protocol):
    """What a handler may do to the endpoint that it stands behind."""

    @property
    def boot(self) -> Boot:
        """The boot that the host is in."""

    @property
    def quotas(self) -> Quotas:
        """The quotas of `winrm/config` that are in force."""

    def set_quotas(self, quotas: Quotas) -> None:
        """Put other quotas in force, for shells and operations to come."""

    def reboot(self, *, after_s: float = 0.0) -> None:
        """Restart the host: shells end, the port is closed for a while, the boot is another.

        Returns at once; with `after_s` 0 the reply that is under way still goes out.
        """

    def restart_service(self, *, after_s: float = 0.0) -> None:
        """Restart the WinRM service alone: as `reboot`, in the same boot."""

    def stop_service(self) -> None:
        """Stop the WinRM service: the port is closed and every shell has ended on return."""

    def start_service(self) -> None:
        """Start the WinRM service if it is stopped: the port is open on return."""

    def power_off(self, *, after_s: float = 0.0) -> None:
        """Switch the host off: as `reboot`, but it stays off."""


@dataclass(frozen=True, slots=True)
class ShellContext:
    """What a session knows about the shell that it runs in, and about its host.

    `root` is the folder that stands for the host's disk; `environment` what a new process gets.
    """

    shell_id: str
    owner: str
    root: Path
    environment: Mapping[str, str]


class ShellSession(Protocol):
    """What runs inside of one shell: processes of cmd.exe, or pipelines of a runspace pool."""

    @property
    def running(self) -> int:
        """How many commands or pipelines have not ended."""

    def command(self, operation: Operation) -> str:
        """Start one; return `rsp:CommandResponse`."""

    def send(self, operation: Operation) -> str:
        """Take input; return `rsp:SendResponse`."""

    def receive(self, operation: Operation) -> str:
        """Wait for output; return `rsp:ReceiveResponse`, or raise `faults.timed_out()`."""

    def signal(self, operation: Operation) -> str:
        """Interrupt or end a command; return `rsp:SignalResponse`."""

    def other(self, operation: Operation) -> str:
        """Answer Connect, Disconnect, Reconnect and whatever else is sent to the shell."""

    def close(self) -> None:
        """End everything that runs, wake every waiting `receive`; may be called again."""


class ResourceHandler(Protocol):
    """Serves resource URIs. Raise `faults.action_not_supported` for what it does not offer."""

    def attach(self, control: HostControl) -> None:
        """Learn which endpoint this is; called once, before the first request."""

    def handles(self, resource_uri: str) -> bool:
        """Return whether this handler serves that URI."""

    def open_shell(self, operation: Operation, shell: ShellContext) -> tuple[ShellSession, str]:
        """Return a new session for `Create`, and XML to add after `rsp:Shell`'s own elements.

        The endpoint has checked the quota and chosen the id. Nothing is left on failure.
        """

    def answer(self, operation: Operation) -> str:
        """Return the body for Get, Put, Invoke, Delete or Create outside of any shell."""

    def enumerate(self, operation: Operation) -> Sequence[str]:
        """Return every item as XML; the endpoint pages them (Enumerate, Pull, Release)."""

    def rebooted(self, boot: Boot) -> None:
        """Take note that the host has restarted: forget what does not survive that."""

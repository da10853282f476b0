"""WS-Management dispatch: one envelope in, one envelope out, whoever sealed it.

Counts the operations of a user, applies the planned trouble, finds the shell or the handler, and
turns faults into envelopes. It knows nothing of sockets.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.winrmd import faults
from harness.winrmd.config import (
    PRODUCT_VERSION,
    EndpointConfig,
    Quotas,
    config_xml,
    is_config_uri,
    quotas_from_xml,
)
from harness.winrmd.enumerations import EnumerationTable
from harness.winrmd.hostdisk import host_environment
from harness.winrmd.knobs import Strike, Trouble
from harness.winrmd.resources import HostControl, Operation, ResourceHandler, ShellContext
from harness.winrmd.shells import Shell, ShellTable
from harness.winrmd.soap import (
    NAMESPACES,
    SHELL_URI,
    Request,
    envelope,
    fault_envelope,
    identify_envelope,
    parse_request,
    xml_text,
)

_DEFAULT_ENVELOPE: Final = 153_600  # what a client that says nothing can take, [MS-WSMV] 2.2.4.24
_DEFAULT_TIMEOUT_S: Final = 60.0
# Headers, stream elements and the sealing frame around the payload of a reply.
_REPLY_OVERHEAD: Final = 4096


@dataclass(frozen=True, slots=True)
class Reply:
    """What to send: an HTTP status and an envelope; `dropped` means cut the connection instead."""

    status: int
    body: bytes = b""
    dropped: bool = False


class Dispatcher:
    """Answers the envelopes of one endpoint."""

    def __init__(
        self,
        config: EndpointConfig,
        control: HostControl,
        handlers: Sequence[ResourceHandler],
        shells: ShellTable,
    ) -> None:
        self._config = config
        self._control = control
        self._handlers = tuple(handlers)
        self._shells = shells
        self._enumerations = EnumerationTable()
        self._operations: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.url = ""

    def handle(self, xml: bytes, *, user: str, client_address: str) -> Reply:
        """Return the reply to one envelope. Raises EnvelopeError for what is none (HTTP 400)."""
        if len(xml) > self._control.quotas.max_envelope_size:
            return Reply(413)
        message_id = ""
        dropped = False
        try:
            request = parse_request(xml)
            message_id = request.message_id
            if request.identify:
                return self.identify()
            name = request.action.rsplit("/", 1)[-1]
            strike = self._config.knobs.take(name)
            dropped = strike is not None and strike.trouble is Trouble.DROP_AFTER
            if strike is not None and not dropped:
                return _struck(strike)
            operation = self._operation(request, name, user, client_address)
            with self._counted(user):
                body = self._dispatch(operation)
            reply = envelope(_response_action(request.action), relates_to=message_id, body=body)
            limit = request.max_envelope_size or _DEFAULT_ENVELOPE
            if len(reply) > limit:
                raise faults.reply_too_large(limit)
            return Reply(200, reply, dropped=dropped)
        except faults.WsmanFault as fault:
            machine = self._config.machine
            reply = fault_envelope(fault, relates_to=message_id, machine=machine)
            return Reply(500, reply, dropped=dropped)

    @property
    def largest_envelope(self) -> int:
        """MaxEnvelopeSize in bytes, as it is in force."""
        return self._control.quotas.max_envelope_size

    def identify(self) -> Reply:
        """Return the answer to wsmid:Identify."""
        return Reply(200, identify_envelope(PRODUCT_VERSION))

    def _operation(self, request: Request, name: str, user: str, client_address: str) -> Operation:
        quotas = self._control.quotas
        timeout_s = request.operation_timeout_s or _DEFAULT_TIMEOUT_S
        size = min(request.max_envelope_size or _DEFAULT_ENVELOPE, quotas.max_envelope_size)
        return Operation(
            action=request.action,
            name=name,
            resource_uri=request.resource_uri,
            message_id=request.message_id,
            body=request.body,
            user=user,
            client_address=client_address,
            deadline=time.monotonic() + min(timeout_s, quotas.max_timeout_ms / 1000),
            # Whole groups of three: base64 without padding in the middle of a reply.
            payload_limit=max(1024, (size - _REPLY_OVERHEAD) * 3 // 4) // 3 * 3,
            selectors=request.selectors,
            options=request.options,
        )

    @contextlib.contextmanager
    def _counted(self, user: str) -> Iterator[None]:
        limit = self._control.quotas.max_concurrent_operations_per_user
        with self._lock:
            if self._operations[user] >= limit:
                raise faults.too_many_operations(limit)
            self._operations[user] += 1
        try:
            yield
        finally:
            with self._lock:
                self._operations[user] -= 1

    def _dispatch(self, operation: Operation) -> str:
        if is_config_uri(operation.resource_uri):
            return self._winrm_config(operation)
        match operation.name:
            case "Enumerate":
                timeout_s = self._control.quotas.enumeration_timeout_ms / 1000
                items = self._items(operation)
                return self._enumerations.enumerate(operation, items, timeout_s=timeout_s)
            case "Pull":
                return self._enumerations.pull(operation)
            case "Release":
                return self._enumerations.release(operation)
        if operation.selector("ShellId"):
            return self._on_shell(operation)
        handler = self._handler(operation)
        if operation.name == "Create" and operation.body.find("rsp:Shell", NAMESPACES) is not None:
            return self._open_shell(operation, handler)
        if operation.resource_uri.lower().startswith(SHELL_URI.lower()):
            # A shell's own action, and no shell named.
            raise faults.shell_missing("")
        return handler.answer(operation)

    def _items(self, operation: Operation) -> Sequence[str]:
        if operation.resource_uri.lower() == SHELL_URI.lower():
            return [shell.xml() for shell in self._shells.listed()]
        return self._handler(operation).enumerate(operation)

    def _handler(self, operation: Operation) -> ResourceHandler:
        for handler in self._handlers:
            if handler.handles(operation.resource_uri):
                return handler
        raise faults.invalid_resource(operation.resource_uri)

    def _on_shell(self, operation: Operation) -> str:
        if operation.name == "Delete":
            self._shells.delete(operation)
            return ""
        with self._shells.using(operation) as shell:
            match operation.name:
                case "Get":
                    return shell.xml()
                case "Command":
                    return shell.session.command(operation)
                case "Send":
                    return shell.session.send(operation)
                case "Receive":
                    return shell.session.receive(operation)
                case "Signal":
                    return shell.session.signal(operation)
                case _:
                    return shell.session.other(operation)

    def _open_shell(self, operation: Operation, handler: ResourceHandler) -> str:
        shell, extra = self._shells.open(
            operation,
            quotas=self._control.quotas,
            make=lambda shell_id: handler.open_shell(operation, self._context(shell_id, operation)),
        )
        return (
            self._created(shell)
            + (shell.xml().removesuffix("</rsp:Shell>") + extra)
            + ("</rsp:Shell>")
        )

    def _context(self, shell_id: str, operation: Operation) -> ShellContext:
        return ShellContext(
            shell_id=shell_id,
            owner=operation.user,
            root=Path(self._config.root).resolve(),
            environment=host_environment(self._config, operation.user),
        )

    def _created(self, shell: Shell) -> str:
        return (
            f"<x:ResourceCreated><a:Address>{xml_text(self.url)}</a:Address>"
            "<a:ReferenceParameters>"
            f"<w:ResourceURI>{xml_text(shell.resource_uri)}</w:ResourceURI>"
            f'<w:SelectorSet><w:Selector Name="ShellId">{shell.shell_id}</w:Selector>'
            "</w:SelectorSet></a:ReferenceParameters></x:ResourceCreated>"
        )

    def _winrm_config(self, operation: Operation) -> str:
        match operation.name:
            case "Get":
                pass
            case "Put":
                self._control.set_quotas(self._changed_quotas(operation))
            case _:
                raise faults.action_not_supported(operation.action)
        port = int(self.url.rsplit(":", 1)[-1].split("/", 1)[0])
        return config_xml(self._config, self._control.quotas, port=port)

    def _changed_quotas(self, operation: Operation) -> Quotas:
        try:
            return quotas_from_xml(operation.body, self._control.quotas)
        except ValueError:
            raise faults.invalid_parameter() from None


def _response_action(action: str) -> str:
    return action + "Response"


def _struck(strike: Strike) -> Reply:
    match strike.trouble:
        case Trouble.DROP_BEFORE:
            return Reply(0, dropped=True)
        case Trouble.FAULT:
            raise strike.make_fault() if strike.make_fault else faults.operation_aborted()
        case trouble:
            return Reply(int(trouble.value))

"""A PSRP client without a network: psrpcore's client half wired to a session of the endpoint.

Requests are the XML that pypsrp sends; replies are read as the endpoint would send them.
"""

from __future__ import annotations

import base64
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from psrpcore import (
    ClientPowerShell,
    ClientRunspacePool,
    ErrorRecordEvent,
    PipelineOutputEvent,
    PipelineStateEvent,
    ProgressRecordEvent,
    PSRPPayload,
    StreamType,
    WarningRecordEvent,
)
from psrpcore.types import ErrorRecord, PSInvocationState

from harness.winrmd.boots import Boot
from harness.winrmd.psrp import PsrpHandler, PsrpSession
from harness.winrmd.resources import Operation, ShellContext
from harness.winrmd.soap import NAMESPACES

URI = "http://schemas.microsoft.com/powershell/Microsoft.PowerShell"


def operation(
    name: str,
    body: str = "",
    *,
    uri: str = URI,
    selectors: Mapping[str, str] | None = None,
    timeout_s: float = 5.0,
) -> Operation:
    declared = " ".join(f'xmlns:{prefix}="{value}"' for prefix, value in NAMESPACES.items())
    return Operation(
        action=f"urn:{name}",
        name=name,
        resource_uri=uri,
        message_id=str(uuid.uuid4()),
        body=ET.fromstring(f"<s:Body {declared}>{body}</s:Body>"),
        user="lab",
        client_address="127.0.0.1",
        deadline=time.monotonic() + timeout_s,
        payload_limit=100_000,
        selectors=selectors or {},
    )


@dataclass
class Result:
    state: PSInvocationState = PSInvocationState.NotStarted
    output: list[object] = field(default_factory=list)
    errors: list[ErrorRecord] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    progress: list[int] = field(default_factory=list)

    @property
    def error(self) -> ErrorRecord:
        (only,) = self.errors
        return only

    def properties(self) -> dict[str, object]:
        (only,) = self.output
        return {each.name: getattr(only, each.name) for each in only.PSObject.adapted_properties}  # type: ignore[attr-defined]


class Client:
    """One opened runspace pool."""

    def __init__(self, handler: PsrpHandler, root: Path) -> None:
        self.pool = ClientRunspacePool()
        self.pool.open()
        xml = (
            '<creationXml xmlns="http://schemas.microsoft.com/powershell">'
            f"{base64.b64encode(self._data()).decode()}</creationXml>"
        )
        shell = ShellContext(str(uuid.uuid4()), "lab", root, {})
        self.session, _ = handler.open_shell(operation("Create", xml), shell)
        while self.pool.state.name != "Opened":
            self.receive(None)

    def _data(self) -> bytes:
        data = b""
        while (payload := self.pool.data_to_send()) is not None:
            data += payload.data
        return data

    def receive(self, pipeline_id: uuid.UUID | None, timeout_s: float = 5.0) -> ET.Element:
        named = f' CommandId="{pipeline_id}"' if pipeline_id else ""
        reply = self.session.receive(
            operation(
                "Receive",
                f"<rsp:Receive><rsp:DesiredStream{named}>stdout</rsp:DesiredStream></rsp:Receive>",
                timeout_s=timeout_s,
            )
        )
        element = ET.fromstring(f'<r xmlns:rsp="{NAMESPACES["rsp"]}">{reply}</r>')
        for stream in element.iter(f"{{{NAMESPACES['rsp']}}}Stream"):
            data = base64.b64decode(stream.text or "")
            self.pool.receive_data(PSRPPayload(data, StreamType.default, pipeline_id))
            # What came with the pool is only of interest for its state.
            if pipeline_id is None:
                while self.pool.next_event() is not None:
                    pass
        return element

    def start(
        self,
        name: str,
        parameters: Mapping[str, object] | None = None,
        *,
        script: bool = False,
        has_input: bool = False,
    ) -> ClientPowerShell:
        shell = ClientPowerShell(self.pool, no_input=not has_input)
        if script:
            shell.add_script(name)
        else:
            shell.add_command(name)
        for key, value in (parameters or {}).items():
            shell.add_parameter(key, value)
        shell.start()
        self.session.command(
            operation(
                "Command",
                f'<rsp:CommandLine CommandId="{shell.pipeline_id}"><rsp:Command/><rsp:Arguments>'
                f"{base64.b64encode(self._data()).decode()}</rsp:Arguments></rsp:CommandLine>",
            )
        )
        return shell

    def send_input(self, shell: ClientPowerShell, values: Iterable[object]) -> None:
        for value in values:
            shell.send(value)
        shell.send_eof()
        self.session.send(
            operation(
                "Send",
                f'<rsp:Send><rsp:Stream Name="stdin" CommandId="{shell.pipeline_id}">'
                f"{base64.b64encode(self._data()).decode()}</rsp:Stream></rsp:Send>",
            )
        )

    def signal(self, shell: ClientPowerShell, code: str) -> None:
        self.session.signal(
            operation(
                "Signal",
                f'<rsp:Signal CommandId="{shell.pipeline_id}"><rsp:Code>{code}</rsp:Code>'
                "</rsp:Signal>",
            )
        )

    def finish(self, shell: ClientPowerShell) -> Result:
        result = Result()
        done = False
        while not done:
            reply = self.receive(shell.pipeline_id)
            done = any(
                (each.get("State") or "").endswith("/Done")
                for each in reply.iter(f"{{{NAMESPACES['rsp']}}}CommandState")
            )
            while (event := self.pool.next_event()) is not None:
                if isinstance(event, PipelineOutputEvent):
                    result.output.append(event.data)
                elif isinstance(event, ErrorRecordEvent):
                    result.errors.append(event.record)
                elif isinstance(event, WarningRecordEvent):
                    result.warnings.append(str(event.record.Message))
                elif isinstance(event, ProgressRecordEvent):
                    result.progress.append(int(event.record.PercentComplete))
                elif isinstance(event, PipelineStateEvent):
                    result.state = event.state
                    if event.reason is not None:
                        result.errors.append(event.reason)
        return result

    def run(
        self, name: str, parameters: Mapping[str, object] | None = None, *, script: bool = False
    ) -> Result:
        return self.finish(self.start(name, parameters, script=script))


__all__ = ["Boot", "Client", "PsrpSession", "Result", "operation"]

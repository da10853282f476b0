"""PowerShell remoting behind the endpoint: a shell is a runspace pool, a command a pipeline.

Commands are looked up by name in `cmdlets.CMDLETS`, whether they came as structures or as text
that says the same; everything else is "not recognized", as on a host without that module.
Sources: [MS-WSMV] 3.1.4.5 (shells), [MS-PSRP] 2.2.1, recorded exchanges with Windows Server.
"""

from __future__ import annotations

import base64
import binascii
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Final

from harness.errors import ProtocolError
from harness.winrmd import faults
from harness.winrmd.boots import Boot
from harness.winrmd.cmdlets import CMDLETS, CmdletError, Machine, not_recognized
from harness.winrmd.resources import HostControl, Operation, ShellContext
from harness.winrmd.runspace import Request, RunspaceServer, Sink
from harness.winrmd.script import Call, Reference, ScriptSyntaxError, command_word, parse_script
from harness.winrmd.soap import NAMESPACES, SHELL_URI

URI_PREFIX: Final = "http://schemas.microsoft.com/powershell/"
_CREATION: Final = "{http://schemas.microsoft.com/powershell}creationXml"
_STOP: Final = ("/signal/crtl_c", "/signal/ctrl_c")  # the first is PowerShell's own spelling
_LANGUAGE_MODE: Final = ("ExecutionContext", "SessionState", "LanguageMode")


class CommandRunner:
    """Runs what a pipeline asks for on one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def __call__(self, request: Request, sink: Sink) -> None:
        """Run it. Raises CmdletError for what fails the whole pipeline."""
        if not request.is_script:
            self._command(request.text, request.parameters, sink)
            return
        obstacles = self._machine.host.read().obstacles
        if obstacles.language_mode == "NoLanguage":
            raise CmdletError(
                "The syntax is not supported by this runspace. This can occur if the runspace is "
                "in no-language mode.",
                id="ScriptsNotAllowed",
                category="ParserError",
                reason="ParseException",
                terminating=True,
            )
        try:
            parsed = parse_script(request.text)
        except ScriptSyntaxError as error:
            raise not_recognized(command_word(request.text)) from error
        if isinstance(parsed, Call):
            self._command(parsed.name, parsed.parameters, sink)
        elif _same(parsed, _LANGUAGE_MODE):
            sink.output(obstacles.language_mode)
        # Any other variable is null here, and null puts out nothing.

    def _command(self, name: str, parameters: Sequence[tuple[str, object]], sink: Sink) -> None:
        cmdlet = CMDLETS.get(name.lower())
        if cmdlet is None:
            raise not_recognized(name)
        delay = self._machine.host.read().obstacles.delays_s.get(cmdlet.name, 0.0)
        if delay:
            sink.pause(delay)
        given = sink.wait_for_input()
        for value in given if given is not None else (None,):
            bound = parameters
            if given is not None:
                bound = (*parameters, (cmdlet.pipeline, value)) if cmdlet.pipeline else parameters
            call, action = cmdlet.bind(bound, self._machine, sink.streams)
            if given is not None and not cmdlet.pipeline:
                raise CmdletError(
                    "The input object cannot be bound to any parameters for the command either "
                    "because the command does not take pipeline input or the input and its "
                    "properties do not match any of the parameters that take pipeline input.",
                    id=f"InputObjectNotBound,{cmdlet.name}",
                    category="InvalidArgument",
                    reason="ParameterBindingException",
                    terminating=True,
                )
            try:
                for output in cmdlet.run(call):
                    sink.output(output)
            except CmdletError as error:
                if error.terminating or action == "Stop":
                    raise
                if action == "Continue":
                    sink.error(error)


def _same(reference: Reference, names: Sequence[str]) -> bool:
    return [name.lower() for name in reference.names] == [name.lower() for name in names]


class PsrpHandler:
    """Serves PowerShell endpoints (session configurations) of one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def attach(self, control: HostControl) -> None:
        """Learn which endpoint this is."""
        self._machine.host.attach(control)

    def handles(self, resource_uri: str) -> bool:
        """Return whether that is a session configuration."""
        return resource_uri.lower().startswith(URI_PREFIX)

    def open_shell(self, operation: Operation, shell: ShellContext) -> tuple[PsrpSession, str]:
        """Return a runspace pool, opened by the client's first messages."""
        configuration = operation.resource_uri[len(URI_PREFIX) :]
        if configuration.lower() != "microsoft.powershell":
            raise faults.invalid_resource(operation.resource_uri)
        session = PsrpSession(RunspaceServer(CommandRunner(self._machine)))
        creation = next(operation.body.iter(_CREATION), None)
        if creation is None:
            raise faults.invalid_parameter()
        session.begin(_decoded(creation))
        return session, ""

    def answer(self, operation: Operation) -> str:
        """Refuse: there is nothing to get outside of a shell."""
        raise faults.action_not_supported(operation.action)

    def enumerate(self, operation: Operation) -> Sequence[str]:
        """Refuse: the endpoint lists shells itself."""
        raise faults.action_not_supported(operation.action)

    def rebooted(self, boot: Boot) -> None:
        """Let the host boot."""
        self._machine.host.rebooted(boot)


class PsrpSession:
    """One runspace pool in its shell."""

    def __init__(self, server: RunspaceServer) -> None:
        self._server = server

    @property
    def running(self) -> int:
        """How many pipelines have not ended."""
        return self._server.running

    def begin(self, data: bytes) -> None:
        """Take the messages that open the pool. Raises WsmanFault."""
        try:
            self._server.feed(data)
        except ProtocolError as error:
            raise faults.invalid_parameter() from error

    def command(self, operation: Operation) -> str:
        """Create a pipeline from the fragments in the command's argument."""
        line = operation.body.find("rsp:CommandLine", NAMESPACES)
        if line is None:
            raise faults.invalid_parameter()
        pipeline_id = _uuid(line.get("CommandId")) or uuid.uuid4()
        data = b"".join(_decoded(each) for each in line.findall("rsp:Arguments", NAMESPACES))
        try:
            self._server.create_pipeline(pipeline_id, data)
        except ProtocolError as error:
            raise faults.invalid_parameter() from error
        return (
            f"<rsp:CommandResponse><rsp:CommandId>{_spelled(pipeline_id)}</rsp:CommandId>"
            "</rsp:CommandResponse>"
        )

    def send(self, operation: Operation) -> str:
        """Take fragments for the pool or a pipeline."""
        for stream in operation.body.findall("rsp:Send/rsp:Stream", NAMESPACES):
            try:
                self._server.feed(_decoded(stream))
            except ProtocolError as error:
                raise faults.invalid_parameter() from error
        return "<rsp:SendResponse/>"

    def receive(self, operation: Operation) -> str:
        """Wait for fragments of the pool, or of the pipeline that is named."""
        desired = operation.body.find("rsp:Receive/rsp:DesiredStream", NAMESPACES)
        if desired is None:
            raise faults.invalid_parameter()
        pipeline_id = _uuid(desired.get("CommandId"))
        try:
            received = self._server.receive(
                pipeline_id,
                limit=operation.payload_limit,
                wait=lambda: operation.seconds_left,
            )
        except KeyError as error:
            raise faults.command_missing() from error
        if received is None:
            if operation.seconds_left > 0:
                raise faults.operation_aborted()
            raise faults.timed_out()
        fragments, done = received
        named = f' CommandId="{_spelled(pipeline_id)}"' if pipeline_id else ""
        parts = [
            f'<rsp:Stream Name="stdout"{named}>{base64.b64encode(each).decode()}</rsp:Stream>'
            for each in fragments
        ]
        if done:
            parts.append(
                f'<rsp:CommandState{named} State="{SHELL_URI}/CommandState/Done">'
                "</rsp:CommandState>"
            )
        return f"<rsp:ReceiveResponse>{''.join(parts)}</rsp:ReceiveResponse>"

    def signal(self, operation: Operation) -> str:
        """Stop a pipeline, or end and forget it."""
        described = operation.body.find("rsp:Signal", NAMESPACES)
        pipeline_id = None if described is None else _uuid(described.get("CommandId"))
        if described is None or pipeline_id is None:
            raise faults.invalid_parameter()
        code = described.findtext("rsp:Code", "", NAMESPACES).strip().lower()
        try:
            if code.endswith(_STOP):
                self._server.stop(pipeline_id)
            else:
                self._server.remove(pipeline_id)
        except KeyError as error:
            raise faults.command_missing() from error
        return "<rsp:SignalResponse/>"

    def other(self, operation: Operation) -> str:
        """Refuse: a pool here does not outlive its connection's client (no Disconnect)."""
        raise faults.action_not_supported(operation.action)

    def close(self) -> None:
        """Stop all pipelines; may be called again."""
        self._server.close()


def _decoded(element: ET.Element) -> bytes:
    try:
        return base64.b64decode(element.text or "", validate=False)
    except binascii.Error as error:
        raise faults.invalid_parameter() from error


def _uuid(text: str | None) -> uuid.UUID | None:
    if not text:
        return None
    try:
        return uuid.UUID(text)
    except ValueError as error:
        raise faults.command_missing() from error


def _spelled(pipeline_id: uuid.UUID) -> str:
    """Return the id as Windows spells it: clients compare text."""
    return str(pipeline_id).upper()

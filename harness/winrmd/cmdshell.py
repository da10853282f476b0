"""WinRS shells: `cmd.exe` command lines as real processes behind Command, Send, Receive, Signal.

Source: [MS-WSMV] 3.1.4.1.28 to 3.1.4.1.34, recorded exchanges.
"""

from __future__ import annotations

import base64
import binascii
import functools
import os
import threading
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from harness.winrmd import faults
from harness.winrmd.boots import Boot
from harness.winrmd.cmdexe import CmdExe, HostSide
from harness.winrmd.codepages import codec_of
from harness.winrmd.config import EndpointConfig, Quotas
from harness.winrmd.environment import WindowsEnvironment
from harness.winrmd.paths import HostPaths
from harness.winrmd.processes import Descriptors, Job, Received, RunningCommand
from harness.winrmd.programs import Program, ProgramTable, real_programs
from harness.winrmd.resources import HostControl, Operation, ShellContext, ShellSession
from harness.winrmd.soap import CMD_URI, NAMESPACES, SHELL_URI

_DEFAULT_CODE_PAGE: Final = "437"
_STATE: Final = SHELL_URI + "/CommandState/"


class CmdSession:
    """The commands of one WinRS shell."""

    def __init__(
        self,
        host: HostSide,
        *,
        directory: Path,
        environment: WindowsEnvironment,
        quotas: Callable[[], Quotas],
        hold_s: Callable[[], float],
    ) -> None:
        self._host = host
        self._directory = directory
        self._environment = environment
        self._quotas = quotas
        self._hold_s = hold_s
        self._commands: dict[str, RunningCommand] = {}
        self._lock = threading.Lock()
        self._closed = False

    @property
    def running(self) -> int:
        """How many commands have not ended."""
        return sum(command.running for command in tuple(self._commands.values()))

    def command(self, operation: Operation) -> str:
        """Start a command line."""
        described = operation.body.find("rsp:CommandLine", NAMESPACES)
        if described is None:
            raise faults.invalid_parameter()
        words = [described.findtext("rsp:Command", "", NAMESPACES)]
        words += [word.text or "" for word in described.findall("rsp:Arguments", NAMESPACES)]
        line = " ".join(words)
        if not line.strip():
            raise faults.invalid_parameter()
        command_id = _identity(described.get("CommandId"))
        skip_cmd = operation.option("WINRS_SKIP_CMD_SHELL").upper() in ("TRUE", "1")
        body = functools.partial(self._run, line, self._direct(line) if skip_cmd else None)
        command = RunningCommand(command_id, body)
        with self._lock:
            if self._closed:
                raise faults.operation_aborted()
            if command_id in self._commands:
                raise faults.already_exists()
            limit = self._quotas().max_processes_per_shell
            if self.running >= limit:
                raise faults.too_many_processes(limit)
            command.start()
            self._commands[command_id] = command
        return (
            f"<rsp:CommandResponse><rsp:CommandId>{command_id}</rsp:CommandId>"
            "</rsp:CommandResponse>"
        )

    def _cmd(self, job: Job) -> CmdExe:
        return CmdExe(self._host, self._environment.copy(), self._directory, job)

    def _direct(self, line: str) -> Program:
        """Return the program of a line that no cmd.exe reads: CreateProcess fails at once."""
        program = self._cmd(Job()).find_program(line)
        if program is None:
            raise faults.file_not_found()
        return program

    def _run(self, line: str, direct: Program | None, io: Descriptors, job: Job) -> int:
        cmd = self._cmd(job)
        if direct is not None:
            return cmd.run_program(direct, line, io)
        return cmd.run_command_line(line, io)

    def _find(self, command_id: str | None) -> RunningCommand:
        if not command_id:
            raise faults.invalid_parameter()
        command = self._commands.get(command_id.upper())
        if command is None:
            raise faults.command_missing()
        return command

    def send(self, operation: Operation) -> str:
        """Write to the standard input of a command."""
        streams = operation.body.findall("rsp:Send/rsp:Stream", NAMESPACES)
        if not streams:
            raise faults.invalid_parameter()
        for stream in streams:
            command = self._find(stream.get("CommandId"))
            try:
                data = base64.b64decode("".join((stream.text or "").split()), validate=True)
            except binascii.Error:
                raise faults.invalid_parameter() from None
            end = stream.get("End", "").lower() in ("true", "1")
            command.send(data, end=end, deadline=operation.deadline)
        return "<rsp:SendResponse/>"

    def receive(self, operation: Operation) -> str:
        """Wait for output of a command, or its end."""
        desired = operation.body.find("rsp:Receive/rsp:DesiredStream", NAMESPACES)
        if desired is None:
            raise faults.invalid_parameter()
        command = self._find(desired.get("CommandId"))
        received = command.receive(
            (desired.text or "stdout stderr").split(),
            limit=operation.payload_limit,
            deadline=operation.deadline,
            hold_s=self._hold_s(),
        )
        return _receive_response(command.command_id, received)

    def signal(self, operation: Operation) -> str:
        """Interrupt a command (ctrl_c, ctrl_break), or end it and forget it (terminate)."""
        described = operation.body.find("rsp:Signal", NAMESPACES)
        if described is None:
            raise faults.invalid_parameter()
        command = self._find(described.get("CommandId"))
        code = described.findtext("rsp:Code", "", NAMESPACES).strip().lower()
        # Both spellings are in use: signal/terminate and signal/Terminate, powershell/signal/…
        match code.rsplit("/", 1)[-1]:
            case "terminate":
                with self._lock:
                    self._commands.pop(command.command_id, None)
                command.close()
            case "ctrl_c" | "ctrl_break":
                command.job.interrupt()
            case _:
                raise faults.invalid_parameter()
        return "<rsp:SignalResponse/>"

    def other(self, operation: Operation) -> str:
        """Refuse: a WinRS shell can be neither disconnected nor connected to."""
        raise faults.action_not_supported(operation.action)

    def close(self) -> None:
        """Kill every command and forget it."""
        with self._lock:
            self._closed = True
            commands = tuple(self._commands.values())
            self._commands.clear()
        for command in commands:
            command.close()


def _identity(given: str | None) -> str:
    try:
        return str(uuid.UUID(given) if given else uuid.uuid4()).upper()
    except ValueError:
        raise faults.invalid_parameter() from None


def _receive_response(command_id: str, received: Received) -> str:
    parts = ["<rsp:ReceiveResponse>"]
    for chunk in received.chunks:
        end = ' End="true"' if chunk.end else ""
        parts.append(
            f'<rsp:Stream Name="{chunk.stream}" CommandId="{command_id}"{end}>'
            f"{base64.b64encode(chunk.data).decode()}</rsp:Stream>"
        )
    if received.exit_code is None:
        parts.append(
            f'<rsp:CommandState CommandId="{command_id}" State="{_STATE}Running">'
            "</rsp:CommandState>"
        )
    else:
        parts.append(
            f'<rsp:CommandState CommandId="{command_id}" State="{_STATE}Done">'
            f"<rsp:ExitCode>{received.exit_code}</rsp:ExitCode></rsp:CommandState>"
        )
    parts.append("</rsp:ReceiveResponse>")
    return "".join(parts)


class CmdShells:
    """The resource `…/windows/shell/cmd`: makes WinRS shells."""

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        # Paths of the root are compared with paths that programs resolved: resolve it too.
        self._paths = HostPaths(config.root.resolve())
        programs = {**real_programs(), **config.programs}
        self._host = HostSide(
            paths=self._paths,
            programs=ProgramTable(programs),
            machine=config.machine,
            user="",
            code_page="utf-8",
            system_path=os.environ.get("PATH", os.defpath),
            shutdown=self._shutdown,
        )
        self._control: HostControl | None = None

    def attach(self, control: HostControl) -> None:
        """Learn which endpoint this is."""
        self._control = control

    def _attached(self) -> HostControl:
        assert self._control is not None, "the server attaches its handlers before it listens"
        return self._control

    def _shutdown(self, after_s: float, kind: str) -> None:
        if kind == "r":
            self._attached().reboot(after_s=after_s)
        else:
            self._attached().power_off(after_s=after_s)

    def handles(self, resource_uri: str) -> bool:
        """Return whether that is the cmd shell, whatever its case."""
        return resource_uri.lower() == CMD_URI.lower()

    def open_shell(self, operation: Operation, shell: ShellContext) -> tuple[ShellSession, str]:
        """Return a session in the working directory and with the variables of the request."""
        described = operation.body.find("rsp:Shell", NAMESPACES)
        if described is None:
            raise faults.invalid_parameter()
        code_page = operation.option("WINRS_CODEPAGE", _DEFAULT_CODE_PAGE)
        try:
            codec = codec_of(code_page)
        except LookupError:
            raise faults.invalid_parameter() from None
        environment = WindowsEnvironment(shell.environment)
        for name, value in _variables(described).items():
            environment.set(name, value)
        wanted = described.findtext("rsp:WorkingDirectory", "", NAMESPACES)
        directory = self._paths.local(wanted or environment.get("USERPROFILE", "C:\\"))
        if directory is None or not directory.is_dir():
            raise faults.directory_invalid()
        control = self._attached()
        session = CmdSession(
            replace(self._host, user=operation.user, code_page=codec),
            directory=directory,
            environment=environment,
            quotas=lambda: control.quotas,
            hold_s=lambda: self._config.knobs.output_hold_s,
        )
        return session, ""

    def answer(self, operation: Operation) -> str:
        """Refuse: there is nothing but shells."""
        raise faults.action_not_supported(operation.action)

    def enumerate(self, operation: Operation) -> Sequence[str]:
        """Refuse: shells are enumerated by the endpoint."""
        raise faults.action_not_supported(operation.action)

    def rebooted(self, boot: Boot) -> None:
        """Nothing is kept that a reboot would end."""


def _variables(described: ET.Element) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for variable in described.findall("rsp:Environment/rsp:Variable", NAMESPACES):
        name = variable.get("Name", "")
        if not name or "=" in name or "\0" in name:
            raise faults.invalid_parameter()
        found[name] = variable.text or ""
    return found

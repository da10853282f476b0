"""A small cmd.exe: runs one command line with real processes, and answers its built-ins itself.

Not emulated: batch files, `for`, delayed expansion, `dir`, wildcards. Text of cmd.exe ends its
lines with CR LF and is encoded in the shell's code page; what a real process writes is its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from harness.winrmd import cmdbuiltins
from harness.winrmd.cmdline import (
    MAX_COMMAND_LINE,
    CmdSyntaxError,
    Group,
    Joined,
    Node,
    Redirection,
    Simple,
    expand_variables,
    parse_line,
    split_argv,
    strip_outer_quotes,
)
from harness.winrmd.environment import WindowsEnvironment
from harness.winrmd.paths import HostPaths
from harness.winrmd.processes import CONTROL_C_EXIT, Descriptors, Job, JobEndedError
from harness.winrmd.programs import Program, ProgramCall, ProgramTable

_WORD: Final = re.compile(r'\s*((?:"[^"]*"?|[^\s"])+)')
# A built-in's name ends where a letter cannot follow: `echo.`, `cd\`, `echo(`.
_BUILTIN: Final = re.compile(r"\s*@?([A-Za-z]+)(?=$|[\s./\\(:;,=+\[\]\"])(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class HostSide:
    """What a command line sees of its host: `code_page` is a codec name of Python's."""

    paths: HostPaths
    programs: ProgramTable
    machine: str
    user: str
    code_page: str
    system_path: str  # PATH of this machine: what real processes need to find their own tools
    shutdown: Callable[[float, str], None]  # seconds from now, and the kind: `r` or `s`


@dataclass(slots=True)
class CmdExe:
    """One cmd.exe: its variables, its current directory and its last exit code change."""

    host: HostSide
    environment: WindowsEnvironment
    directory: Path
    job: Job
    errorlevel: int = 0
    echo: bool = field(default=True)

    def run_command_line(self, line: str, io: Descriptors) -> int:
        """Run `cmd /c LINE` and return its exit code (unsigned)."""
        if len(line) > MAX_COMMAND_LINE:
            self.write(io.stderr, "The command line is too long.\n")
            return 1
        line = strip_outer_quotes(line.strip(), self._names_program)
        try:
            return self.run(line, io)
        except cmdbuiltins.ExitRequest as leaving:
            return leaving.code & 0xFFFFFFFF
        except BrokenPipeError:
            return CONTROL_C_EXIT if self.job.ending.is_set() else 1
        except JobEndedError:
            return CONTROL_C_EXIT

    def run(self, line: str, io: Descriptors) -> int:
        """Expand, parse and run a line. Raises ExitRequest when it says `exit`."""
        try:
            node = parse_line(expand_variables(line, self.variable))
        except CmdSyntaxError as error:
            self.write(io.stderr, f"{error}\n")
            self.errorlevel = 1
            return 1
        return self._node(node, io)

    def variable(self, name: str) -> str | None:
        """Return the value of a variable, of the dynamic ones too; None if there is none."""
        found = self.environment.get(name)
        if found is not None:
            return found
        match name.upper():
            case "CD":
                return self.current_directory()
            case "ERRORLEVEL":
                return str(self.errorlevel)
            case _:
                return None

    def current_directory(self) -> str:
        """Return the current directory as Windows names it."""
        return self.host.paths.windows(self.directory)

    def write(self, descriptor: int, text: str) -> None:
        """Write text of cmd.exe: CR LF, in the code page. Raises BrokenPipeError."""
        lines = text.replace("\r\n", "\n").replace("\n", "\r\n")
        data = memoryview(lines.encode(self.host.code_page, errors="replace"))
        while data:
            data = data[os.write(descriptor, data) :]

    def copy(self) -> CmdExe:
        """Return a cmd.exe of its own in the same place, as a nested one or a pipe has."""
        return replace(self, environment=self.environment.copy())

    def _names_program(self, name: str) -> bool:
        return self._find(name) is not None

    def _node(self, node: Node, io: Descriptors) -> int:
        if self.job.ending.is_set():
            raise JobEndedError("the job was ended")
        match node:
            case Joined("|", left, right):
                code = self._pipe(left, right, io)
            case Joined(operator, left, right):
                code = self._node(left, io)
                if operator == "&" or (operator == "&&") == (code == 0):
                    code = self._node(right, io)
            case Group(inner, redirections) | Simple(inner, redirections):
                code = self._redirected(inner, redirections, io)
        self.errorlevel = code
        return code

    def _pipe(self, left: Node, right: Node, io: Descriptors) -> int:
        read, write = os.pipe()

        def feed() -> None:
            try:
                with contextlib.suppress(cmdbuiltins.ExitRequest, BrokenPipeError, JobEndedError):
                    self.copy()._node(left, replace(io, stdout=write))
            finally:
                os.close(write)

        feeder = threading.Thread(target=feed, name="winrm pipe", daemon=True)
        feeder.start()
        try:
            code = self.copy()._node(right, replace(io, stdin=read))
        except cmdbuiltins.ExitRequest as leaving:
            code = leaving.code
        finally:
            os.close(read)
            feeder.join()
        return code

    def _redirected(
        self, inner: Node | str, redirections: tuple[Redirection, ...], io: Descriptors
    ) -> int:
        opened: list[int] = []
        try:
            for redirection in redirections:
                try:
                    io = self._redirect(redirection, io, opened)
                except OSError as error:
                    self.write(io.stderr, _why(error) + "\n")
                    return 1
            return self._simple(inner, io) if isinstance(inner, str) else self._node(inner, io)
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def _redirect(
        self, redirection: Redirection, io: Descriptors, opened: list[int]
    ) -> Descriptors:
        if redirection.kind == ">&":
            source = {"0": io.stdin, "1": io.stdout, "2": io.stderr}.get(redirection.target)
            if source is None:
                raise OSError("bad descriptor")
        else:
            target = self.host.paths.local(redirection.target, directory=self.directory)
            if redirection.target.lower() == "nul":
                target = Path(os.devnull)
            if target is None:
                raise FileNotFoundError(redirection.target)
            flags = {
                "<": os.O_RDONLY,
                ">": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
                ">>": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
            }[redirection.kind]
            source = os.open(target, flags, 0o666)
            opened.append(source)
        match redirection.descriptor:
            case 0:
                return replace(io, stdin=source)
            case 1:
                return replace(io, stdout=source)
            case 2:
                return replace(io, stderr=source)
            case _:  # handles 3 to 9 may be named and are given to nobody
                return io

    def _simple(self, text: str, io: Descriptors) -> int:
        match = _BUILTIN.match(text)
        if match is not None:
            builtin = cmdbuiltins.BUILTINS.get(match[1].lower())
            if builtin is not None and not match[2].lower().startswith(".exe"):
                return builtin(self, match[2], io)
        word = _WORD.match(text.removeprefix("@"))
        if word is None:
            return 0
        name = word[1].replace('"', "")
        tool = name.lower().rsplit("\\", 1)[-1].removesuffix(".exe")
        if tool in cmdbuiltins.TOOLS:
            rest = text.removeprefix("@")[word.end() :]
            return cmdbuiltins.BUILTINS[tool](self, rest, io)
        program = self._find(name)
        if program is None:
            self.write(
                io.stderr,
                f"'{word[1]}' is not recognized as an internal or external command,\n"
                "operable program or batch file.\n",
            )
            return 1
        return self.run_program(program, text.strip(), io)

    def _find(self, name: str) -> Program | None:
        return self.host.programs.find(
            name,
            paths=self.host.paths,
            directory=self.directory,
            search=self.environment.get("PATH", ""),
        )

    def find_program(self, line: str) -> Program | None:
        """Return what the first word of a command line runs, without cmd.exe's built-ins."""
        argv = split_argv(line)
        return self._find(argv[0]) if argv else None

    def run_program(
        self, program: Program, line: str, io: Descriptors, *, wait: bool = True
    ) -> int:
        """Run a program with the arguments of that line and return its exit code."""
        argv = split_argv(line)
        if callable(program):
            return program(
                ProgramCall(
                    argv=argv,
                    line=line,
                    descriptors=io,
                    environment=self.environment,
                    directory=self.directory,
                    paths=self.host.paths,
                    job=self.job,
                    user=self.host.user,
                )
            )
        arguments = argv[1:]
        if re.fullmatch(r"(?i)(.*[\\/])?py(\.exe)?", argv[0]):
            # The launcher's own switches choose a version: here there is one.
            while arguments and re.fullmatch(r"-3(\.\d+)?(-64)?|-V:\S+", arguments[0]):
                arguments = arguments[1:]
        try:
            process = self.job.start(
                [*program, *map(self.host.paths.translate, arguments)],
                directory=self.directory,
                environment=self.local_environment(),
                descriptors=io,
            )
        except OSError as error:
            self.write(io.stderr, _why(error) + "\n")
            return 1
        return self.job.wait(process) if wait else 0

    def local_environment(self) -> Mapping[str, str]:
        r"""Return the variables for a real process: `C:\` paths become local ones."""
        variables = {
            name: self.host.paths.translate(value)
            for name, value in self.environment.items()
            if name.upper() != "PATH"
        }
        folders = [
            self.host.paths.local(e) for e in self.environment.get("PATH", "").split(";") if e
        ]
        listed = [str(folder) for folder in folders if folder is not None]
        variables["PATH"] = os.pathsep.join([*listed, self.host.system_path])
        variables.setdefault("HOME", variables.get("USERPROFILE", str(self.host.paths.root)))
        variables.setdefault("TMPDIR", variables.get("TEMP", str(self.host.paths.root)))
        variables.setdefault("LANG", "C.UTF-8")
        return variables


def _why(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "The system cannot find the file specified."
    if isinstance(error, NotADirectoryError):
        return "The system cannot find the path specified."
    if isinstance(error, PermissionError | IsADirectoryError):
        return "Access is denied."
    return "The system cannot execute the specified program."

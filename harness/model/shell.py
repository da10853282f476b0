"""Runs programs of the shell's language in a process of the model."""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import contextlib
import errno
import os
import re
import signal
from collections.abc import Iterator, Sequence
from typing import Final

from harness.model.applets import APPLETS, NotPlayed, say
from harness.model.expansion import Expansion
from harness.model.files import Kind
from harness.model.process import Buffer, Ended, Process, Sink, Source, Streams, environment
from harness.model.syntax import (
    AndOr,
    Command,
    For,
    Group,
    If,
    Loop,
    Pipeline,
    Program,
    Redirection,
    Simple,
    SyntaxFailure,
    Word,
    parse,
)

NOT_FOUND: Final = 127
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=")
_BUILTINS: Final = frozenset(
    {":", "true", "false", "cd", "exit", "exec", "trap", "wait", "set", "export", "kill", "eval"}
)


class _Break(Exception):  # noqa: N818 - control flow of the language
    """`break` and `continue`."""

    def __init__(self, *, again: bool) -> None:
        self.again = again


def run_command(process: Process) -> int:
    """Run the process's arguments: a program of its root, found by its PATH. Returns the code."""
    return Shell(process).execute(list(process.argv))


def find_program(process: Process, name: str) -> str | None:
    """Return the path of an executable, as execvp(3) looks it up."""
    folders = [""] if "/" in name else process.env.get("PATH", "/bin").split(":")
    for folder in folders:
        path = os.path.join(folder, name) if folder else name
        node = process.namespace.find(path, cwd=process.cwd)
        if node is not None and node.kind is Kind.FILE and node.mode & 0o111:
            return path
    return None


class _FileSink:
    """Output to a file of the process's namespace."""

    def __init__(self, process: Process, path: str) -> None:
        self._process = process
        self._path = process.namespace.resolve(path, cwd=process.cwd)

    def write(self, data: bytes) -> None:
        with self._process.lock:
            self._process.namespace.write(self._path, data, append=True)


class Shell:
    """A shell in a process: its variables are the environment."""

    def __init__(self, process: Process, arguments: Sequence[str] = ()) -> None:
        self._process = process
        self._arguments = list(arguments)
        self._code = 0
        self._background: Process | None = None
        self._words = Expansion(process, parameter=self._parameter, output_of=self._output_of)

    def run(self, text: str) -> int:
        """Run a text; 2 where it is no program."""
        try:
            return self.program(parse(text))
        except SyntaxFailure as failure:
            say(self._process.streams.stderr, f"sh: {failure}")
            return 2

    def program(self, program: Program) -> int:
        """Run lists in order and return the last code."""
        for item in program.lists:
            self._process.poll()
            if item.background:
                self._start(item)
                self._code = 0
            else:
                self._code = self._and_or(item)
        return self._code

    def execute(self, argv: list[str]) -> int:
        """Run a program with its arguments, not a builtin: the code, 127 if there is none."""
        process = self._process
        with process.lock:
            path = find_program(process, argv[0])
        if path is None:
            say(process.streams.stderr, f"sh: {argv[0]}: not found")
            return NOT_FOUND
        name = os.path.basename(argv[0])
        if name == "busybox" and len(argv) > 1:
            argv = argv[1:]
            name = argv[0]
        if name in ("sh", "ash"):
            return self._shell(argv[1:])
        applet = APPLETS.get(name)
        try:
            if applet is None:
                raise NotPlayed(name)
            return applet(process, argv[1:])
        except NotPlayed as failure:
            say(process.streams.stderr, f"{argv[0]}: the model does not play {failure}")
            return NOT_FOUND

    def _shell(self, arguments: list[str]) -> int:
        flags = arguments.pop(0) if arguments and arguments[0].startswith("-") else ""
        inner = Shell(self._process)
        if "c" in flags:
            text, inner._arguments = arguments[0], arguments[1:]
        elif arguments:
            text = self._process.namespace.read(arguments[0], cwd=self._process.cwd).decode()
            inner._arguments = arguments
        else:
            parts = []
            while data := self._process.streams.stdin.read():
                parts.append(data)
            text = b"".join(parts).decode()
        try:
            return inner.run(text)
        except Ended as ended:
            self._process.poll()
            if self._process.shown_pid == 1 or ended.code > 128:
                raise
            return ended.code

    # -- lists -----------------------------------------------------------------------------------

    def _start(self, item: AndOr) -> None:
        child = self._process.fork()
        inner = Shell(child, self._arguments)
        self._background = child
        child.start(lambda _: inner._and_or(item))

    def _and_or(self, item: AndOr) -> int:
        code = self._pipeline(item.first)
        for operator, pipeline in item.rest:
            if (code == 0) == (operator == "&&"):
                self._process.poll()
                code = self._pipeline(pipeline)
            self._code = code
        return code

    def _pipeline(self, pipeline: Pipeline) -> int:
        source: Source = self._process.streams.stdin
        code = 0
        for number, command in enumerate(pipeline.commands):
            last = number == len(pipeline.commands) - 1
            piped = Buffer()
            with self._streams(source, self._process.streams.stdout if last else piped):
                code = self._command(command)
            source = piped
        return int(not code) if pipeline.negated else code

    @contextlib.contextmanager
    def _streams(self, stdin: Source, stdout: Sink, stderr: Sink | None = None) -> Iterator[None]:
        old = self._process.streams
        self._process.streams = Streams(stdin, stdout, stderr or old.stderr)
        try:
            yield
        finally:
            self._process.streams = old

    # -- commands --------------------------------------------------------------------------------

    def _command(self, command: Command) -> int:
        try:
            with self._redirected(command.redirections):
                match command:
                    case Simple():
                        self._code = self._simple(command)
                    case Group(body=body, subshell=subshell):
                        self._code = self._group(body, subshell=subshell)
                    case Loop():
                        self._code = self._loop(command)
                    case For(name=name, words=words, body=body):
                        self._code = self._for(name, words, body)
                    case If():
                        self._code = self._if(command)
        except BrokenPipeError:
            raise
        except OSError as error:
            say(self._process.streams.stderr, f"sh: {error.filename or ''}: {error.strerror}")
            self._code = 1
        return self._code

    @contextlib.contextmanager
    def _redirected(self, redirections: Sequence[Redirection]) -> Iterator[None]:
        old = self._process.streams
        streams = Streams(old.stdin, old.stdout, old.stderr)
        for redirection in redirections:
            target = "".join(self._words.fields([redirection.target]))
            match redirection.operator:
                case ">&":
                    sink = streams.stdout if target == "1" else streams.stderr
                case "<":
                    with self._process.lock:
                        data = self._process.namespace.read(target, cwd=self._process.cwd)
                    streams.stdin = Buffer(data)
                    continue
                case ">" | ">>" as operator:
                    with self._process.lock:
                        self._process.namespace.write(
                            target, b"", cwd=self._process.cwd, append=operator == ">>"
                        )
                    sink = _FileSink(self._process, target)
                case operator:
                    raise OSError(errno.ENOSYS, f"the model does not play {operator}")
            if redirection.number == 1:
                streams.stdout = sink
            else:
                streams.stderr = sink
        self._process.streams = streams
        try:
            yield
        finally:
            self._process.streams = old

    def _simple(self, command: Simple) -> int:
        words = list(command.words)
        assignments: dict[str, str] = {}
        while words and words[0].parts and not words[0].parts[0][1]:
            match = _ASSIGNMENT.match(words[0].parts[0][0])
            if match is None:
                break
            value = Word(((words[0].parts[0][0][match.end() :], ""), *words[0].parts[1:]))
            assignments[match[1]] = self._words.text(value)
            words.pop(0)
        argv = self._words.fields(words)
        if not argv:
            self._process.env.update(assignments)
            return 0
        old = dict(self._process.env)
        self._process.env.update(assignments)
        try:
            if argv[0] in _BUILTINS:
                return self._builtin(argv[0], argv[1:])
            if argv[0] in ("break", "continue"):
                raise _Break(again=argv[0] == "continue")
            if argv[0] in APPLETS and argv[0] in ("echo", "printf", "test", "["):
                return APPLETS[argv[0]](self._process, argv[1:])
            return self.execute(argv)
        finally:
            for name in assignments:
                self._process.env.pop(name, None)
                if name in old:
                    self._process.env[name] = old[name]

    def _group(self, body: Program, *, subshell: bool) -> int:
        if not subshell:
            return self.program(body)
        child = self._process.fork()
        inner = Shell(child, self._arguments)
        child.start(lambda _: inner.program(body))
        self._process.pause(None, until=child)
        code = child.wait()
        assert code is not None, "waited without a timeout"
        return code

    def _loop(self, loop: Loop) -> int:
        code = 0
        while (self.program(loop.condition) == 0) != loop.until:
            self._process.poll()
            try:
                code = self.program(loop.body)
            except _Break as stop:
                if not stop.again:
                    break
        return code

    def _for(self, name: str, words: Sequence[Word], body: Program) -> int:
        code = 0
        for value in self._words.fields(words):
            self._process.poll()
            self._process.env[name] = value
            try:
                code = self.program(body)
            except _Break as stop:
                if not stop.again:
                    break
        return code

    def _if(self, command: If) -> int:
        for condition, body in command.branches:
            if self.program(condition) == 0:
                return self.program(body)
        return self.program(command.otherwise)

    def _builtin(self, name: str, arguments: list[str]) -> int:
        process = self._process
        match name:
            case "cd":
                path = process.namespace.resolve(arguments[0], cwd=process.cwd)
                process.namespace.names(path)
                process.cwd = path
            case "exit":
                raise Ended(int(arguments[0]) if arguments else self._code)
            case "exec":
                raise Ended(self.execute(arguments))
            case "trap":
                self._trap(arguments)
            case "wait":
                return self._wait(arguments)
            case "kill":
                return self._kill(arguments)
            case "eval":
                return self.run(" ".join(arguments))
            case "export":
                process.env.update(environment(arguments))
        return int(name == "false")

    def _trap(self, arguments: Sequence[str]) -> None:
        text, *names = arguments
        for name in names:
            number = _signal_number(name)
            if text == "-":
                self._process.traps.pop(number, None)
            else:
                self._process.traps[number] = lambda: (self.run(text), None)[1]

    def _wait(self, arguments: Sequence[str]) -> int:
        children = self._process.children
        wanted = [c for c in children if not arguments or str(c.pid) in arguments]
        code = 0
        for child in wanted:
            if not self._process.pause(None, until=child):
                return 128 + signal.SIGTERM
            code = child.wait() or 0
            self._process.children.remove(child)
        return code

    def _kill(self, arguments: list[str]) -> int:
        number = signal.SIGTERM
        if arguments and arguments[0].startswith("-"):
            number = signal.Signals(_signal_number(arguments.pop(0)[1:]))
        for child in self._process.children:
            if str(child.pid) in arguments:
                child.signal(number)
        return 0

    # -- what words stand for ----------------------------------------------------------------------

    def _parameter(self, name: str) -> str:
        match name:
            case "?":
                return str(self._code)
            case "!":
                return str(self._background.pid) if self._background else ""
            case "$":
                return str(self._process.shown_pid)
            case "@" | "*":
                return " ".join(self._arguments[1:])
        if name.isdigit():
            index = int(name)
            return self._arguments[index] if index < len(self._arguments) else ""
        return self._process.env.get(name, "")

    def _output_of(self, text: str) -> str:
        captured = Buffer()
        with self._streams(self._process.streams.stdin, captured):
            self._code = Shell(self._process, self._arguments).run(text)
        return captured.data.decode(errors="replace").rstrip("\n")


def _signal_number(name: str) -> int:
    if name.isdigit():
        return int(name)
    return signal.Signals[f"SIG{name.removeprefix('SIG')}"].value

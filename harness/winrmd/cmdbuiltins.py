"""The built-in commands of cmd.exe with their texts, and the few tools that every host has."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from harness.winrmd.cmdline import split_argv
from harness.winrmd.codepages import code_page_number
from harness.winrmd.processes import Descriptors

if TYPE_CHECKING:
    from harness.winrmd.cmdexe import CmdExe

Builtin = Callable[["CmdExe", str, Descriptors], int]

_SYNTAX: Final = "The syntax of the command is incorrect.\n"
_NO_PATH: Final = "The system cannot find the path specified.\n"
_NO_FILE: Final = "The system cannot find the file specified.\n"
_VERSION: Final = "\nMicrosoft Windows [Version 10.0.20348.2227]\n"


class ExitRequest(Exception):  # noqa: N818 - `exit` is no error
    """`exit` was run; `code` is its exit code (any int)."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit {code}")
        self.code = code


def _echo(cmd: CmdExe, rest: str, io: Descriptors) -> int:
    if rest[:1] in (".", "(", ":", "/", "\\", ",", ";", "=", "+", "[", "]"):
        cmd.write(io.stdout, rest[1:] + "\n")
        return 0
    word = rest.strip().lower()
    if word in ("on", "off"):
        cmd.echo = word == "on"
    elif not word:
        cmd.write(io.stdout, f"ECHO is {'on' if cmd.echo else 'off'}.\n")
    else:
        cmd.write(io.stdout, rest[1:] + "\n")
    return 0


def _set(cmd: CmdExe, rest: str, io: Descriptors) -> int:
    text = rest.lstrip()
    if re.match(r"/[aApP]\b", text):
        cmd.write(io.stderr, _SYNTAX)
        return 1
    if text.startswith('"'):
        text = text[1 : text.rfind('"')] if text.count('"') > 1 else text[1:]
    name, equals, value = text.partition("=")
    if equals:
        if not name:
            cmd.write(io.stderr, _SYNTAX)
            return 1
        cmd.environment.set(name, value)
        return 0
    prefix = name.strip().lower()
    found = [n for n in cmd.environment if n.lower().startswith(prefix)]
    if not found and prefix:
        cmd.write(io.stderr, f"Environment variable {name.strip()} not defined\n")
        return 1
    for n in sorted(found, key=str.upper):
        cmd.write(io.stdout, f"{n}={cmd.environment[n]}\n")
    return 0


def _cd(cmd: CmdExe, rest: str, io: Descriptors) -> int:
    target = re.sub(r"^\s*/[dD]\b", "", rest).strip().replace('"', "")
    if not target:
        cmd.write(io.stdout, cmd.current_directory() + "\n")
        return 0
    found = cmd.host.paths.local(target, directory=cmd.directory)
    if found is None or not found.is_dir():
        cmd.write(io.stderr, _NO_PATH)
        return 1
    cmd.directory = found
    return 0


def _exit(cmd: CmdExe, rest: str, _io: Descriptors) -> int:
    number = re.sub(r"^\s*/[bB]\b", "", rest).strip()
    match = re.match(r"[-+]?\d+", number)
    raise ExitRequest(cmd.errorlevel if not number else int(match[0]) if match else 0)


def _type(cmd: CmdExe, rest: str, io: Descriptors) -> int:
    code = 0
    for name in split_argv("type " + rest)[1:]:
        found = cmd.host.paths.local(name, directory=cmd.directory)
        if found is None or not found.is_file():
            cmd.write(io.stderr, _NO_FILE)
            code = 1
            continue
        with found.open("rb") as source, open(io.stdout, "wb", closefd=False) as out:
            shutil.copyfileobj(source, out)
    return code


def _mkdir(cmd: CmdExe, rest: str, io: Descriptors) -> int:
    names = split_argv("md " + rest)[1:]
    if not names:
        cmd.write(io.stderr, _SYNTAX)
        return 1
    for name in names:
        found = cmd.host.paths.local(name, directory=cmd.directory)
        if found is None:
            cmd.write(io.stderr, _NO_PATH)
            return 1
        if found.exists():
            cmd.write(io.stderr, f"A subdirectory or file {name} already exists.\n")
            return 1
        found.mkdir(parents=True)
    return 0


def _rmdir(cmd: CmdExe, rest: str, io: Descriptors) -> int:
    words = split_argv("rd " + rest)[1:]
    whole = any(word.lower() == "/s" for word in words)
    for name in (word for word in words if word.lower() not in ("/s", "/q")):
        found = cmd.host.paths.local(name, directory=cmd.directory)
        if found is None or not found.is_dir() or found == cmd.host.paths.root:
            cmd.write(io.stderr, _NO_FILE)
            return 2
        if not whole and any(found.iterdir()):
            cmd.write(io.stderr, "The directory is not empty.\n")
            return 145
        shutil.rmtree(found)
    return 0


def _del(cmd: CmdExe, rest: str, io: Descriptors) -> int:
    words = split_argv("del " + rest)[1:]
    for name in (word for word in words if not re.fullmatch(r"/[fqspFQSP]", word)):
        found = cmd.host.paths.local(name, directory=cmd.directory)
        if found is None or not found.is_file():
            # `del` of what is not there says so and still succeeds.
            windows = name if found is None else cmd.host.paths.windows(found)
            cmd.write(io.stderr, f"Could Not Find {windows}\n")
            continue
        found.unlink()
    return 0


def _if(cmd: CmdExe, rest: str, io: Descriptors) -> int:
    match = re.match(
        r"\s*(?P<i>/[iI]\s+)?(?P<not>not\s+)?"
        r"(?:exist\s+(?P<path>\"[^\"]*\"|\S+)"
        r"|errorlevel\s+(?P<level>\d+)"
        r"|defined\s+(?P<name>\S+)"
        r"|(?P<left>\"[^\"]*\"|[^\s=]+)\s*==\s*(?P<right>\"[^\"]*\"|\S+))\s+(?P<then>.*)",
        rest,
        re.DOTALL | re.IGNORECASE,
    )
    if match is None:
        cmd.write(io.stderr, _SYNTAX)
        return 1
    if match["path"] is not None:
        found = cmd.host.paths.local(match["path"].replace('"', ""), directory=cmd.directory)
        holds = found is not None and found.exists()
    elif match["level"] is not None:
        holds = cmd.errorlevel >= int(match["level"])
    elif match["name"] is not None:
        holds = cmd.variable(match["name"]) is not None
    else:
        left, right = match["left"], match["right"]
        holds = left.lower() == right.lower() if match["i"] else left == right
    if holds == (match["not"] is not None):
        return 0
    return cmd.run(match["then"], io)


def _cmd(cmd: CmdExe, rest: str, io: Descriptors) -> int:
    """Run a nested cmd.exe: `cmd [/d /s /q …] /c LINE`."""
    match = re.match(r"\s*(?:/[a-bd-jl-zA-BD-JL-Z](?::\w+)?\s*)*/[cCkK]\s*(.*)", rest, re.DOTALL)
    if match is None:
        return 0  # an interactive one, whose input is at its end
    return cmd.copy().run_command_line(match[1], io)


def _call(cmd: CmdExe, rest: str, io: Descriptors) -> int:
    return cmd.run(rest, io)


def _start(cmd: CmdExe, rest: str, io: Descriptors) -> int:
    """Start a program and do not wait: `start ["TITLE"] [/b …] PROGRAM …`."""
    line = re.sub(r'^\s*("[^"]*"\s+)?(/[A-Za-z]+(\s+|$))*', "", rest)
    program = cmd.find_program(line)
    if program is None:
        cmd.write(io.stderr, _NO_FILE)
        return 1
    return cmd.run_program(program, line, io, wait=False)


def _ver(cmd: CmdExe, _rest: str, io: Descriptors) -> int:
    cmd.write(io.stdout, _VERSION)
    return 0


def _nothing(_cmd: CmdExe, _rest: str, _io: Descriptors) -> int:
    return 0


def _hostname(cmd: CmdExe, _rest: str, io: Descriptors) -> int:
    cmd.write(io.stdout, cmd.host.machine + "\n")
    return 0


def _whoami(cmd: CmdExe, _rest: str, io: Descriptors) -> int:
    cmd.write(io.stdout, f"{cmd.host.machine}\\{cmd.host.user}\n".lower())
    return 0


def _chcp(cmd: CmdExe, _rest: str, io: Descriptors) -> int:
    cmd.write(io.stdout, f"Active code page: {code_page_number(cmd.host.code_page)}\n")
    return 0


def _shutdown(cmd: CmdExe, rest: str, io: Descriptors) -> int:
    """`shutdown /r|/s [/t SECONDS]`; Windows waits 30 seconds when nothing is said."""
    words = [word.lower().replace("-", "/", 1) for word in split_argv("shutdown " + rest)[1:]]
    kinds = [word for word in words if word in ("/r", "/s", "/g")]
    if not kinds:
        cmd.write(io.stdout, "Usage: shutdown [/r | /s] [/t xxx] [/f]\n")
        return 1
    delay = 30.0
    if "/t" in words:
        number = words[words.index("/t") + 1 :][:1]
        if not number or not number[0].isascii() or not number[0].isdigit():
            cmd.write(io.stderr, "Invalid argument for /t.\n")
            return 87
        delay = float(number[0])
    cmd.host.shutdown(delay, "s" if "/s" in kinds else "r")
    return 0


BUILTINS: Final[Mapping[str, Builtin]] = MappingProxyType(
    {
        "call": _call,
        "cd": _cd,
        "chcp": _chcp,
        "chdir": _cd,
        "cls": _nothing,
        "cmd": _cmd,
        "del": _del,
        "echo": _echo,
        "erase": _del,
        "exit": _exit,
        "hostname": _hostname,
        "if": _if,
        "md": _mkdir,
        "mkdir": _mkdir,
        "rd": _rmdir,
        "rem": _nothing,
        "rmdir": _rmdir,
        "set": _set,
        "shutdown": _shutdown,
        "start": _start,
        "title": _nothing,
        "type": _type,
        "ver": _ver,
        "whoami": _whoami,
    }
)

TOOLS: Final = frozenset({"cmd", "hostname", "shutdown", "whoami"})
"""Those that are files in System32 on a real host: `hostname.exe`, `%COMSPEC%` name them too."""

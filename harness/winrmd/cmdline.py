"""The command line as Windows reads it: cmd.exe's grammar, and the C runtime's argv. No I/O.

cmd.exe works in this order: variables are expanded over the whole line, then carets, quotes,
operators and redirections are read, then each command runs. Hence `set A=1& echo %A%` prints the
old A. Precedence, loosest first: `&`, `||`, `&&`, `|`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from harness.errors import HarnessError

MAX_COMMAND_LINE: Final = 8191  # characters, cmd.exe

_VARIABLE: Final = re.compile(r"%([^%\r\n:]+)(?::~(-?\d+)(?:,(-?\d+))?)?%")


class CmdSyntaxError(HarnessError):
    """cmd.exe would refuse this line; the text is what it prints."""


def split_argv(line: str) -> list[str]:
    """Return argv as CommandLineToArgvW and the C runtime split a command line.

    2n backslashes before a quote give n and the quote delimits; 2n+1 give n and a literal quote;
    `""` inside of quotes is a literal quote. The first word (the program) knows no backslashes.
    """
    out: list[str] = []
    at, length = 0, len(line)
    if length and line[0] not in " \t":
        word, at = _program_word(line)
        out.append(word)
    while True:
        while at < length and line[at] in " \t":
            at += 1
        if at >= length:
            return out
        word, at = _argument(line, at)
        out.append(word)


def _program_word(line: str) -> tuple[str, int]:
    quoted = False
    word: list[str] = []
    at = 0
    for at, character in enumerate(line):
        if character == '"':
            quoted = not quoted
        elif character in " \t" and not quoted:
            return "".join(word), at
        else:
            word.append(character)
    return "".join(word), at + 1


def _argument(line: str, at: int) -> tuple[str, int]:
    word: list[str] = []
    quoted = False
    while at < len(line):
        character = line[at]
        if character == "\\":
            end = at
            while end < len(line) and line[end] == "\\":
                end += 1
            count = end - at
            at = end
            if end < len(line) and line[end] == '"':
                word.append("\\" * (count // 2))
                if count % 2:
                    word.append('"')
                    at = end + 1
            else:
                word.append("\\" * count)
        elif character == '"':
            if quoted and line[at + 1 : at + 2] == '"':
                word.append('"')
                at += 2
            else:
                quoted = not quoted
                at += 1
        elif character in " \t" and not quoted:
            break
        else:
            word.append(character)
            at += 1
    return "".join(word), at


def expand_variables(line: str, lookup: Callable[[str], str | None]) -> str:
    """Return the line with `%NAME%` and `%NAME:~from,count%` replaced; unknown names stay."""

    def replace(match: re.Match[str]) -> str:
        value = lookup(match[1])
        if value is None:
            return match[0]
        if match[2] is None:
            return value
        tail = value[int(match[2]) :] if match[2] != "-0" else value
        return tail if match[3] is None else tail[: int(match[3])]

    return _VARIABLE.sub(replace, line)


def strip_outer_quotes(line: str, is_program: Callable[[str], bool]) -> str:
    """Return what `cmd /c` runs: the first and the last quote go, unless they name a program."""
    if not line.startswith('"'):
        return line
    name, _ = _program_word(line)
    end = line.rfind('"')
    if end == 0 or is_program(name):
        return line
    return line[1:end] + line[end + 1 :]


@dataclass(frozen=True, slots=True)
class Redirection:
    """`descriptor` goes to or comes from `target`; `kind` is `<`, `>`, `>>` or `>&`."""

    descriptor: int
    kind: str
    target: str


@dataclass(frozen=True, slots=True)
class Simple:
    """One command as text, carets gone and quotes kept, with its redirections in order."""

    text: str
    redirections: tuple[Redirection, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Commands in parentheses."""

    inner: Node
    redirections: tuple[Redirection, ...] = ()


@dataclass(frozen=True, slots=True)
class Joined:
    """`left OP right` with OP one of `&`, `||`, `&&`, `|`; a trailing `&` has no right."""

    operator: str
    left: Node
    right: Node


Node = Simple | Group | Joined


@dataclass(frozen=True, slots=True)
class _Token:
    """`kind`: text, operator, redirection (text is `2>>`, `<`, `2>&1`), open, close."""

    kind: str
    text: str


def _tokens(line: str) -> list[_Token]:
    tokens: list[_Token] = []
    text: list[str] = []
    quoted = False
    at = 0

    def flush() -> None:
        if text:
            tokens.append(_Token("text", "".join(text)))
            text.clear()

    while at < len(line):
        character = line[at]
        if character == '"':
            quoted = not quoted
        if quoted or character == '"':
            text.append(character)
            at += 1
        elif character == "^":
            text.extend(line[at + 1 : at + 2])
            at += 2
        elif character in "&|":
            flush()
            operator = character * (2 if line[at + 1 : at + 2] == character else 1)
            tokens.append(_Token("operator", operator))
            at += len(operator)
        elif character in "<>":
            prefix = _descriptor_before(text)
            flush()
            match = re.compile(r"<|>&\d|>>|>").match(line, at)
            assert match is not None
            tokens.append(_Token("redirection", prefix + match[0]))
            at = match.end()
        elif character == "(" and not "".join(text).strip():
            flush()
            tokens.append(_Token("open", character))
            at += 1
        elif character == ")" and _depth(tokens) > 0:
            flush()
            tokens.append(_Token("close", character))
            at += 1
        else:
            text.append(character)
            at += 1
    flush()
    return tokens


def _depth(tokens: list[_Token]) -> int:
    return sum((token.kind == "open") - (token.kind == "close") for token in tokens)


def _descriptor_before(text: list[str]) -> str:
    """Take a digit off the end of the text if it stands alone: `echo a2>x` has none."""
    if text and text[-1] in "0123456789" and (len(text) == 1 or text[-2] in ' \t,;="'):
        return text.pop()
    return ""


class _Parser:
    """Recursive descent over the tokens of one line."""

    _LEVELS: Final = ("&", "||", "&&", "|")

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def parse(self) -> Node:
        node = self._level(0)
        if self._at < len(self._tokens):
            raise self._unexpected()
        return node

    def _peek(self) -> _Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _unexpected(self) -> CmdSyntaxError:
        token = self._peek()
        if token is None:
            return CmdSyntaxError("The syntax of the command is incorrect.")
        return CmdSyntaxError(f"{token.text} was unexpected at this time.")

    def _level(self, level: int) -> Node:
        if level == len(self._LEVELS):
            return self._command()
        node = self._level(level + 1)
        operator = self._LEVELS[level]
        while (token := self._peek()) == _Token("operator", operator):
            assert token is not None
            self._at += 1
            following = self._peek()
            if operator == "&" and (following is None or following.kind == "close"):
                break
            node = Joined(operator, node, self._level(level + 1))
        return node

    def _command(self) -> Node:
        text: list[str] = []
        redirections: list[Redirection] = []
        group: Node | None = None
        while (token := self._peek()) is not None:
            if token.kind == "text" and (group is None or not token.text.strip()):
                text.append(token.text)
                self._at += 1
            elif token.kind == "redirection":
                self._at += 1
                redirection, rest = self._redirection(token.text)
                redirections.append(redirection)
                if rest:
                    text.append(rest)
            elif token.kind == "open" and group is None and not "".join(text).strip():
                self._at += 1
                group = self._level(0)
                if self._peek() != _Token("close", ")"):
                    raise self._unexpected()
                self._at += 1
            else:
                break
        if group is not None:
            return Group(group, tuple(redirections))
        joined = "".join(text)
        if not joined.strip() and not redirections:
            raise self._unexpected()
        return Simple(joined, tuple(redirections))

    def _redirection(self, spelled: str) -> tuple[Redirection, str]:
        """Return the redirection and what is left of the text that its target began."""
        kind = spelled.lstrip("0123456789")
        prefix = spelled[: len(spelled) - len(kind)]
        descriptor = int(prefix) if prefix else 0 if kind == "<" else 1
        if kind.startswith(">&"):
            return Redirection(descriptor, ">&", kind[2:]), ""
        token = self._peek()
        if token is None or token.kind != "text":
            raise self._unexpected()
        self._at += 1
        match = re.match(r'\s*((?:"[^"]*"?|[^\s",;=])+)', token.text)
        if match is None:
            raise CmdSyntaxError("The syntax of the command is incorrect.")
        return Redirection(descriptor, kind, match[1].replace('"', "")), token.text[match.end() :]


def parse_line(line: str) -> Node:
    """Return the tree of one line whose variables are expanded. Raises CmdSyntaxError."""
    return _Parser(_tokens(line)).parse()

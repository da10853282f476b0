"""The part of the shell's language that the model's guests understand.

A program is a list of pipelines joined by `;`, `&`, `&&` and `||`, with redirections, `while`,
`until`, `for`, `if`, groups and subshells. What is not understood is an error that says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

_OPERATORS = ("&&", "||", ";;", ">>", ">&", "<&", "&>", ";", "&", "|", "<", ">", "(", ")", "\n")
_REDIRECTIONS = ("<", ">", ">>", ">&", "<&")


class SyntaxFailure(Exception):  # noqa: N818 - the shell's own wording
    """The text is no program, or none that the model understands."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word: its parts, each with whether it was quoted in single, double or no quotes."""

    parts: tuple[tuple[str, str], ...]

    @property
    def bare(self) -> str:
        """The text of a word without any quotes, to compare with a keyword."""
        return self.parts[0][0] if len(self.parts) == 1 and self.parts[0][1] == "" else ""


@dataclass(frozen=True, slots=True)
class Redirection:
    """`number` operator `target`."""

    number: int
    operator: str
    target: Word


@dataclass(frozen=True, slots=True)
class Simple:
    """Assignments, words and redirections."""

    words: tuple[Word, ...]
    redirections: tuple[Redirection, ...] = ()


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Commands joined by `|`; `!` turns the code around."""

    commands: tuple[Command, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class AndOr:
    """A pipeline and what follows by `&&` or `||`; `background`: it ended with `&`."""

    first: Pipeline
    rest: tuple[tuple[str, Pipeline], ...] = ()
    background: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """Lists in order."""

    lists: tuple[AndOr, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """`{ … }` or `( … )`, with its redirections."""

    body: Program
    subshell: bool
    redirections: tuple[Redirection, ...] = ()


@dataclass(frozen=True, slots=True)
class Loop:
    """`while` or `until`."""

    condition: Program
    body: Program
    until: bool
    redirections: tuple[Redirection, ...] = ()


@dataclass(frozen=True, slots=True)
class For:
    """`for name in words`."""

    name: str
    words: tuple[Word, ...]
    body: Program
    redirections: tuple[Redirection, ...] = ()


@dataclass(frozen=True, slots=True)
class If:
    """Branches of `if` and `elif`, and `else`."""

    branches: tuple[tuple[Program, Program], ...]
    otherwise: Program = field(default_factory=Program)
    redirections: tuple[Redirection, ...] = ()


Command = Simple | Group | Loop | For | If
_Token = Word | str


def parse(text: str) -> Program:
    """Return the program of a text. Raises SyntaxFailure."""
    parser = _Parser(_tokens(text))
    program = parser.program(())
    if parser.token is not None:
        raise SyntaxFailure(f"unexpected {_show(parser.token)}")
    return program


def _show(token: _Token | None) -> str:
    if token is None:
        return "end"
    return repr(token) if isinstance(token, str) else repr("".join(p for p, _ in token.parts))


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while at < len(text):
        char = text[at]
        if char in " \t":
            at += 1
        elif char == "#":
            while at < len(text) and text[at] != "\n":
                at += 1
        elif operator := next((o for o in _OPERATORS if text.startswith(o, at)), None):
            tokens.append(operator)
            at += len(operator)
        else:
            word, at = _word(text, at)
            if at < len(text) and text[at] in "<>" and word.bare.isdigit():
                tokens.append(f"fd{word.bare}")
            else:
                tokens.append(word)
    return tokens


def _word(text: str, at: int) -> tuple[Word, int]:
    parts: list[tuple[str, str]] = []

    def add(piece: str, quote: str) -> None:
        if parts and parts[-1][1] == quote == "":
            parts[-1] = (parts[-1][0] + piece, "")
        else:
            parts.append((piece, quote))

    while at < len(text) and text[at] not in " \t\n;&|<>()":
        char = text[at]
        if char == "'":
            end = text.find("'", at + 1)
            if end < 0:
                raise SyntaxFailure("a single quote is not closed")
            add(text[at + 1 : end], "'")
            at = end + 1
        elif char == '"':
            end = _closing_quote(text, at + 1)
            add(text[at + 1 : end], '"')
            at = end + 1
        elif char == "\\" and at + 1 < len(text):
            add(text[at + 1], "'")
            at += 2
        elif text.startswith("$(", at):
            end = closing_parenthesis(text, at + 2)
            add(text[at : end + 1], "")
            at = end + 1
        else:
            add(char, "")
            at += 1
    return Word(tuple(parts)), at


def _closing_quote(text: str, at: int) -> int:
    while at < len(text) and text[at] != '"':
        if text.startswith("$(", at):
            at = closing_parenthesis(text, at + 2)
        elif text[at] == "\\":
            at += 1
        at += 1
    if at >= len(text):
        raise SyntaxFailure("a double quote is not closed")
    return at


def closing_parenthesis(text: str, at: int) -> int:
    """Return where the parenthesis closes whose content begins at `at`. Raises SyntaxFailure."""
    depth = 1
    for index in range(at, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if not depth:
            return index
    raise SyntaxFailure("a parenthesis is not closed")


class _Parser:
    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens = tokens
        self._at = 0

    @property
    def token(self) -> _Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def take(self) -> _Token:
        token = self.token
        if token is None:
            raise SyntaxFailure("the text ends too early")
        self._at += 1
        return token

    def keyword(self) -> str:
        return self.token.bare if isinstance(self.token, Word) else ""

    def expect(self, word: str) -> None:
        token = self.take()
        if (token.bare if isinstance(token, Word) else token) != word:
            raise SyntaxFailure(f"expected {word!r}, found {_show(token)}")

    def newlines(self) -> None:
        while self.token == "\n":  # noqa: S105 - a token of the language
            self._at += 1

    def program(self, ends: Sequence[str]) -> Program:
        lists: list[AndOr] = []
        self.newlines()
        while self.token is not None and self.token != ")" and self.keyword() not in ends:  # noqa: S105
            item = self.and_or()
            if self.token == "&":  # noqa: S105
                item = AndOr(item.first, item.rest, background=True)
            lists.append(item)
            if self.token not in (";", "&", "\n"):
                break
            self._at += 1
            self.newlines()
        return Program(tuple(lists))

    def and_or(self) -> AndOr:
        first = self.pipeline()
        rest: list[tuple[str, Pipeline]] = []
        while self.token in ("&&", "||"):
            operator = str(self.take())
            self.newlines()
            rest.append((operator, self.pipeline()))
        return AndOr(first, tuple(rest))

    def pipeline(self) -> Pipeline:
        negated = self.keyword() == "!"
        if negated:
            self._at += 1
        commands = [self.command()]
        while self.token == "|":  # noqa: S105
            self._at += 1
            self.newlines()
            commands.append(self.command())
        return Pipeline(tuple(commands), negated)

    def command(self) -> Command:
        if self.token == "(":  # noqa: S105
            self._at += 1
            body = self.program(())
            self.expect(")")
            return Group(body, subshell=True, redirections=self.redirections())
        match self.keyword():
            case "{":
                self._at += 1
                body = self.program(("}",))
                self.expect("}")
                return Group(body, subshell=False, redirections=self.redirections())
            case "while" | "until" as kind:
                self._at += 1
                condition = self.program(("do",))
                return Loop(condition, self.do(), kind == "until", self.redirections())
            case "for":
                return self.for_()
            case "if":
                return self.if_()
        return self.simple()

    def do(self) -> Program:
        self.expect("do")
        body = self.program(("done",))
        self.expect("done")
        return body

    def for_(self) -> For:
        self._at += 1
        name = self.keyword()
        self._at += 1
        self.expect("in")
        words: list[Word] = []
        while isinstance(self.token, Word):
            words.append(self.token)
            self._at += 1
        if self.token in (";", "\n"):
            self._at += 1
        self.newlines()
        return For(name, tuple(words), self.do(), self.redirections())

    def if_(self) -> If:
        branches: list[tuple[Program, Program]] = []
        otherwise = Program()
        while True:
            word = self.take()
            kind = word.bare if isinstance(word, Word) else ""
            if kind in ("if", "elif"):
                condition = self.program(("then",))
                self.expect("then")
                branches.append((condition, self.program(("elif", "else", "fi"))))
            elif kind == "else":
                otherwise = self.program(("fi",))
            elif kind == "fi":
                return If(tuple(branches), otherwise, self.redirections())
            else:
                raise SyntaxFailure(f"unexpected {_show(word)} in if")

    def redirections(self) -> tuple[Redirection, ...]:
        found: list[Redirection] = []
        while (redirection := self.redirection()) is not None:
            found.append(redirection)
        return tuple(found)

    def redirection(self) -> Redirection | None:
        token = self.token
        number = None
        if isinstance(token, str) and token.startswith("fd"):
            number = int(token[2:])
            self._at += 1
            token = self.token
        if not isinstance(token, str) or token not in _REDIRECTIONS:
            return None
        self._at += 1
        target = self.take()
        if not isinstance(target, Word):
            raise SyntaxFailure(f"no target after {token}")
        default = 0 if token.startswith("<") else 1
        return Redirection(default if number is None else number, token, target)

    def simple(self) -> Simple:
        words: list[Word] = []
        redirections: list[Redirection] = []
        while True:
            if (redirection := self.redirection()) is not None:
                redirections.append(redirection)
            elif isinstance(self.token, Word):
                words.append(self.token)
                self._at += 1
            else:
                break
        if not words and not redirections:
            raise SyntaxFailure(f"unexpected {_show(self.token)}")
        return Simple(tuple(words), tuple(redirections))

"""PowerShell text as our builder writes it, parsed: one command with literals, or one reference.

::

    script    = command | reference
    reference = "$" Name { "." Name }
    command   = Verb-Noun { "-" Name [ ":$true" | ":$false" | value ] }
    value     = atom { "," atom }
    atom      = 'text' | integer [ "L" ] | "(" [ "-" ] integer ")" | "([byte[]](" bytes "))"
              | "@(" [ value ] ")" | "@{" { key "=" value ";" } "}"

A subset of PowerShell's own grammar (about_Parsing, about_Quoting_Rules) in which the same text
means the same. What is outside raises ScriptSyntaxError and is never guessed at: expandable
strings, pipelines, script blocks, operators and method calls are outside on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

Scalar: TypeAlias = "str | int | bool | bytes | tuple[Scalar, ...]"
Value: TypeAlias = "Scalar | Mapping[str, Scalar]"

# PowerShell takes each of these for an apostrophe (CharTraits.IsSingleQuote): a quoting function
# that doubles only the first lets text out of its string.
_QUOTES: Final = frozenset("'\u2018\u2019\u201a\u201b")
_VERB_NOUN: Final = re.compile(r"[A-Za-z]+-[A-Za-z]+(?![\w-])")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_INTEGER: Final = re.compile(r"(\d+)[lL]?(?![\w.])")
_NEGATIVE: Final = re.compile(r"\(\s*(-?\d+)[lL]?\s*\)")
_BYTES: Final = re.compile(r"\(\[byte\[\]\](?:\((\d+(?:,\d+)*)\)|@\(\))\)", re.IGNORECASE)
_REFERENCE: Final = re.compile(r"\$([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\s*\Z")
_END_OF_PARAMETER: Final = frozenset((" ", "\t", ""))


class ScriptSyntaxError(Exception):
    """The text is no script of ours; `at` is the offset of the first character that is wrong."""

    def __init__(self, problem: str, *, at: int) -> None:
        super().__init__(f"At char:{at + 1}: {problem}")
        self.at = at


@dataclass(frozen=True, slots=True)
class Call:
    """One command and its named parameters, in their order and spelling; True for a bare switch."""

    name: str
    parameters: tuple[tuple[str, Value], ...] = ()


@dataclass(frozen=True, slots=True)
class Reference:
    """`$a.b.c` as its names."""

    names: tuple[str, ...]


def parse_script(text: str) -> Call | Reference:
    """Return what the script says. Raises ScriptSyntaxError."""
    if match := _REFERENCE.match(text.strip()):
        return Reference(tuple(match[1].split(".")))
    return _Parser(text).command()


def command_word(text: str) -> str:
    """Return the first word of any text, as PowerShell names it in its errors."""
    return text.split(maxsplit=1)[0] if text.strip() else text


class _Parser:
    """Recursive descent over one text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def command(self) -> Call:
        self._skip()
        name = self._match(_VERB_NOUN, "a command")
        parameters: list[tuple[str, Value]] = []
        while True:
            self._skip()
            if self._at == len(self._text):
                return Call(name, tuple(parameters))
            self._expect("-")
            parameters.append(self._parameter())

    def _parameter(self) -> tuple[str, Value]:
        name = self._match(_NAME, "a parameter name")
        for text, value in ((":$true", True), (":$false", False)):
            if self._text[self._at :].lower().startswith(text):
                self._at += len(text)
                return name, value
        if self._peek() not in _END_OF_PARAMETER:
            raise self._unexpected()
        self._skip()
        if self._peek() in ("-", ""):
            return name, True
        return name, self._value()

    def _value(self) -> Value:
        if self._text.startswith("@{", self._at):
            return self._table()
        return self._scalar()

    def _scalar(self) -> Scalar:
        items = [self._atom()]
        while True:
            mark = self._at
            self._skip()
            if self._peek() != ",":
                self._at = mark
                return items[0] if len(items) == 1 else tuple(items)
            self._at += 1
            self._skip()
            items.append(self._atom())

    def _atom(self) -> Scalar:
        if self._peek() in _QUOTES:
            return self._quoted()
        if self._text.startswith("@(", self._at):
            return self._array()
        if match := _BYTES.match(self._text, self._at):
            numbers = [int(number) for number in (match[1] or "").split(",") if number]
            if any(number > 255 for number in numbers):
                raise ScriptSyntaxError("a byte greater than 255", at=self._at)
            self._at = match.end()
            return bytes(numbers)
        for pattern in (_INTEGER, _NEGATIVE):
            if match := pattern.match(self._text, self._at):
                self._at = match.end()
                return int(match[1])
        raise self._unexpected()

    def _array(self) -> tuple[Scalar, ...]:
        self._at += 2
        self._skip()
        items: Scalar = () if self._peek() == ")" else self._scalar()
        self._skip()
        self._expect(")")
        return items if isinstance(items, tuple) else (items,)

    def _table(self) -> Mapping[str, Scalar]:
        self._at += 2
        entries: dict[str, Scalar] = {}
        self._skip()
        while self._peek() != "}":
            at = self._at
            key = self._quoted() if self._peek() in _QUOTES else self._match(_NAME, "a key")
            if key.lower() in map(str.lower, entries):
                raise ScriptSyntaxError(f"Duplicate keys '{key}' are not allowed", at=at)
            self._skip()
            self._expect("=")
            self._skip()
            entries[key] = self._scalar()
            self._skip()
            if self._peek() != "}":
                self._expect(";")
                self._skip()
        self._at += 1
        return entries

    def _quoted(self) -> str:
        start = self._at
        self._at += 1
        text: list[str] = []
        while self._at < len(self._text):
            char = self._text[self._at]
            self._at += 1
            if char in _QUOTES:
                if self._peek() not in _QUOTES:
                    return "".join(text)
                # Of a doubled quote PowerShell keeps the second: the two may differ.
                char = self._text[self._at]
                self._at += 1
            text.append(char)
        raise ScriptSyntaxError("The string is missing the terminator: '.", at=start)

    def _match(self, pattern: re.Pattern[str], wanted: str) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise self._unexpected(wanted)
        self._at = match.end()
        return match[0]

    def _skip(self) -> None:
        while self._peek() in (" ", "\t") and self._peek():
            self._at += 1

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _expect(self, char: str) -> None:
        if self._peek() != char:
            raise self._unexpected(repr(char))
        self._at += 1

    def _unexpected(self, wanted: str = "") -> ScriptSyntaxError:
        found = repr(self._peek()) if self._peek() else "the end"
        return ScriptSyntaxError(
            f"unexpected {found}{f', expected {wanted}' if wanted else ''}", at=self._at
        )

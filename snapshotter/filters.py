"""containerd's filter language (pkg/filters): parsed, matched in Python, and compiled to SQL.

::

    filter    := selector ("," selector)*            all of them
    selector  := fieldpath (operator value)?         without an operator: the field is present
    fieldpath := field ("." field)*
    field     := quoted | [A-Za-z0-9_]+
    operator  := "==" | "!=" | "~="
    value     := quoted | graphic characters up to "," or white space
    quoted    := "..." with Go's escapes; after "~=" also /.../ and |...|

Several filters mean any of them; none, or an empty one, means everything. Fields: `name`,
`parent` (present even where empty), `kind` (`active`, `view`, `committed`), `labels.<key>`;
`labels.a.b` and `labels."a.b"` are the same. An absent field compares as an empty text, except
that `==` needs presence. `~=` is an unanchored match; a bad expression matches nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final, Self

from snapshotter.errors import InvalidArgumentError
from snapshotter.goregexp import compile_go_regexp
from snapshotter.linearmatch import LinearPattern
from snapshotter.metastore.model import Info, Kind


class Operator(Enum):
    """How a selector compares."""

    PRESENT = ""
    EQUAL = "=="
    NOT_EQUAL = "!="
    MATCHES = "~="


@dataclass(frozen=True, slots=True)
class Selector:
    """One comparison: field path, operator, value."""

    path: tuple[str, ...]
    operator: Operator = Operator.PRESENT
    value: str = ""
    pattern: LinearPattern | None = None

    @property
    def label(self) -> str:
        """The label that the path names, where it names one."""
        return ".".join(self.path[1:])

    def match(self, info: Info) -> bool:
        """Whether the snapshot fits."""
        found = self._field(info)
        text = found or ""
        match self.operator:
            case Operator.PRESENT:
                return found is not None
            case Operator.EQUAL:
                return found == self.value
            case Operator.NOT_EQUAL:
                return text != self.value
            case Operator.MATCHES:
                return self.pattern is not None and self.pattern.search(text)

    def _field(self, info: Info) -> str | None:
        match self.path[0]:
            case "name":
                return info.name
            case "parent":
                return info.parent
            case "kind":
                return info.kind.word
            case "labels":
                return info.labels.get(self.label)
            case _:
                return None


@dataclass(frozen=True, slots=True)
class Condition:
    """An SQL condition over `snapshot s LEFT JOIN snapshot p`, and the values of its marks.

    Where it is not `exact` it lets through more than the filters do, never less.
    """

    sql: str
    parameters: tuple[str | int, ...] = ()
    exact: bool = True


_EVERYTHING: Final = Condition("TRUE")
_NOTHING: Final = Condition("FALSE")
_MAX_KEPT: Final = 1024
"""Characters of filters that are kept compiled: a request may bring megabytes."""
_MAX_SQL_SELECTORS: Final = 200
"""SQLite refuses expressions more than 1000 deep; longer lists are matched in Python."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Alternatives, each a list of selectors that must all fit; none at all means everything."""

    alternatives: tuple[tuple[Selector, ...], ...] = ()

    @classmethod
    def parse(cls, *texts: str) -> Self:
        """Compile filter texts. Raises InvalidArgumentError if any of them is malformed."""
        compiled = _compiled if sum(map(len, texts)) <= _MAX_KEPT else _compiled.__wrapped__
        return cls(compiled(texts))

    def match(self, info: Info) -> bool:
        """Whether the snapshot fits one of the alternatives."""
        return not self.alternatives or any(
            all(selector.match(info) for selector in selectors) for selectors in self.alternatives
        )

    def where(self) -> Condition:
        """The same as an SQL condition, as far as SQL can say it."""
        if not self.alternatives:
            return _EVERYTHING
        if sum(map(len, self.alternatives)) > _MAX_SQL_SELECTORS:
            return Condition("TRUE", exact=False)
        return _joined(
            " OR ",
            [_joined(" AND ", list(map(_condition, parts))) for parts in self.alternatives],
        )


@lru_cache(maxsize=64)
def _compiled(texts: tuple[str, ...]) -> tuple[tuple[Selector, ...], ...]:
    """What `Filters.parse` gives; clients ask for the same few things over and over."""
    alternatives = tuple(_Parser(text).filter() for text in texts)
    return () if () in alternatives else alternatives


def _joined(word: str, parts: list[Condition]) -> Condition:
    return Condition(
        "(" + word.join(part.sql for part in parts) + ")",
        tuple(value for part in parts for value in part.parameters),
        all(part.exact for part in parts),
    )


def _condition(selector: Selector) -> Condition:
    if selector.operator is Operator.MATCHES:
        return _NOTHING if selector.pattern is None else Condition("TRUE", exact=False)
    match selector.path[0]:
        case "name":
            return _present_column("s.key", selector)
        case "parent":
            return _parent(selector)
        case "kind":
            return _kind(selector)
        case "labels":
            return _label(selector)
        case _:
            absent_fits = selector.operator is Operator.NOT_EQUAL and selector.value != ""
            return _EVERYTHING if absent_fits else _NOTHING


def _present_column(column: str, selector: Selector) -> Condition:
    match selector.operator:
        case Operator.EQUAL:
            return Condition(f"{column} = ?", (_storable(selector.value),))
        case Operator.NOT_EQUAL:
            return Condition(f"{column} <> ?", (_storable(selector.value),))
        case _:
            return _EVERYTHING


def _parent(selector: Selector) -> Condition:
    if selector.operator is Operator.PRESENT:
        return _EVERYTHING
    equal = selector.operator is Operator.EQUAL
    if selector.value == "":
        return Condition("s.parent_id IS NULL" if equal else "s.parent_id IS NOT NULL")
    # A subquery, so that the index on parent_id serves it.
    chosen = "(SELECT id FROM snapshot WHERE key = ?)"
    text = f"s.parent_id = {chosen}" if equal else f"s.parent_id IS NOT {chosen}"
    if not equal:
        # No snapshot of that name: IS NOT NULL would leave out the parentless.
        text = f"(s.parent_id IS NULL OR {text})"
    return Condition(text, (_storable(selector.value),))


def _kind(selector: Selector) -> Condition:
    if selector.operator is Operator.PRESENT:
        return _EVERYTHING
    equal = selector.operator is Operator.EQUAL
    for kind in Kind:
        if kind.word == selector.value:
            return Condition("s.kind = ?" if equal else "s.kind <> ?", (int(kind),))
    return _NOTHING if equal else _EVERYTHING


def _label(selector: Selector) -> Condition:
    name = _storable(selector.label)
    present = "s.id IN (SELECT snapshot_id FROM label WHERE name = ?)"
    equal = "s.id IN (SELECT snapshot_id FROM label WHERE name = ? AND value = ?)"
    if selector.operator is Operator.EQUAL:
        return Condition(equal, (name, _storable(selector.value)))
    if selector.operator is Operator.NOT_EQUAL and selector.value != "":
        return Condition(f"NOT ({equal})", (name, _storable(selector.value)))
    # No label has an empty value, so `!=""` is presence.
    return Condition(present, (name,))


def _storable(text: str) -> str:
    # SQLite takes no lone surrogates, which \x escapes can give. No stored text holds a NUL, so
    # a text with one equals nothing, just as the original would.
    try:
        text.encode()
    except UnicodeEncodeError:
        return "\0"
    return text


_FIELD: Final = re.compile("[A-Za-z0-9_]+")
_OPERATOR: Final = re.compile("[=!~]*")
_QUOTES: Final = '"/|'
_SPACES: Final = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
    + "".join(map(chr, range(0x2000, 0x200B)))
)
"""Go's unicode.IsSpace; str.isspace has four control characters more."""
_SIMPLE_ESCAPES: Final = {
    name: ord(character) for name, character in zip("abfnrtv\\", "\a\b\f\n\r\t\v\\", strict=True)
}
_HEX_LENGTHS: Final = {"x": 2, "u": 4, "U": 8}
_HEX: Final = re.compile("[0-9a-fA-F]+")
_OCTAL: Final = re.compile("[0-7]{3}")


class _Parser:
    """One pass over one filter text; `_at` is the next character."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def filter(self) -> tuple[Selector, ...]:
        """The selectors; none for an empty text."""
        if not self._text:
            return ()
        if "\0" in self._text:
            raise self._error("unexpected NUL", self._text.index("\0"))
        selectors = [self._selector()]
        while self._at < len(self._text):
            if self._text[self._at] != ",":
                raise self._error("expected ',' or the end", self._at)
            self._at += 1
            selectors.append(self._selector())
        return tuple(selectors)

    def _selector(self) -> Selector:
        path = [self._field()]
        while self._peek() == ".":
            self._at += 1
            path.append(self._field())
        if self._peek() in ("", ","):
            return Selector(tuple(path))
        self._skip_spaces()
        operator = self._operator()
        value = self._value(alternative_quotes=operator is Operator.MATCHES)
        pattern = compile_go_regexp(value) if operator is Operator.MATCHES else None
        return Selector(tuple(path), operator, value, pattern)

    def _field(self) -> str:
        self._skip_spaces()
        if self._peek() and self._peek() in _QUOTES:
            return self._quoted(alternative_quotes=False)
        match = _FIELD.match(self._text, self._at)
        if match is None:
            raise self._error("expected a field name or a quoted one", self._at)
        self._at = match.end()
        return match.group()

    def _operator(self) -> Operator:
        match = _OPERATOR.match(self._text, self._at)
        text = match.group() if match is not None else ""
        if text not in ("==", "!=", "~="):
            raise self._error('expected an operator ("==", "!=" or "~=")', self._at)
        self._at += len(text)
        return Operator(text)

    def _value(self, *, alternative_quotes: bool) -> str:
        self._skip_spaces()
        first = self._peek()
        if first and first in _QUOTES:
            return self._quoted(alternative_quotes=alternative_quotes)
        start = self._at
        if not first or first not in ",.=!~":
            while self._peek() not in ("", ",") and self._is_value_character(self._peek()):
                self._at += 1
        if self._at == start:
            raise self._error("expected a value or a quoted one", start)
        return self._text[start : self._at]

    @staticmethod
    def _is_value_character(character: str) -> bool:
        return character not in _SPACES and character.isprintable()

    def _quoted(self, *, alternative_quotes: bool) -> str:
        start, quote = self._at, self._text[self._at]
        if quote != '"' and not alternative_quotes:
            raise self._error(f"{quote} quotes are for ~= alone", start)
        self._at += 1
        # Bytes, because \x and octal escapes give bytes that only together may be UTF-8.
        value = bytearray()
        while (character := self._peek()) != quote:
            if character in ("", "\n"):
                raise self._error("quoted text is not terminated", start)
            self._at += 1
            value += self._escape(quote) if character == "\\" else _utf8(character)
        self._at += 1
        return value.decode("utf-8", "surrogateescape")

    def _escape(self, quote: str) -> bytes:
        at, character = self._at - 1, self._peek()
        self._at += 1
        if character and character == quote:
            return character.encode()
        if character in _SIMPLE_ESCAPES:
            return bytes([_SIMPLE_ESCAPES[character]])
        if character in _HEX_LENGTHS:
            digits = self._text[self._at : self._at + _HEX_LENGTHS[character]]
            self._at += len(digits)
            if len(digits) == _HEX_LENGTHS[character] and _HEX.fullmatch(digits):
                number = int(digits, 16)
                if character == "x":
                    return bytes([number])
                if number <= 0x10FFFF:
                    return chr(number).encode("utf-8", "replace")
        elif character and character in "01234567":
            digits = self._text[at + 1 : at + 4]
            self._at = at + 4
            if _OCTAL.fullmatch(digits) and int(digits, 8) < 256:
                return bytes([int(digits, 8)])
        raise self._error("illegal escape sequence", at)

    def _skip_spaces(self) -> None:
        while self._peek() in _SPACES:
            self._at += 1

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _error(self, problem: str, at: int) -> InvalidArgumentError:
        return InvalidArgumentError(f"filter {self._text!r}, character {at}: {problem}")


def _utf8(character: str) -> bytes:
    return character.encode("utf-8", "surrogateescape")

r"""Searching for a regular expression in time that grows with the text's length, no faster.

Python's `re` tries one way after the other, and holds the interpreter meanwhile: `(a+)+$` on thirty
characters takes it minutes, in which nothing else runs in the process. RE2, Go's engine, follows
all ways at once (Thompson 1968; swtch.com/~rsc/regexp). So does this, for the expressions where
`re` might not end soon; what a single character has to be is still left to `re`.

It reads what `snapshotter.goregexp` writes: Python's syntax without what RE2 does not have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

_MAX_STEPS: Final = 1_000_000
"""What `re` may have to try: hundredths of a second."""
_MAX_STATES: Final = 10_000
_MAX_COUNT: Final = 1000
"""Of a repeat, and of repeats within each other (Go's regexp/syntax, repeatIsValid)."""

_TOKEN: Final = re.compile(
    r"""
      (?P<open>\((?:\?P<\w+>|\?(?P<on>[ims]*)(?:-(?P<off>[ims]+))?(?P<end>[:)]))?)
    | (?P<close>\))
    | (?P<bar>\|)
    | (?P<repeat>(?:[*+?]|\{(?P<least>[0-9]+)(?P<range>,(?P<most>[0-9]*))?\})\??)
    | (?P<assertion>\\[AZbB]|[$^])
    | (?P<atom>\\x[0-9a-fA-F]{2}|\[\^?\]?(?:\\.|[^\]\\])*\]|\\.|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_FLAGS: Final = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL}


class TooLargeError(Exception):
    """The expression has more states than are followed here."""


class BadRepeatError(Exception):
    """Repeats within each other that RE2 refuses."""


@dataclass(frozen=True, slots=True)
class _Atom:
    """One character."""

    pattern: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class _Assertion:
    """A place between two characters; a `multiline` one counts lines."""

    text: str
    multiline: bool


@dataclass(frozen=True, slots=True)
class _Sequence:
    parts: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    branches: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Repeat:
    """`most` is None without a bound; `counted` where it was written with braces."""

    body: _Node
    least: int
    most: int | None
    counted: bool


_Node = _Atom | _Assertion | _Sequence | _Choice | _Repeat


class LinearPattern:
    """A pattern that is searched for by `re` where that ends soon, and by its states elsewhere."""

    def __init__(self, pattern: re.Pattern[str], *, max_steps: int = _MAX_STEPS) -> None:
        """`max_steps` is what `re` may have to try. Raises TooLargeError, BadRepeatError."""
        self.pattern = pattern
        self._max_steps = max_steps
        tree = _Parser(pattern.pattern).tree()
        _check_repeats(tree, _MAX_COUNT)
        self._ways = _ways(tree)
        self._states = _States(tree)

    def search(self, text: str) -> bool:
        """Whether it matches anywhere in the text."""
        # In an empty text Python finds no \B, and RE2 does.
        if self._ways is not None and text:
            alternatives, repeats = self._ways
            if alternatives * (len(text) + 1) ** (repeats + 1) <= self._max_steps:
                return self.pattern.search(text) is not None
        return self._states.search(text)


def _ways(node: _Node) -> tuple[int, int] | None:
    """How many branches may be tried after each other, and how many repeats, each of one character.

    None for a repeat of anything else: the ways may double with each character.
    """
    match node:
        case _Atom() | _Assertion():
            return 1, 0
        case _Repeat():
            return (1, 1) if isinstance(node.body, _Atom) else None
        case _Sequence(children) | _Choice(children):
            alternatives = len(children) if isinstance(node, _Choice) else 1
            repeats = 0
            for child in children:
                ways = _ways(child)
                if ways is None:
                    return None
                alternatives *= ways[0]
                repeats += ways[1]
            return alternatives, repeats


def _check_repeats(node: _Node, room: int) -> None:
    match node:
        case _Repeat(body, least, most, counted):
            count = least if most is None else most
            if counted and count:
                if count > room:
                    raise BadRepeatError
                room //= count
            if not counted or most != 0:
                _check_repeats(body, room)
        case _Sequence(children) | _Choice(children):
            for child in children:
                _check_repeats(child, room)


class _Parser:
    """One pass over an expression that `re` has compiled, and so found well-formed."""

    def __init__(self, text: str) -> None:
        self._tokens: Iterator[re.Match[str]] = _TOKEN.finditer(text)

    def tree(self) -> _Node:
        return self._choice(re.ASCII)

    def _choice(self, flags: re.RegexFlag) -> _Node:
        """Up to the end of the group."""
        branches: list[list[_Node]] = [[]]
        for token in self._tokens:
            match token.lastgroup:
                case "close":
                    break
                case "bar":
                    branches.append([])
                case "open" if token["end"] == ")":
                    flags = _changed(flags, token)
                case "open":
                    branches[-1].append(self._choice(_changed(flags, token)))
                case "repeat":
                    branches[-1].append(_repeat(branches[-1].pop(), token))
                case "assertion":
                    branches[-1].append(_Assertion(token[0], re.MULTILINE in flags))
                case _:
                    branches[-1].append(_Atom(re.compile(token[0], flags & ~re.MULTILINE)))
        sequences = [parts[0] if len(parts) == 1 else _Sequence(tuple(parts)) for parts in branches]
        return sequences[0] if len(sequences) == 1 else _Choice(tuple(sequences))


def _changed(flags: re.RegexFlag, token: re.Match[str]) -> re.RegexFlag:
    for letter in token["on"] or "":
        flags |= _FLAGS[letter]
    for letter in token["off"] or "":
        flags &= ~_FLAGS[letter]
    return flags


def _repeat(body: _Node, token: re.Match[str]) -> _Repeat:
    match token[0][0]:
        case "*":
            return _Repeat(body, 0, None, counted=False)
        case "+":
            return _Repeat(body, 1, None, counted=False)
        case "?":
            return _Repeat(body, 0, 1, counted=False)
    least = int(token["least"])
    most = least if token["range"] is None else int(token["most"]) if token["most"] else None
    return _Repeat(body, least, most, counted=True)


class _States:
    """The states of an expression, and the ways between them.

    State 0 is the end. The others wait for a character (`_atoms`), or lead on to others at once
    (`_leads`), some of them only at certain places (`_conditions`).
    """

    def __init__(self, tree: _Node) -> None:
        self._atoms: dict[int, tuple[re.Pattern[str], int]] = {}
        self._leads: dict[int, list[int]] = {0: []}
        self._conditions: dict[int, Callable[[str, int], bool]] = {}
        self._start = self._add(tree, 0)

    def search(self, text: str) -> bool:
        """Whether the end is reached from anywhere in the text."""
        waiting: set[int] = set()
        for at in range(len(text) + 1):
            here = self._closure({self._start, *waiting}, text, at)
            if 0 in here:
                return True
            if at < len(text):
                waiting = {
                    after
                    for state in here
                    if state in self._atoms
                    for pattern, after in (self._atoms[state],)
                    if pattern.match(text, at, at + 1)
                }
        return False

    def _closure(self, states: set[int], text: str, at: int) -> set[int]:
        """What can be reached from these states without a character."""
        reached = set(states)
        pending = list(states)
        while pending:
            state = pending.pop()
            condition = self._conditions.get(state)
            if condition is not None and not condition(text, at):
                continue
            for lead in self._leads.get(state, ()):
                if lead not in reached:
                    reached.add(lead)
                    pending.append(lead)
        return reached

    def _new(self, *leads: int) -> int:
        number = len(self._atoms) + len(self._leads)
        if number >= _MAX_STATES:
            raise TooLargeError
        self._leads[number] = list(leads)
        return number

    def _add(self, node: _Node, after: int) -> int:
        """The state from which `node` leads to `after`."""
        match node:
            case _Atom(pattern):
                state = self._new()
                del self._leads[state]
                self._atoms[state] = (pattern, after)
                return state
            case _Assertion():
                state = self._new(after)
                self._conditions[state] = _condition(node)
                return state
            case _Sequence(parts):
                for part in reversed(parts):
                    after = self._add(part, after)
                return after
            case _Choice(branches):
                return self._new(*[self._add(branch, after) for branch in branches])
            case _Repeat(body, least, most, _):
                if most is None:
                    loop = self._new(after)
                    self._leads[loop].append(self._add(body, loop))
                    after = loop
                else:
                    end = after
                    for _ in range(most - least):
                        after = self._new(end, self._add(body, after))
                for _ in range(least):
                    after = self._add(body, after)
                return after


def _condition(assertion: _Assertion) -> Callable[[str, int], bool]:
    match assertion.text:
        case "^" if assertion.multiline:
            return lambda text, at: at == 0 or text[at - 1] == "\n"
        case "$":  # written for a multiline one only
            return lambda text, at: at == len(text) or text[at] == "\n"
        case "^" | r"\A":
            return lambda _, at: at == 0
        case r"\Z":
            return lambda text, at: at == len(text)
        case r"\b":
            return _is_boundary
        case _:
            return lambda text, at: not _is_boundary(text, at)


def _is_boundary(text: str, at: int) -> bool:
    return (at > 0 and _is_word(text[at - 1])) != (at < len(text) and _is_word(text[at]))


def _is_word(character: str) -> bool:
    return character == "_" or (character.isascii() and character.isalnum())

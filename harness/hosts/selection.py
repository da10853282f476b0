"""Expressions that select hosts: names and tags with `and`, `or`, `not` and parentheses.

`nightly and not amd`, `win-07 or win-08`, `all`. A name or tag that no host has is an error with
the nearest known one, because an empty selection would look like a passed run.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Final

from harness.errors import UsageError

_TOKEN: Final = re.compile(r"\s*(?:(?P<symbol>[()])|(?P<word>[\w.:-]+)|(?P<bad>\S))")
ALL: Final = "all"
_MAX_DEPTH: Final = 50


def select_hosts(expression: str, hosts: Mapping[str, frozenset[str]]) -> tuple[str, ...]:
    """Return the names of `hosts` (name to tags) for which the expression holds, in their order.

    Raises UsageError for a syntax error, naming the position, and for an unknown name or tag.
    """
    parser = _Parser(expression, hosts)
    chosen = parser.parse()
    return tuple(name for name in hosts if name in chosen)


class _Parser:
    """Recursive descent, evaluating sets of names as it goes."""

    def __init__(self, text: str, hosts: Mapping[str, frozenset[str]]) -> None:
        self._text = text
        self._hosts = hosts
        self._tokens: list[tuple[str, int]] = []
        self._depth = 0
        at = 0
        while match := _TOKEN.match(text, at):
            if match["bad"]:
                raise self._error(f"unexpected {match['bad']!r}", match.start("bad"))
            self._tokens.append((match["symbol"] or match["word"], match.end() - 1))
            at = match.end()

    def parse(self) -> frozenset[str]:
        if not self._tokens:
            raise UsageError("an empty host expression selects nothing: write a name, tag or all")
        chosen = self._or()
        if self._tokens:
            word, at = self._tokens[0]
            raise self._error(f"unexpected {word!r}", at)
        return chosen

    def _or(self) -> frozenset[str]:
        chosen = self._and()
        while self._take("or"):
            chosen |= self._and()
        return chosen

    def _and(self) -> frozenset[str]:
        chosen = self._not()
        while self._take("and"):
            chosen &= self._not()
        return chosen

    def _not(self) -> frozenset[str]:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise UsageError(f"host expression nested deeper than {_MAX_DEPTH}")
        try:
            if self._take("not"):
                return frozenset(self._hosts) - self._not()
            if self._take("("):
                chosen = self._or()
                if not self._take(")"):
                    raise self._error("a parenthesis is not closed", len(self._text))
                return chosen
            return self._word()
        finally:
            self._depth -= 1

    def _word(self) -> frozenset[str]:
        if not self._tokens:
            raise self._error("a name or tag is missing", len(self._text))
        word, at = self._tokens.pop(0)
        if word in ("and", "or", ")"):
            raise self._error(f"unexpected {word!r}", at)
        if word == ALL:
            return frozenset(self._hosts)
        chosen = {name for name, tags in self._hosts.items() if word == name or word in tags}
        if not chosen:
            known = {*self._hosts, *(tag for tags in self._hosts.values() for tag in tags)}
            near = difflib.get_close_matches(word, sorted(known), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"no host is called or tagged {word}{hint}")
        return frozenset(chosen)

    def _take(self, word: str) -> bool:
        if self._tokens and self._tokens[0][0] == word:
            self._tokens.pop(0)
            return True
        return False

    def _error(self, problem: str, at: int) -> UsageError:
        return UsageError(f"host expression {self._text!r}: {problem} at position {at + 1}")

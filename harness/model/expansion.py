"""What words of the shell stand for: parameters, arithmetic, output of commands, names of files."""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import fnmatch
import os
import re
from collections.abc import Callable, Iterator, Sequence

from harness.model.arithmetic import evaluate
from harness.model.process import Process
from harness.model.syntax import Word, closing_parenthesis

_PARAMETER = re.compile(r"\$(?:\{(\w+)\}|(\w+|[?!$#@*]))")


class Expansion:
    """Expands words in the environment and directory that a process has at that moment."""

    def __init__(
        self,
        process: Process,
        *,
        parameter: Callable[[str], str],
        output_of: Callable[[str], str],
    ) -> None:
        """`parameter` gives the value of a name, `output_of` what a program's text writes."""
        self._process = process
        self._parameter = parameter
        self._output_of = output_of

    def text(self, word: Word) -> str:
        """Return a word's text, neither split nor matched: the value of an assignment."""
        return "".join(text for text, _ in self._pieces(word))

    def fields(self, words: Sequence[Word]) -> list[str]:
        """Return the fields of words: split at blanks outside quotes, `*` matched with names."""
        found: list[str] = []
        for word in words:
            fields: list[str] = []
            open_field = False
            for text, quoted in self._pieces(word):
                if quoted:
                    fields = [*fields[:-1], fields[-1] + text] if open_field else [*fields, text]
                    open_field = True
                    continue
                pieces = text.split()
                if pieces and open_field and not text[0].isspace():
                    fields[-1] += pieces.pop(0)
                fields += pieces
                open_field = bool(text) and not text[-1].isspace() and bool(fields)
            if any("*" in text for text, quote in word.parts if not quote):
                fields = [match for each in fields for match in self._names(each)]
            found += fields
        return found

    def _names(self, pattern: str) -> list[str]:
        folder, last = os.path.split(pattern)
        try:
            names = self._process.namespace.names(folder or ".", cwd=self._process.cwd)
        except OSError:
            names = []
        matches = [n for n in names if fnmatch.fnmatchcase(n, last) and not n.startswith(".")]
        return [os.path.join(folder, name) for name in matches] or [pattern]

    def _pieces(self, word: Word) -> Iterator[tuple[str, bool]]:
        for text, quote in word.parts:
            if quote == "'":
                yield text, True
            else:
                yield self._substitute(text), quote == '"'

    def _substitute(self, text: str) -> str:
        out, at = [], 0
        while at < len(text):
            if text.startswith("$((", at):
                end = closing_parenthesis(text, at + 2)
                inner = self._substitute(text[at + 3 : end - 1])
                out.append(str(evaluate(inner, self._process.env)))
                at = end + 1
            elif text.startswith("$(", at):
                end = closing_parenthesis(text, at + 2)
                out.append(self._output_of(text[at + 2 : end]))
                at = end + 1
            elif match := _PARAMETER.match(text, at):
                out.append(self._parameter(match[1] or match[2]))
                at = match.end()
            elif text[at] == "\\" and at + 1 < len(text):
                out.append(text[at + 1])
                at += 2
            else:
                out.append(text[at])
                at += 1
        return "".join(out)

"""PowerShell as values: one builder, one quoting function, no script text put together by hand.

A `Command` is a cmdlet of `harness.remote.cmdlets` with checked parameters. PSRP carries it as a
structure (`CreatePipeline` with one command, `IsScript` false), so that nothing is quoted on the
wire; `text` is the same command as a person would type it, for plans, journals and reports.
`-ErrorAction Stop` is always among the parameters: a failure is the pipeline's failure, never a
line on some stream that nobody reads.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from harness.errors import UsageError
from harness.remote.cmdlets import CMDLETS, Cmdlet, Kind

Value = bool | int | str | bytes | tuple[str, ...] | Mapping[str, str | int | tuple[str, ...]]

# PowerShell takes each of these for an apostrophe (its CharTraits.IsSingleQuote).
_APOSTROPHES: Final = re.compile("(['\u2018\u2019\u201a\u201b])")


def quote(text: str) -> str:
    """Return `text` as a verbatim string literal: nothing in it is expanded or ends it.

    Raises UsageError for a NUL character, which no Windows interface takes.
    """
    if "\0" in text:
        raise UsageError(f"a PowerShell string cannot hold a NUL character: {text!r}")
    return "'" + _APOSTROPHES.sub(r"\1\1", text) + "'"


@dataclass(frozen=True, slots=True)
class Command:
    """One cmdlet with its parameters, checked against the table; `-ErrorAction Stop` is last."""

    cmdlet: Cmdlet
    parameters: Mapping[str, Value]

    @classmethod
    def build(cls, name: str, parameters: Mapping[str, Value] | None = None) -> Command:
        """Return the command; `None` is no parameters.

        Raises UsageError for a cmdlet or parameter that is not in the table, a missing one, or a
        value of the wrong type.
        """
        cmdlet = CMDLETS.get(name)
        if cmdlet is None:
            raise UsageError(f"{name} is no PowerShell command of ours{_near(name, CMDLETS)}")
        given = dict(parameters or {})
        for key, value in given.items():
            kind = cmdlet.parameters.get(key)
            if kind is None:
                raise UsageError(f"{name} has no parameter {key}{_near(key, cmdlet.parameters)}")
            if not _fits(kind, value):
                raise UsageError(f"{name} -{key} takes {kind.value}, not {type(value).__name__}")
        if lacking := sorted(cmdlet.required - given.keys()):
            raise UsageError(f"{name} needs {', '.join(lacking)}")
        return cls(cmdlet, MappingProxyType({**given, "ErrorAction": "Stop"}))

    @property
    def text(self) -> str:
        """The command as a person would type it: one line unless a value holds a line break."""
        parts = [self.cmdlet.name]
        for name, value in self.parameters.items():
            if value is True:
                parts.append(f"-{name}")
            elif value is False:
                parts.append(f"-{name}:$false")
            else:
                parts.append(f"-{name} {_literal(value)}")
        return " ".join(parts)

    def __str__(self) -> str:
        return self.text


def _fits(kind: Kind, value: Value) -> bool:
    match kind:
        case Kind.TEXT:
            return isinstance(value, str)
        case Kind.TEXTS:
            return _is_texts(value)
        case Kind.INTEGER:
            return _is_integer(value)
        case Kind.SWITCH:
            return isinstance(value, bool)
        case Kind.BYTES:
            return isinstance(value, bytes)
        case Kind.SCALAR:
            return _is_scalar(value)
        case Kind.TABLE:
            return isinstance(value, Mapping) and all(
                isinstance(key, str) and _is_scalar(each) for key, each in value.items()
            )


def _is_texts(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(v, str) for v in value)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_scalar(value: object) -> bool:
    return isinstance(value, str) or _is_integer(value) or _is_texts(value)


def _literal(value: Value) -> str:
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, int):
        # A bare -5 would be looked up as a parameter named 5.
        return f"({value})" if value < 0 else str(value)
    if isinstance(value, bytes):
        return f"([byte[]]({','.join(map(str, value))}))" if value else "([byte[]]@())"
    if isinstance(value, tuple):
        return ",".join(quote(each) for each in value)
    pairs = "; ".join(f"{quote(key)} = {_literal(each)}" for key, each in value.items())
    return f"@{{{pairs}}}"


def _near(word: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else f": {', '.join(known) or 'it has none'}"

"""The grammar of a fault specification, after FreeBSD's and containerd's failpoints.

::

    spec   = term { "->" term }
    term   = [ count "*" ] action
    action = "ok"                 the call goes through
           | "error(" HRESULT ")" refused: it does not happen, and the answer is this code
           | "hang(" time ")"     it happens, that much later (ms, s)
           | "timeout"            it does not happen, and nobody answers
           | "lost"               it happens, and nobody answers
           | "die"                the utility VM dies instead
           | "off"                it goes through, from now on

A term without a count stands for one call. After the last term the boundary is off.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final

from harness.errors import UsageError

_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|s)")
_UNITS: Final = {"ms": 1000, "s": 1}  # parts of a second
_HRESULT_MAX: Final = 0xFFFFFFFF


class Action(enum.StrEnum):
    """What a call meets."""

    OK = "ok"
    ERROR = "error"
    HANG = "hang"
    TIMEOUT = "timeout"
    LOST = "lost"
    DIE = "die"
    OFF = "off"


class FaultSyntaxError(UsageError):
    """A specification that is none; `position` counts characters from 0."""

    def __init__(self, spec: str, position: int, problem: str) -> None:
        super().__init__(
            f"fault specification: {problem} at position {position}: "
            f"{spec[:position]} >>> {spec[position:] or '(end)'}"
        )
        self.spec = spec
        self.position = position


@dataclass(frozen=True, slots=True)
class Fault:
    """One action, `count` times; `hresult` of `error`, `delay_s` of `hang`."""

    action: Action
    count: int = 1
    hresult: int = 0
    delay_s: float = 0.0

    def __str__(self) -> str:
        argument = ""
        if self.action is Action.ERROR:
            argument = f"(0x{self.hresult:08X})"
        elif self.action is Action.HANG:
            argument = f"({self.delay_s * 1000:g}ms)"
        prefix = "" if self.count == 1 else f"{self.count}*"
        return f"{prefix}{self.action}{argument}"


def parse_spec(text: str) -> tuple[Fault, ...]:
    """Return the terms of a specification. Raises FaultSyntaxError naming the position."""
    faults: list[Fault] = []
    at = 0
    while True:
        fault, at = _term(text, at)
        faults.append(fault)
        at = _blank(text, at)
        if at == len(text):
            return tuple(faults)
        if fault.action is Action.OFF:
            raise FaultSyntaxError(text, at, "nothing follows off")
        if not text.startswith("->", at):
            raise FaultSyntaxError(text, at, "expected -> or the end")
        at += 2


def _blank(text: str, at: int) -> int:
    while at < len(text) and text[at] == " ":
        at += 1
    return at


def _term(text: str, at: int) -> tuple[Fault, int]:
    at = _blank(text, at)
    count = 1
    if number := re.compile(r"\d+").match(text, at):
        count = int(number[0])
        if not count:
            raise FaultSyntaxError(text, at, "a count is 1 at least")
        at = _blank(text, number.end())
        if not text.startswith("*", at):
            raise FaultSyntaxError(text, at, "expected * after a count")
        at = _blank(text, at + 1)
    word = re.compile(r"[a-z]+").match(text, at)
    if word is None or word[0] not in set(Action):
        known = ", ".join(Action)
        raise FaultSyntaxError(text, at, f"expected one of {known}")
    action = Action(word[0])
    if action is Action.OFF and count != 1:
        raise FaultSyntaxError(text, at, "off takes no count: it lasts")
    end = word.end()
    if action not in (Action.ERROR, Action.HANG):
        if text.startswith("(", end):
            raise FaultSyntaxError(text, end, f"{action} takes no argument")
        return Fault(action, count), end
    return _with_argument(text, end, action, count)


def _with_argument(text: str, at: int, action: Action, count: int) -> tuple[Fault, int]:
    if not text.startswith("(", at):
        raise FaultSyntaxError(text, at, f"{action} needs an argument in parentheses")
    close = text.find(")", at)
    if close < 0:
        raise FaultSyntaxError(text, len(text), "a parenthesis is not closed")
    argument = text[at + 1 : close].strip()
    if action is Action.HANG:
        match = _TIME.fullmatch(argument)
        if match is None:
            raise FaultSyntaxError(text, at + 1, "expected a time such as 200ms or 1.5s")
        delay_s = float(match[1]) / _UNITS[match[2]]
        return Fault(action, count, delay_s=delay_s), close + 1
    try:
        hresult = int(argument, 0)
    except ValueError:
        hresult = -1
    if not 0 < hresult <= _HRESULT_MAX:
        raise FaultSyntaxError(text, at + 1, "expected an HRESULT such as 0xC037010E")
    return Fault(action, count, hresult=hresult), close + 1

"""What a console program of Windows says, before it becomes bytes on a pipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from harness.winrmd.cmdlets import Machine


@dataclass(frozen=True, slots=True)
class Answer:
    r"""Exit code, and the text of both streams with `\n` for line ends."""

    code: int = 0
    out: str = ""
    err: str = ""


Tool: TypeAlias = Callable[[Machine, Sequence[str]], Answer]
"""A program: takes its arguments without its own name."""


def switches(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `-x` as `/x`, switches in lower case: how most tools read them."""
    return [
        "/" + each[1:].lower() if each[:1] in ("/", "-") and len(each) > 1 else each
        for each in arguments
    ]


def value_after(arguments: Sequence[str], switch: str) -> str | None:
    """Return what follows a switch (given as `switches` spells it), or None."""
    spelled = switches(arguments)
    if switch not in spelled or spelled.index(switch) + 1 >= len(arguments):
        return None
    return arguments[spelled.index(switch) + 1]

"""The grammar of troubles: what an endpoint does to which of its requests.

::

    spec  = [ name ":" ] term { "->" term }
    name  = last part of an action: Create, Command, Send, Receive, Signal, Delete, Enumerate, Get …
    term  = [ count "*" ] trouble
    trouble = "ok"           the request is answered
            | "drop-before"  the connection is cut, nothing was done
            | "drop-after"   it was done, its answer is lost
            | "reboot"       the host restarts instead
            | "quota"        refused: the user has too many shells
            | "413" | "503" | "500"  HTTP errors of http.sys

Without a name every request counts; a term without a count stands for one request. Troubles of two
specifications come on top of each other.
"""

from __future__ import annotations

import re
from typing import Final

from harness.errors import UsageError
from harness.winrmd import faults
from harness.winrmd.knobs import ANY, Strike, Trouble

_OK: Final = "ok"
_QUOTA: Final = "quota"
_SPEC: Final = re.compile(r"\s*(?:(?P<name>[A-Za-z]+)\s*:)?(?P<terms>.*)", re.DOTALL)
_TERM: Final = re.compile(r"\s*(?:(?P<count>[1-9]\d*)\s*\*\s*)?(?P<word>[a-z0-9-]+)\s*")
_MOST_SHELLS: Final = 30


def parse_troubles(spec: str) -> tuple[Strike, ...]:
    """Return the strikes of a specification. Raises UsageError naming the term that is none."""
    match = _SPEC.fullmatch(spec)
    assert match is not None  # it matches any text
    strikes = []
    at = 1
    for text in match["terms"].split("->"):
        term = _TERM.fullmatch(text)
        word = term["word"] if term is not None else ""
        known = {each.value: each for each in Trouble if each is not Trouble.FAULT}
        if term is None or word not in {_OK, _QUOTA, *known}:
            raise UsageError(
                f"{text.strip()!r} in {spec!r} is no trouble: write [COUNT*]WORD with one of "
                f"{', '.join((_OK, _QUOTA, *known))}, joined by ->"
            )
        count = int(term["count"] or 1)
        if word == _QUOTA:
            strikes.append(
                Strike(
                    Trouble.FAULT,
                    match["name"] or ANY,
                    nth=at,
                    times=count,
                    make_fault=lambda: faults.too_many_shells(_MOST_SHELLS),
                )
            )
        elif word != _OK:
            strikes.append(Strike(known[word], match["name"] or ANY, nth=at, times=count))
        at += count
    return tuple(strikes)

"""Text that any report can hold: a guest's console may contain whatever a guest writes."""

from __future__ import annotations

import re

# ECMA-48: CSI sequences, OSC strings (ended by BEL or ST), and two-character escapes.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
# XML 1.0 Char: #x9 | #xA | #xD | [#x20-#xD7FF] | [#xE000-#xFFFD] | [#x10000-#x10FFFF]; C1 and DEL
# are legal there, yet no terminal or browser shows them as they are.
_UNPRINTABLE = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufdcf\ufdf0-\ufffd\U00010000-\U0010ffff]"
)


def printable(text: str) -> str:
    """Return `text` without terminal escapes; what XML cannot hold becomes U+FFFD."""
    without = _ESCAPES.sub("", text).replace("\r\n", "\n")
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", without)


def tail(text: str, *, lines: int) -> str:
    """Return the last lines of a console, printable and without trailing blank ones."""
    return "\n".join(printable(text).rstrip().splitlines()[-lines:])


def seconds(duration_s: float) -> str:
    """Return a duration as people read it: 0 s, 0.4 ms, 12 ms, 1.24 s, 2 min 05 s."""
    if duration_s < 0.00005:
        return "0 s"
    if duration_s < 0.00995:
        return f"{duration_s * 1000:.1f} ms"
    if duration_s < 0.9995:
        return f"{duration_s * 1000:.0f} ms"
    if duration_s < 59.95:
        return f"{duration_s:.2f} s" if duration_s < 9.995 else f"{duration_s:.1f} s"
    minutes, rest = divmod(round(duration_s), 60)
    return f"{minutes} min {rest:02d} s"


def spelled(fact: float | str | bool) -> str:
    """Return a fact as people read it: yes, no, at most four digits of a float."""
    if isinstance(fact, bool):
        return "yes" if fact else "no"
    return f"{fact:.4g}" if isinstance(fact, float) else str(fact)

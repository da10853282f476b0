"""`json` for the guest: the C scanner and encoder alone.

The standard module compiles regular expressions at its import, for the fallbacks in Python. It
differs for text with blanks before or after the value, which both take, in nothing but messages.
"""

# mypy: ignore-errors

from __future__ import annotations

import sys
from _json import encode_basestring, encode_basestring_ascii, make_encoder, make_scanner

_BLANK = " \t\n\r"


class JSONDecodeError(ValueError):
    """Text that is not JSON."""

    def __init__(self, msg, doc, pos):
        super().__init__(f"{msg}: char {pos}")
        self.msg = msg
        self.doc = doc
        self.pos = pos


# The scanner in C looks for its exception there, and finds nothing where it was not imported.
sys.modules.setdefault("json.decoder", sys.modules[__name__])


def _constant(name):
    return {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}[name]


class _Context:
    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_constant)


_scan = make_scanner(_Context)


def _refuse(value):
    raise TypeError(f"{value.__class__.__name__} is not JSON")


def loads(text):
    """Return what JSON text, or its UTF-8 bytes, means. Raises JSONDecodeError, RecursionError."""
    if not isinstance(text, str):
        text = text.decode("utf-8", "surrogatepass")
    start = len(text) - len(text.lstrip(_BLANK))
    try:
        value, end = _scan(text, start)
    except StopIteration as error:
        raise JSONDecodeError("no value", text, error.value) from None
    if text[end:].strip(_BLANK):
        raise JSONDecodeError("extra data", text, end)
    return value


def dumps(value, *, separators=(", ", ": "), ensure_ascii=True):
    """Return a value as JSON text in one line. Raises TypeError, ValueError (a circle)."""
    encode = encode_basestring_ascii if ensure_ascii else encode_basestring
    between, after_key = separators
    encoder = make_encoder({}, _refuse, encode, None, after_key, between, False, False, True)
    return "".join(encoder(value, 0))

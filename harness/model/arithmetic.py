"""The shell's arithmetic, as far as the model plays it."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping


def evaluate(text: str, variables: Mapping[str, str]) -> int:
    """Return the value of an expression of + - * / % and parentheses. Raises OSError (ENOSYS)."""
    names = re.sub(r"[A-Za-z_]\w*", lambda m: variables.get(m[0], "0") or "0", text)
    tokens = re.findall(r"\d+|[-+*/%()]", names)
    if "".join(tokens) != names.replace(" ", ""):
        raise OSError(errno.ENOSYS, f"the model does not play $(({text}))")
    return _sum(tokens)


def _sum(tokens: list[str]) -> int:
    value = _product(tokens)
    while tokens and tokens[0] in "+-":
        sign = 1 if tokens.pop(0) == "+" else -1
        value += sign * _product(tokens)
    return value


def _product(tokens: list[str]) -> int:
    value = _atom(tokens)
    while tokens and tokens[0] in "*/%":
        operator, other = tokens.pop(0), _atom(tokens)
        value = (
            value * other
            if operator == "*"
            else (value // other if operator == "/" else value % other)
        )
    return value


def _atom(tokens: list[str]) -> int:
    token = tokens.pop(0)
    if token == "(":  # noqa: S105 - a token of arithmetic
        value = _sum(tokens)
        tokens.pop(0)
        return value
    if token == "-":  # noqa: S105
        return -_atom(tokens)
    return int(token)

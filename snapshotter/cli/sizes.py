"""Sizes on the command line: `20G`, `20 GiB`, `512`."""

from __future__ import annotations

import re
from typing import Final

import typer

_SIZE: Final = re.compile(r"(\d+)\s*(?:([KMGT])(?:i?B)?|B)?", re.IGNORECASE | re.ASCII)
_EXPONENTS: Final = "KMGT"


def parse_size(text: str) -> int:
    """Return a number of bytes; units are powers of 1024. Raises typer.BadParameter."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no size; write a number of bytes, or 64M, 20G, 1T")
    number, unit = found.groups()
    exponent = 1 + _EXPONENTS.index(unit.upper()) if unit else 0
    return int(number) << 10 * exponent

"""Windows code pages by their numbers, as WINRS_CODEPAGE and `chcp` name them."""

from __future__ import annotations

import codecs
from typing import Final

_UTF_8: Final = "65001"


def codec_of(code_page: str) -> str:
    """Return Python's codec for a code page number. Raises LookupError for one it has not."""
    if code_page == _UTF_8:
        return "utf-8"
    if not code_page.isascii() or not code_page.isdigit():
        raise LookupError(f"no code page {code_page!r}")
    return codecs.lookup(f"cp{int(code_page)}").name


def code_page_number(codec: str) -> str:
    """Return the number of a code page from `codec_of`'s name for it."""
    return _UTF_8 if codec == "utf-8" else codec.removeprefix("cp")

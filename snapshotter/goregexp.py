r"""Go regular expressions (RE2) as Python patterns, as far as filters need them.

Both languages agree on most of what people write. Told apart here: `$` and `\z` (the very end),
ASCII-only `\d \w \s \b`, `[[:alpha:]]` classes, `\Q...\E`, `(?P<x>` and `(?<x>` names; what RE2
rejects (back-references, look-around, possessive and atomic groups) is rejected.
"""

from __future__ import annotations

import re
import warnings
from typing import Final

from snapshotter.errors import InvalidArgumentError
from snapshotter.linearmatch import BadRepeatError, LinearPattern, TooLargeError

_POSIX: Final = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7F",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1F\x7F",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
}
_POSIX_CLASS: Final = re.compile(r"\[:(?P<not>\^?)(?P<name>.*?):\]", re.DOTALL)
_GROUP: Final = re.compile(r"\(\?(?:P?<([A-Za-z_]\w*)>|([ims]*)(-[ims]+)?([:)]))")
_KNOWN_ESCAPES: Final = frozenset("dDwWsSbBAafnrtvx")
_NUMBER: Final = "(?:0|[1-9][0-9]*)"  # "{01}" is no repeat
_QUANTIFIER: Final = re.compile(rf"(?:[*+?]|\{{{_NUMBER}(?:,{_NUMBER}?)?\}})\??")
_ASSERTIONS: Final = frozenset(["^", "$", r"\A", r"\Z", r"\b", r"\B"])
_MAX_LENGTH: Final = 10_000
"""Compiling a longer one would hold up everybody; snapshots' names are shorter."""
_MAX_REPEAT: Final = 1000
_UNGREEDY: Final = re.compile(r"\(\?[imsU-]+[:)]")


class _BadRegexpError(Exception):
    """The expression is none in RE2."""


def compile_go_regexp(text: str) -> LinearPattern | None:
    r"""The pattern, or None for an expression that is none in Go: it matches nothing.

    Raises InvalidArgumentError for a valid one that cannot be expressed here (`\p{...}`, `(?U)`),
    or is too large: better refused than matched wrongly.
    """
    if len(text) > _MAX_LENGTH:
        raise InvalidArgumentError(f"regular expression {text[:100]!r}... is too large")
    try:
        translated = _translate(text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # "[[" and the like: not in Go
            return LinearPattern(re.compile(translated, re.ASCII))
    except (_BadRegexpError, BadRepeatError, re.error, OverflowError, RecursionError):
        return None
    except TooLargeError as error:
        raise InvalidArgumentError(f"regular expression {text!r} is too large") from error


def _translate(text: str) -> str:
    out: list[str] = []
    multiline = [False]  # one a group that is open
    at = 0
    while at < len(text):
        character = text[at]
        if character == "\\":
            piece, at = _escape(text, at, in_class=False)
        elif character == "[":
            piece, at = _class(text, at)
        elif character == "(":
            piece, at = _group(text, at, multiline)
        elif character == ")":
            if len(multiline) == 1:
                raise _BadRegexpError
            multiline.pop()
            piece, at = ")", at + 1
        elif character == "$":
            piece, at = "$" if multiline[-1] else r"\Z", at + 1
        elif character in "*+?{":
            piece, at = _quantifier(text, at)
            if out and out[-1] in _ASSERTIONS:
                out[-1] = f"(?:{out[-1]})"  # Python repeats groups alone
        else:
            piece, at = character, at + 1
        out.append(piece)
    return "".join(out)


def _quantifier(text: str, at: int) -> tuple[str, int]:
    match = _QUANTIFIER.match(text, at)
    if match is None:
        return r"\{", at + 1  # "{" that begins no repeat is a character
    if text.startswith("+", match.end()):
        raise _BadRegexpError  # possessive in Python, nothing in Go
    if any(int(count) > _MAX_REPEAT for count in re.findall("[0-9]+", match.group())):
        raise _BadRegexpError
    return match.group(), match.end()


def _group(text: str, at: int, multiline: list[bool]) -> tuple[str, int]:
    if not text.startswith("(?", at):
        multiline.append(multiline[-1])
        return "(", at + 1
    match = _GROUP.match(text, at)
    if match is None:
        if _UNGREEDY.match(text, at):
            raise InvalidArgumentError(f"regular expression {text!r}: (?U) is not supported")
        raise _BadRegexpError
    name, on, off, end = match.groups()
    if name is not None:
        multiline.append(multiline[-1])
        return "(", match.end()  # Go lets two groups have one name
    inner = "m" in on or (multiline[-1] and "m" not in (off or ""))
    if end == ":":
        multiline.append(inner)
        return f"(?{on}{off or ''}:", match.end()
    if at == 0 and not off:
        multiline[-1] = inner
        return f"(?{on})" if on else "", match.end()
    raise InvalidArgumentError(
        f"regular expression {text!r}: flags are supported at its beginning or as (?i:...)"
    )


def _class(text: str, at: int) -> tuple[str, int]:
    out = ["["]
    at += 1
    if text.startswith("^", at):
        out.append("^")
        at += 1
    first = True
    while first or not text.startswith("]", at):
        if at >= len(text):
            raise _BadRegexpError
        posix = _POSIX_CLASS.match(text, at)
        if posix is not None:
            if posix["name"] not in _POSIX:
                raise _BadRegexpError
            if posix["not"]:
                raise InvalidArgumentError(
                    f"regular expression {text!r}: {posix[0]} is not supported"
                )
            piece, at = _POSIX[posix["name"]], posix.end()
        elif text[at] == "\\":
            piece, at = _escape(text, at, in_class=True)
        else:
            # Python gives "[", "&&", "||", "~~" and "--" in a class a warning or a meaning.
            piece, at = ("\\" if text[at] in "[&|~]" else "") + text[at], at + 1
        out.append(piece)
        first = False
    return "".join(out) + "]", at + 1


def _escape(text: str, at: int, *, in_class: bool) -> tuple[str, int]:
    if at + 1 >= len(text):
        raise _BadRegexpError
    character = text[at + 1]
    if character == "Q" and not in_class:
        end = text.find(r"\E", at + 2)
        literal = text[at + 2 :] if end < 0 else text[at + 2 : end]
        return re.escape(literal), len(text) if end < 0 else end + 2
    if character == "z" and not in_class:
        return r"\Z", at + 2
    if character in "pPC":
        raise InvalidArgumentError(f"regular expression {text!r}: \\{character} is not supported")
    if character == "x" and text.startswith("{", at + 2):
        end = text.find("}", at)
        digits = text[at + 3 : end] if end > 0 else ""
        if re.fullmatch("[0-9a-fA-F]{1,6}", digits) is None or int(digits, 16) > 0x10FFFF:
            raise _BadRegexpError
        return re.escape(chr(int(digits, 16))), end + 1
    if character == "0":
        octal = re.match("[0-7]{1,3}", text[at + 1 :])
        digits = octal.group() if octal is not None else "0"
        return re.escape(chr(int(digits, 8))), at + 1 + len(digits)
    if character in _KNOWN_ESCAPES and not (in_class and character in "bBA"):
        return text[at : at + 2], at + 2
    if character.isascii() and not character.isalnum():
        return "\\" + character, at + 2
    raise _BadRegexpError

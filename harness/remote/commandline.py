r"""An argv as the one line that `cmd.exe /c` and the C runtime take apart again.

A WinRS command always passes through `%COMSPEC% /C` (only before Windows Server 2012 R2 could that
be skipped), so two parsers see it. The second, `CommandLineToArgvW`, wants backslashes doubled
before a quotation mark. The first strips an outer pair of quotation marks when the line starts with
one, expands `%NAME%` even inside them, and takes `& | < > ( ) ^` outside of them as its own. So:

- an argument without special characters stands as it is;
- one without `"` and `%` goes between quotation marks, where cmd leaves everything alone;
- any other, and a program's path with spaces, has *every* special character carried by a caret,
  quotation marks included: cmd then never enters its quoted state, and `^%` cannot complete the
  name of a variable.

Sources: `cmd /?`; Microsoft's "Parsing C++ command-line arguments".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from harness.errors import UsageError

MAX_LENGTH: Final = 8191
"""Characters that cmd.exe takes; longer lines fail there with exit code 1."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9_./:\\+@#$*?~-]+")
_SPECIAL: Final = re.compile(r'(["%&|<>()^!\s,;=])')
_UNSENDABLE: Final = re.compile(r"[\0\r\n]")


def command_line(argv: Sequence[str]) -> str:
    """Return the line that gives a program exactly this argv.

    Raises UsageError for an empty argv, a line break or NUL in it, or a line that is too long.
    """
    if not argv or not argv[0]:
        raise UsageError("a command needs a program")
    for argument in argv:
        if _UNSENDABLE.search(argument):
            raise UsageError(f"cmd.exe takes no line break: send {argument!r} on standard input")
    line = " ".join([_program(argv[0]), *(_argument(each) for each in argv[1:])])
    if len(line) > MAX_LENGTH:
        raise UsageError(
            f"a command line of {len(line)} characters, {MAX_LENGTH} at most: "
            "send the rest on standard input"
        )
    return line


def _program(path: str) -> str:
    if '"' in path:
        raise UsageError(f"no program has a quotation mark in its name: {path!r}")
    return path if _PLAIN.fullmatch(path) else _carets(f'"{path}"')


def _argument(argument: str) -> str:
    if _PLAIN.fullmatch(argument):
        return argument
    quoted = _quoted(argument)
    return _carets(quoted) if '"' in argument or "%" in argument else quoted


def _quoted(argument: str) -> str:
    # 2n backslashes before a quotation mark are n of them; 2n+1 are n and a literal mark.
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', argument)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    return f'"{escaped}"'


def _carets(text: str) -> str:
    return _SPECIAL.sub(r"^\1", text)

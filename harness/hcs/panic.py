"""Finds the end of a kernel in what it writes to its console."""

from __future__ import annotations

import re
from typing import Final

# After one of these the kernel has stopped, or nothing it does can be trusted. Stalls and soft
# lockups are not among them: a loaded host makes those under emulation.
_FATAL: Final = re.compile(
    rb"(?:Kernel panic - not syncing"
    rb"|kernel BUG at "
    rb"|BUG: (?:unable to handle|kernel NULL pointer|Bad )"
    rb"|Oops: "
    rb"|general protection fault"
    rb"|Unable to mount root fs)[^\r\n]*"
)
_LONGEST_LINE: Final = 4096


class PanicScanner:
    """Reads console output in pieces, cut anywhere."""

    def __init__(self) -> None:
        self._line = bytearray()

    def feed(self, data: bytes) -> str | None:
        """Return the first fatal message among the lines that `data` completes, or None."""
        *lines, rest = data.split(b"\n")
        found = None
        for line in lines:
            self._line += line
            found = found or self._match()
            self._line.clear()
        self._line += rest
        del self._line[_LONGEST_LINE:]
        return found

    def finish(self) -> str | None:
        """Return a fatal message in the unfinished line at the end of the output, or None."""
        return self._match()

    def _match(self) -> str | None:
        match = _FATAL.search(self._line)
        return match[0].decode("utf-8", "replace").strip() if match else None

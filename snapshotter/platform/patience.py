"""Trying again after a moment, within a bound."""

from __future__ import annotations

import time
from typing import Final

DEFAULT_BUSY_WAIT_S: Final = 1.0
"""A virus scanner has a new file open for tenths of a second; a utility VM, for hours."""

_FIRST_PAUSE_S: Final = 0.01


class Patience:
    """The pauses between the tries of one operation; together they last `bound_s` at most."""

    def __init__(self, bound_s: float) -> None:
        self._deadline = time.monotonic() + bound_s
        self._pause_s = _FIRST_PAUSE_S

    def wait(self) -> bool:
        """Pause, each time twice as long; False at once where the bound is reached."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(self._pause_s, left))
        self._pause_s *= 2
        return True

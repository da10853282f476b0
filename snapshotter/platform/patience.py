"""Trying again after a moment, within a bound."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from snapshotter.platform.winerror import BUSY, winerror_of

_log = logging.getLogger(__name__)

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


def patiently(rename: Callable[[], object], *, bound_s: float = DEFAULT_BUSY_WAIT_S) -> None:
    """Do `rename`, and once more for as long as somebody has the file open, within the bound.

    For files that nobody else knows yet, which a scanner opens as soon as they are written. Raises
    OSError.
    """
    patience = Patience(bound_s)
    while True:
        try:
            rename()
        except OSError as error:
            if winerror_of(error) not in BUSY or not patience.wait():
                raise
        else:
            return


def discard_file(path: Path, *, bound_s: float = DEFAULT_BUSY_WAIT_S) -> None:
    """Delete a file of ours that came to nothing, where it is there, as `patiently` does.

    A failure is logged and not raised: there is an error under way that says more.
    """
    try:
        patiently(lambda: path.unlink(missing_ok=True), bound_s=bound_s)
    except OSError as error:
        _log.warning("cannot delete %s: %s; delete it", path, error)

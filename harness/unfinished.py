"""Releases that failed and that nobody is left to repeat: kept until one of them goes through."""

from __future__ import annotations

import threading
from collections.abc import Callable

from harness.errors import HarnessError


class Unfinished:
    """Releases of one machine, each of which may be repeated; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._releases: list[Callable[[], None]] = []

    def keep(self, release: Callable[[], None]) -> None:
        """Note a release that failed."""
        with self._lock:
            self._releases.append(release)

    def finish(self) -> list[HarnessError]:
        """Repeat every one, keep those that fail again, and return their errors."""
        with self._lock:
            pending, self._releases = self._releases, []
        errors: list[HarnessError] = []
        for release in pending:
            try:
                release()
            except HarnessError as error:
                errors.append(error)
                self.keep(release)
        return errors

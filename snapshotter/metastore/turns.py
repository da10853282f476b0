"""Taking turns, first come first served.

Unlike a lock, whoever has the turn can tell whether somebody waits for it, and can hand it over
to just that one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class Turns:
    """One turn, and the threads that wait for it."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Event] = deque()

    def take(self, *, timeout_s: float, abandon: Callable[[], None]) -> bool:
        """Whether the turn came within the time; then it has to be given away again.

        Where waiting is interrupted (KeyboardInterrupt) just after the turn came, `abandon` is
        called to give it away.
        """
        with self._mutex:
            if not self._taken:
                self._taken = True
                return True
            mine = threading.Event()
            self._waiting.append(mine)
        try:
            if mine.wait(timeout_s):
                return True
        except BaseException:
            if not self._give_up(mine):
                abandon()
            raise
        return not self._give_up(mine)

    def hand_on(self) -> bool:
        """Give the turn to the thread that has waited longest; False where nobody waits.

        Then it is still had.
        """
        with self._mutex:
            return self._hand_on()

    def free(self) -> None:
        """Give the turn away, to whoever waits or to nobody."""
        with self._mutex:
            if not self._hand_on():
                self._taken = False

    def _hand_on(self) -> bool:
        if not self._waiting:
            return False
        self._waiting.popleft().set()
        return True

    def _give_up(self, mine: threading.Event) -> bool:
        """Stop waiting; False where the turn came at the last moment."""
        with self._mutex:
            if mine.is_set():
                return False
            self._waiting.remove(mine)
            return True

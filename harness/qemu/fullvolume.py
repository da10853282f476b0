"""A machine that stopped because the volume below a disk is full goes on when there is room.

QEMU stops the machine at a write that meets ENOSPC (werror=enospc) and repeats the write when it
is told to go on. Hyper-V does the same by itself ("paused-critical"), so this service does, too,
and says so: the whole time is one pause, however often the write was tried in vain::

    RUNNING ──no room──> WAITING ──told to go on, no complaint for a while──> RUNNING
                          └─^ told to go on, no room still
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from harness.errors import ComputeServiceError, SystemExitedError
from harness.qemu.qmp import QmpEvent

_RETRY_S: Final = 0.5


class FullVolume:
    """Watches one machine's events and reports its pauses."""

    def __init__(
        self,
        resume: Callable[[], None],
        *,
        paused: Callable[[QmpEvent], None],
        resumed: Callable[[float], None],
        retry_s: float = _RETRY_S,
    ) -> None:
        """`resume` tells the machine to go on; SystemExitedError ends the watch.

        `paused` gets QEMU's event that began a pause, in the thread of `event`; `resumed` the
        seconds that the pause took.
        """
        self._resume = resume
        self._paused = paused
        self._resumed = resumed
        self._retry_s = retry_s
        self._lock = threading.Lock()
        self._waiting = False
        self._complaints = 0

    def event(self, event: QmpEvent) -> None:
        """Note an event; never blocks. A machine that stopped for lack of room goes on later."""
        if event.name != "BLOCK_IO_ERROR" or event.data.get("action") != "stop":
            return
        if not event.data.get("nospace"):
            return
        with self._lock:
            self._complaints += 1
            if self._waiting:
                return
            self._waiting = True
        self._paused(event)
        threading.Thread(target=self._wait_for_room, name="full volume", daemon=True).start()

    def _wait_for_room(self) -> None:
        began = time.monotonic()
        time.sleep(self._retry_s)
        while True:
            with self._lock:
                before = self._complaints
            resumed_at = time.monotonic()
            told = False
            try:
                self._resume()
                told = True
            except SystemExitedError:
                return
            except ComputeServiceError:
                pass  # QEMU is busy: it is told again
            time.sleep(self._retry_s)
            with self._lock:
                if told and self._complaints == before:
                    self._waiting = False
                    break
        self._resumed(resumed_at - began)

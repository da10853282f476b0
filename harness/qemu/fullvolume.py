"""A machine that stopped because the volume below a disk is full goes on when there is room.

QEMU stops the machine at a write that meets ENOSPC (werror=enospc) and repeats the write when it
is told to go on. Hyper-V does the same by itself ("paused-critical"), so this service does, too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from harness.qemu.qmp import QmpEvent

_RETRY_S: Final = 0.5


class FullVolume:
    """Watches one machine's events; `resume` tells the machine to go on, and may raise."""

    def __init__(self, resume: Callable[[], None], *, retry_s: float = _RETRY_S) -> None:
        self._resume = resume
        self._retry_s = retry_s
        self._lock = threading.Lock()
        self._waiting = False

    def event(self, event: QmpEvent) -> None:
        """Note an event; never blocks. A machine that stopped for lack of room goes on later."""
        if event.name != "BLOCK_IO_ERROR" or event.data.get("action") != "stop":
            return
        if not event.data.get("nospace"):
            return
        with self._lock:
            if self._waiting:
                return
            self._waiting = True
        threading.Thread(target=self._go_on, name="full volume", daemon=True).start()

    def _go_on(self) -> None:
        """Go on once; where there is still no room, the machine stops and reports it again."""
        time.sleep(self._retry_s)
        with self._lock:
            self._waiting = False
        self._resume()

"""The agent's log: JSON lines, kept in memory until a sink takes them.

Everything goes to the host's log port when it listens there; warnings and errors go to the
console as well, which is slow (a byte at a time) but works without a host.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

_BACKLOG = 1000  # lines kept while nobody reads them; the newest are dropped then


class Log:
    """Writes lines; never raises and never waits for a sink."""

    def __init__(self, console: Callable[[str], None]) -> None:
        self._console = console
        self._lines: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._forwarding = threading.Lock()

    def info(self, message: str, fields: Mapping[str, object] | None = None) -> None:
        """Note something that happened."""
        self._write("info", message, fields)

    def warning(self, message: str, fields: Mapping[str, object] | None = None) -> None:
        """Note something that the agent got over."""
        self._console(self._write("warning", message, fields))

    def error(self, message: str, fields: Mapping[str, object] | None = None) -> None:
        """Note a failure of the agent itself."""
        self._console(self._write("error", message, fields))

    def forward(self, send: Callable[[bytes], None]) -> None:
        """Hand every line to `send`, from a thread of its own, until that raises OSError.

        A second call while the first still forwards does nothing.
        """
        if self._forwarding.acquire(blocking=False):
            threading.Thread(target=self._forward, args=(send,), name="log", daemon=True).start()

    def _forward(self, send: Callable[[bytes], None]) -> None:
        try:
            while True:
                with self._changed:
                    while not self._lines:
                        self._changed.wait()
                    line = self._lines.popleft()
                send(line)
        except OSError:
            pass  # the host does not listen any more; the lines gather again
        finally:
            self._forwarding.release()

    def _write(self, level: str, message: str, fields: Mapping[str, object] | None) -> str:
        seconds, milliseconds = divmod(time.time_ns() // 1_000_000, 1000)
        now = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{milliseconds:03}+00:00"
        line = json.dumps({"time": now, "level": level, "msg": message, **(fields or {})})
        with self._changed:
            if len(self._lines) < _BACKLOG:  # a log nobody reads must not grow without end
                self._lines.append(line.encode() + b"\n")
                self._changed.notify()
        return line

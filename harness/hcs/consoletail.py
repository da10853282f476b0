"""The last bytes of a stream that nobody may be reading: a console, a program's output."""

from __future__ import annotations

import threading
from typing import Final

TAIL_SIZE: Final = 64 * 1024


class Tail:
    """Keeps the last `size` bytes it was given. May be used from any thread."""

    def __init__(self, size: int = TAIL_SIZE) -> None:
        self._size = size
        self._data = bytearray()
        self._lock = threading.Lock()

    def add(self, data: bytes) -> None:
        """Append, and forget what is too old."""
        with self._lock:
            self._data += data
            if len(self._data) > self._size:
                del self._data[: -self._size]

    def text(self) -> str:
        """Return what is kept, as text; bytes that are no UTF-8 show as replacement characters."""
        with self._lock:
            return self._data.decode("utf-8", "replace")

"""The digest of a stream beside the work on it: hashlib lets go of the interpreter while it hashes.

SHA-256 runs at about 2 GB/s, which would be a third of the time of a large layer. A second thread
hides that behind the reading and writing, which let go of the interpreter too.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from types import TracebackType
from typing import Final, Self

_BUFFERS: Final = 6  # as many as the two sides may be apart


class StreamHasher:
    """Buffers to read a stream into, and the SHA-256 of what was read; a context manager.

    `take` gives a free buffer, `hash` has its start hashed, and after `hash` the caller may go on
    reading it until its next `take`: a buffer comes back only after the others.
    """

    def __init__(self, buffer_size: int) -> None:
        self._digest = hashlib.sha256()
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._filled: queue.SimpleQueue[tuple[memoryview, int] | None] = queue.SimpleQueue()
        for _ in range(_BUFFERS):
            self._free.put(memoryview(bytearray(buffer_size)))
        self._thread = threading.Thread(target=self._work, name="layer-digest", daemon=True)
        self._stopped = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def take(self) -> memoryview:
        """Return a buffer whose content nobody needs any more."""
        return self._free.get()

    def hash(self, buffer: memoryview, count: int) -> None:
        """Hash the first `count` bytes of `buffer` after everything before."""
        self._filled.put((buffer, count))

    def hexdigest(self) -> str:
        """Return the digest of everything handed over; nothing can follow."""
        self._stop()
        return self._digest.hexdigest()

    def _stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self._filled.put(None)
            self._thread.join()

    def _work(self) -> None:
        while (item := self._filled.get()) is not None:
            buffer, count = item
            self._digest.update(buffer[:count])
            self._free.put(buffer)

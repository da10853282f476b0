"""The chunks of a stream and its digest, with reading and hashing beside the work on the chunks.

SHA-256 runs at about 2 GB/s, gzip is decompressed at half that: much of the time of a large layer.
Both let go of the interpreter, as does writing, so each can have a thread::

    reader --> (chunk) --> the caller --> (chunk) --> hasher --> (free buffer) --> reader

A buffer belongs to one of the three at any time, and there are few: memory is bounded, and whoever
is faster waits.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Final, Self

if TYPE_CHECKING:
    import io

_BUFFERS: Final = 6

_Chunk = tuple[memoryview, int]


class HashedChunks:
    """The chunks of a stream, to be iterated over once, and the SHA-256 of all; a context manager.

    With `ahead`, a thread reads. Leaving the context early waits for the end of one read: `cancel`
    makes that fail, from any thread, where it may wait for somebody else. Without `ahead`, the
    caller's own thread reads.
    """

    def __init__(
        self,
        stream: BinaryIO,
        chunk_size: int,
        *,
        ahead: bool,
        cancel: Callable[[], object] | None = None,
    ) -> None:
        self._stream = stream
        self._cancel = cancel
        self._digest = hashlib.sha256()
        self._free: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[_Chunk | BaseException] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[_Chunk | None] = queue.SimpleQueue()
        for _ in range(_BUFFERS):
            self._free.put(memoryview(bytearray(chunk_size)))
        self._reader = (
            threading.Thread(target=self._read_ahead, name="layer-reader", daemon=True)
            if ahead
            else None
        )
        self._hasher = threading.Thread(target=self._hash, name="layer-digest", daemon=True)
        self._stopped = False
        self._ended = False

    def __enter__(self) -> Self:
        self._hasher.start()
        if self._reader is not None:
            self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def __iter__(self) -> Iterator[memoryview]:
        """Yield the chunks; each is the caller's until it takes the next. Raises as the stream."""
        while True:
            if self._reader is None:
                buffer, count = self._read()
            else:
                item = self._ready.get()
                if isinstance(item, BaseException):
                    raise item
                buffer, count = item
            if not count:
                self._ended = True
                return
            yield buffer[:count]
            self._done.put((buffer, count))

    def hexdigest(self) -> str:
        """Return the digest of every chunk that was taken; nothing can follow."""
        self._stop()
        return self._digest.hexdigest()

    def _read(self) -> _Chunk:
        buffer = self._free.get()
        assert buffer is not None, "only a reader thread is told to stop"
        return buffer, _read_into(self._stream, buffer)

    def _read_ahead(self) -> None:
        try:
            while (buffer := self._free.get()) is not None and not self._stopped:
                count = _read_into(self._stream, buffer)
                self._ready.put((buffer, count))
                if not count:
                    return
        except BaseException as error:  # noqa: BLE001 (the caller raises it)
            self._ready.put(error)

    def _hash(self) -> None:
        while (item := self._done.get()) is not None:
            buffer, count = item
            self._digest.update(buffer[:count])
            self._free.put(buffer)

    def _stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        self._done.put(None)
        self._hasher.join()
        if self._reader is not None:
            self._free.put(None)
            if self._cancel is not None and not self._ended:
                self._cancel()
            self._reader.join()


def _read_into(stream: BinaryIO | io.BufferedReader, buffer: memoryview) -> int:
    """Fill `buffer` as far as the stream goes; returns how far that was."""
    count = 0
    while count < len(buffer):
        step: int = stream.readinto(buffer[count:])  # type: ignore[union-attr]
        if not step:
            break
        count += step
    return count

"""The file of a layer image while it is written: front to back, then its head, then its name.

It lies beside its target under a temporary name until `publish`; leaving the context before that
removes it. So a target is either whole and durable, or as it was.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NoReturn, Self

from snapshotter.errors import UnavailableError
from snapshotter.ext4.format import BLOCK_SIZE
from snapshotter.platform.patience import discard_file, patiently
from snapshotter.units import MIB

_MAX_VECTOR: Final = 1024  # IOV_MAX of Linux
_BATCH: Final = 256 * BLOCK_SIZE
_SYNC_EVERY: Final = 64 * MIB

Buffer = bytes | memoryview


class ImageFile:
    """A file that grows by blocks. Every method raises UnavailableError where the disk refuses."""

    def __init__(
        self, descriptor: int, temporary: Path, target: Path, sync: _EarlySync | None
    ) -> None:
        self._descriptor = descriptor
        self._sync = sync
        self._unsynced = 0
        self._temporary = temporary
        self._target = target
        self._waiting: list[Buffer] = []
        self._waiting_size = 0
        self.block = 0  # where `append` puts its data

    @classmethod
    @contextlib.contextmanager
    def create(cls, target: Path, *, durable: bool = True) -> Iterator[Self]:
        """Yield a new file that `publish` will put in the place of `target`.

        Without `durable`, a power cut soon after `publish` may leave a file of zeros.
        """
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        try:
            descriptor = os.open(temporary, flags | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise UnavailableError(f"cannot create {target}: {error.strerror}") from error
        image = cls(descriptor, temporary, target, _EarlySync(descriptor) if durable else None)
        try:
            yield image
        finally:
            image._close()
            discard_file(temporary)  # after `publish` it is gone

    def start_at(self, block: int) -> None:
        """Leave the blocks before `block` for `write_head`."""
        self.block = block
        try:
            os.lseek(self._descriptor, block * BLOCK_SIZE, os.SEEK_SET)
        except OSError as error:
            self._refused(error)

    def write_pieces(self, pieces: Sequence[Buffer]) -> None:
        """Write `pieces`, which together are whole blocks or go on until they are."""
        self.flush()
        self._write(pieces)

    def append(self, data: bytes) -> int:
        """Take `data`, filled up to whole blocks, for writing; returns its first block."""
        first = self.block
        padding = -len(data) % BLOCK_SIZE
        self._waiting.append(data)
        if padding:
            self._waiting.append(bytes(padding))
        self._waiting_size += len(data) + padding
        self.block += (len(data) + padding) // BLOCK_SIZE
        if self._waiting_size >= _BATCH:
            self.flush()
        return first

    def flush(self) -> None:
        """Write what `append` took."""
        waiting, self._waiting, self._waiting_size = self._waiting, [], 0
        if waiting:
            self._write(waiting)

    def write_head(self, data: bytes) -> None:
        """Write `data` at the start of the file."""
        self.write_at(0, data)

    def truncate(self, size: int) -> None:
        """Set the length to `size` bytes."""
        self.flush()
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            self._refused(error)

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, which must be there."""
        self.flush()
        parts = []
        try:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            while length and (part := os.read(self._descriptor, length)):
                parts.append(part)
                length -= len(part)
        except OSError as error:
            self._refused(error)
        return b"".join(parts)

    def publish(self) -> None:
        """Give the file its name, replacing what had it, and make all of that durable."""
        durable = self._sync is not None
        try:
            self._end_sync()
            if durable:
                os.fsync(self._descriptor)
            self._close()
            patiently(lambda: self._temporary.replace(self._target))
            if durable:
                _sync_directory(self._target.parent)
        except OSError as error:
            self._refused(error)

    def write_at(self, offset: int, data: bytes) -> None:
        """Write `data` at `offset`; `append` does not go on after that."""
        self.flush()
        try:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
        except OSError as error:
            self._refused(error)
        self._write([data])

    def _write(self, pieces: Sequence[Buffer]) -> None:
        try:
            for start in range(0, len(pieces), _MAX_VECTOR):
                batch = pieces[start : start + _MAX_VECTOR]
                total = sum(map(len, batch))
                written = _write_vector(self._descriptor, batch)
                self._unsynced += total
                if written < total:  # rare: the disk is nearly full, or a signal came
                    rest = memoryview(b"".join(batch))[written:]
                    while rest:
                        rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            self._refused(error)
        if self._sync and self._unsynced >= _SYNC_EVERY:
            self._unsynced = 0
            self._sync.request()

    def _refused(self, error: OSError) -> NoReturn:
        raise UnavailableError(f"cannot write {self._target}: {error.strerror}") from error

    def _end_sync(self) -> None:
        sync, self._sync = self._sync, None
        if sync:
            sync.stop()

    def _close(self) -> None:
        self._end_sync()
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class _EarlySync:
    """Has the system write while there is still more to come, so that the last fsync is short.

    A hint and no more: an error here comes again at that fsync, which counts.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._requests: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None  # small layers need none

    def request(self) -> None:
        """Begin to write what is there, or soon."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="layer-sync", daemon=True)
            self._thread.start()
        if self._requests.empty():
            self._requests.put(True)

    def stop(self) -> None:
        """Return when the descriptor is not used any more."""
        if self._thread is not None:
            self._requests.put(False)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while self._requests.get():
            with contextlib.suppress(OSError):
                os.fsync(self._descriptor)


if sys.platform == "win32":

    def _write_vector(descriptor: int, pieces: Sequence[Buffer]) -> int:
        return os.write(descriptor, b"".join(pieces))

    def _sync_directory(directory: Path) -> None:
        del directory  # NTFS logs a rename by itself

else:

    def _write_vector(descriptor: int, pieces: Sequence[Buffer]) -> int:
        return os.writev(descriptor, pieces)

    def _sync_directory(directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

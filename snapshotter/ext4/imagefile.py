"""The file of a layer image while it is written: front to back, then its head, then its name.

It lies beside its target under a temporary name until `publish`; leaving the context before that
removes it. So a target is either whole and durable, or as it was.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NoReturn, Self

from snapshotter.errors import UnavailableError
from snapshotter.ext4.format import BLOCK_SIZE
from snapshotter.platform.patience import patiently

_MAX_VECTOR: Final = 1024  # IOV_MAX of Linux
_BATCH: Final = 256 * BLOCK_SIZE

Buffer = bytes | memoryview


class ImageFile:
    """A file that grows by blocks. Every method raises UnavailableError where the disk refuses."""

    def __init__(self, descriptor: int, temporary: Path, target: Path) -> None:
        self._descriptor = descriptor
        self._temporary = temporary
        self._target = target
        self._waiting: list[Buffer] = []
        self._waiting_size = 0
        self.block = 0  # where `append` puts its data

    @classmethod
    @contextlib.contextmanager
    def create(cls, target: Path) -> Iterator[Self]:
        """Yield a new file that `publish` will put in the place of `target`."""
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        try:
            descriptor = os.open(temporary, flags | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise UnavailableError(f"cannot create {target}: {error.strerror}") from error
        image = cls(descriptor, temporary, target)
        try:
            yield image
        finally:
            image._close()
            temporary.unlink(missing_ok=True)  # after `publish` it is gone

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
        self._write_at(0, data)

    def finish(self, size: int, trailer: bytes) -> None:
        """Set the length to `size` bytes, and write `trailer` after them."""
        self.flush()
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            self._refused(error)
        self._write_at(size, trailer)

    def publish(self) -> None:
        """Make everything durable and give the file its name, replacing what had it."""
        try:
            os.fsync(self._descriptor)
            self._close()
            patiently(lambda: self._temporary.replace(self._target))
            _sync_directory(self._target.parent)
        except OSError as error:
            self._refused(error)

    def _write_at(self, offset: int, data: bytes) -> None:
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
                if written < total:  # rare: the disk is nearly full, or a signal came
                    rest = memoryview(b"".join(batch))[written:]
                    while rest:
                        rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            self._refused(error)

    def _refused(self, error: OSError) -> NoReturn:
        raise UnavailableError(f"cannot write {self._target}: {error.strerror}") from error

    def _close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


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

"""A VHDX file as the disk it holds.

Opening checks every structure once, so that a damaged file is refused as a whole instead of
giving wrong data later. Opened for reading the file is never changed, a dirty log is replayed in
memory; opened for writing the log is replayed on disk first.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self
from uuid import UUID

import numpy as np

from snapshotter.blockio import BlockFile, BlockReader, LocalBlockFile
from snapshotter.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    StorageError,
    UnavailableError,
    VhdxCorruptError,
    VhdxUnsupportedError,
)
from snapshotter.vhdx.bat import PayloadState
from snapshotter.vhdx.batcheck import BatCheck
from snapshotter.vhdx.battable import BatTable
from snapshotter.vhdx.info import VhdxInfo
from snapshotter.vhdx.pages import MetadataPages
from snapshotter.vhdx.sectorbitmap import SectorBitmaps
from snapshotter.vhdx.session import WriteSession
from snapshotter.vhdx.space import FileSpace
from snapshotter.vhdx.structures import Structures, read_structures
from snapshotter.vhdx.writer import VhdxWriter


@dataclass(frozen=True, slots=True)
class OwnRange:
    """A stretch of a disk that the file itself decides, not its parent: data, or zeros."""

    offset: int
    length: int
    is_zero: bool


class VhdxDisk:
    """An open VHDX file: a `BlockReader` of the disk and a context manager.

    A differencing disk needs its `parent`, any `BlockReader` of the disk it was made from.
    """

    def __init__(
        self,
        file: BlockReader,
        info: VhdxInfo,
        table: BatTable,
        bitmaps: SectorBitmaps,
        *,
        parent: BlockReader | None = None,
    ) -> None:
        self._file = file
        self._read_raw = file.read_at  # these two are looked up for every read
        self._table = table
        self._place = table.place
        self._bitmaps = bitmaps
        self._info = info
        self._size = info.size
        self._block_size = info.block_size
        self._block_shift = info.block_size.bit_length() - 1
        self._within_block = info.block_size - 1
        self._parent = parent
        self._writer: VhdxWriter | None = None
        self._owned: LocalBlockFile | None = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        writable: bool = False,
        parent: BlockReader | None = None,
    ) -> Self:
        """Open the VHDX file at `path`; closing the disk closes it, but not the `parent`.

        With `writable` nobody else can, and a dirty log is replayed on disk.

        Raises VhdxCorruptError, VhdxUnsupportedError, UnavailableError, FileNotFoundError,
        FailedPreconditionError where the file is open for writing already.
        """
        file = LocalBlockFile.open(path, writable=writable)
        try:
            if writable:
                disk = cls.load_writable(file, parent=parent)
            else:
                disk = cls.load(file, parent=parent)
        except BaseException:
            file.close()
            raise
        disk._owned = file
        return disk

    @classmethod
    def load(cls, file: BlockReader, *, parent: BlockReader | None = None) -> Self:
        """Return the disk in `file`, which stays the caller's and must stay open.

        Raises VhdxCorruptError, VhdxUnsupportedError for a differencing disk without its parent,
        an unknown version or an unknown structure that is required, InvalidArgumentError for a
        `parent` of a disk that has none.
        """
        found = read_structures(file)
        require_parent(found, parent)
        pages = MetadataPages(found.file)
        table = BatTable(found.file, found.bat_region.offset, found.geometry, pages=pages)
        check = BatCheck(table, file_size=found.file.size, structures=found.extents)
        info = VhdxInfo.of(found, check.require(), file_size=file.size)
        return cls(found.file, info, table, SectorBitmaps(table, pages), parent=parent)

    @classmethod
    def load_writable(cls, file: BlockFile, *, parent: BlockReader | None = None) -> Self:
        """Return the disk in `file` to read and write; raises as `load`.

        Everything is checked before the first byte is changed, and a dirty log is replayed on
        disk. The caller sees to it that nobody else writes to `file`.
        """
        found = read_structures(file)
        require_parent(found, parent)
        checked = BatTable(found.file, found.bat_region.offset, found.geometry)
        check = BatCheck(checked, file_size=found.file.size, structures=found.extents)
        use = check.require()
        session = WriteSession.start(file, found)
        pages = MetadataPages(file)
        table = BatTable(file, found.bat_region.offset, found.geometry, pages=pages)
        bitmaps = SectorBitmaps(table, pages)
        info = VhdxInfo.of(found, use, file_size=file.size)
        disk = cls(file, info, table, bitmaps, parent=parent)
        disk._writer = VhdxWriter(
            file,
            found,
            table,
            bitmaps,
            pages,
            space=FileSpace(use, found.extents, block_size=info.block_size),
            session=session,
            disk=disk,
        )
        return disk

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        with contextlib.suppress(StorageError, UnavailableError):  # the first error says more
            self.close()

    def close(self) -> None:
        """Make every change durable, leave no log to replay, and close the file `open` opened.

        A second call does nothing. Raises UnavailableError; the file is closed then too, and its
        log is replayed at the next open.
        """
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                writer.close()
        finally:
            if self._owned is not None:
                self._owned.close()

    @property
    def size(self) -> int:
        """Length of the disk in bytes."""
        return self._size

    @property
    def block_size(self) -> int:
        """Length of a payload block in bytes."""
        return self._block_size

    def info(self) -> VhdxInfo:
        """Return what the file said about itself and its disk when it was opened."""
        return self._info

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes of the disk from `offset`; fewer only where its end is reached.

        Raises InvalidArgumentError for a negative offset or length.
        """
        within = offset & self._within_block
        if 0 < length <= self._block_size - within and 0 <= offset <= self._size - length:
            place = self._place(offset >> self._block_shift)
            if place >= 0:
                raw = self._read_raw(place + within, length)
                return raw if len(raw) == length else self._read_file(place + within, length)
        if offset < 0 or length < 0:
            raise InvalidArgumentError(f"cannot read {length} bytes at {offset}")
        length = min(length, self._size - offset)
        if length <= 0:
            return b""
        if self._parent is not None:
            return self._read_child(offset, length)
        return b"".join(
            bytes(count) if place < 0 else self._read_file(place, count)
            for place, count in self._runs(offset, length)
        )

    def announce(self, data_write_guid: UUID) -> None:
        """Give the file this DataWriteGuid, durably, before its data changes for the first time.

        For those who must know it in advance; else the first change makes one up. Raises
        FailedPreconditionError for a disk opened for reading, UnavailableError.
        """
        self._writable(0, 0).announce(data_write_guid)

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at `offset` of the disk; it is durable after `flush` or `close`.

        Raises InvalidArgumentError where that is not on the disk, FailedPreconditionError for a
        disk opened for reading, UnavailableError.
        """
        view = memoryview(data).cast("B")
        self._writable(offset, len(view)).write(offset, view)

    def trim(self, offset: int, length: int) -> None:
        """Make `length` bytes from `offset` read as zeros; whole blocks give their room back.

        Not in a fixed disk: its blocks stay where they are. Raises as `write_at`.
        """
        self._writable(offset, length).trim(offset, length)

    def flush(self) -> None:
        """Return only when everything written so far would survive a power cut.

        Raises FailedPreconditionError for a disk opened for reading, UnavailableError.
        """
        self._writable(0, 0).flush()

    def _writable(self, offset: int, length: int) -> VhdxWriter:
        if self._writer is None:
            raise FailedPreconditionError(
                "the disk is open for reading alone; open it with writable=True"
            )
        if offset < 0 or length < 0 or offset + length > self._size:
            raise InvalidArgumentError(
                f"{length} bytes at {offset} are not on a disk of {self._size} bytes"
            )
        return self._writer

    def _runs(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (file offset or -1, length) of a stretch of the disk, neighbours joined."""
        run_place, run_length = -1, 0
        while length:
            block, within = divmod(offset, self._block_size)
            count = min(length, self._block_size - within)
            place = self._place(block)
            if place >= 0:
                place += within
            follows = run_place + run_length == place if run_place >= 0 else place < 0
            if run_length and not follows:
                yield run_place, run_length
                run_length = 0
            if not run_length:
                run_place = place
            run_length += count
            offset += count
            length -= count
        yield run_place, run_length

    def _read_child(self, offset: int, length: int) -> bytes:
        """Read a stretch of a differencing disk, block by block."""
        parts: list[bytes] = []
        while length:
            block, within = divmod(offset, self._block_size)
            count = min(length, self._block_size - within)
            state, place = self._table.entry(self._table.geometry.index(block))
            if state == PayloadState.FULLY_PRESENT:
                parts.append(self._read_file(place + within, count))
            elif state == PayloadState.NOT_PRESENT:
                parts.append(self._read_parent(offset, count))
            elif state == PayloadState.PARTIALLY_PRESENT:
                start = offset - within
                parts += (
                    self._read_file(place + at, run) if own else self._read_parent(start + at, run)
                    for at, run, own in self._bitmaps.runs(block, within, count)
                )
            else:
                parts.append(bytes(count))
            offset, length = offset + count, length - count
        return b"".join(parts)

    def _read_parent(self, offset: int, length: int) -> bytes:
        assert self._parent is not None  # asked for at open
        # A parent that is shorter than its child, as after a resize, ends in zeros.
        return self._parent.read_at(offset, length).ljust(length, b"\0")

    def _read_file(self, offset: int, length: int) -> bytes:
        raw = self._file.read_at(offset, length)
        if len(raw) < length:  # places are checked at open: the file shrank since
            raise VhdxCorruptError(
                "payload block", "the file ends inside", section="2.4", offset=offset
            )
        return raw

    def allocated_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the disk's stretches that may hold data, ascending.

        Everything between them reads as zeros. Neighbours are joined, so that a caller who copies
        a disk has one stretch per gap. Of a differencing disk these are whole blocks: those that
        the parent decides count as data.
        """
        states = {PayloadState.FULLY_PRESENT, PayloadState.PARTIALLY_PRESENT}
        if self._parent is not None:
            states.add(PayloadState.NOT_PRESENT)
        yield from self._ranges(states)

    @property
    def file(self) -> LocalBlockFile | None:
        """The file that `open` opened, where its bytes are those of the disk.

        None in a differencing disk, and where a log is replayed in memory.
        """
        return self._owned if self._parent is None and self._file is self._owned else None

    def file_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (offset in `file` or -1, length) of a stretch of the disk; -1 reads as zeros."""
        return self._runs(offset, length)

    def own_ranges(self) -> Iterator[OwnRange]:
        """Yield what the file itself decides of a differencing disk, ascending.

        Everything between is as in the parent. Without a parent: what is FULLY_PRESENT or ZERO.
        """
        geometry = self._table.geometry
        for first, words in self._table.payload_words():
            states = words & np.uint64(7)
            for at in np.flatnonzero(states != PayloadState.NOT_PRESENT).tolist():
                block, state = first + at, int(states[at])
                start, length = self._clip(block, block + 1)
                if state != PayloadState.PARTIALLY_PRESENT:
                    yield OwnRange(start, length, state != PayloadState.FULLY_PRESENT)
                    continue
                for within, run, own in self._bitmaps.runs(block, 0, length):
                    if own:
                        yield OwnRange(block * geometry.block_size + within, run, is_zero=False)

    def _ranges(self, wanted: set[PayloadState]) -> Iterator[tuple[int, int]]:
        states = np.array(sorted(wanted), dtype=np.uint64)
        open_start, open_end = 0, 0
        for first, words in self._table.payload_words():
            present = np.isin(words & np.uint64(7), states)
            edges = np.flatnonzero(np.diff(present, prepend=False, append=False)) + first
            for start, end in edges.reshape(-1, 2).tolist():
                if start != open_end and open_end > open_start:
                    yield self._clip(open_start, open_end)
                if start != open_end or open_end == open_start:
                    open_start = start
                open_end = end
        if open_end > open_start:
            yield self._clip(open_start, open_end)

    def _clip(self, first_block: int, end_block: int) -> tuple[int, int]:
        start = first_block * self._block_size
        return start, min(end_block * self._block_size, self._size) - start


def require_parent(found: Structures, parent: BlockReader | None) -> None:
    """Raise VhdxUnsupportedError for a differencing disk without its parent.

    And InvalidArgumentError for a parent of a disk that has none: it would show through.
    """
    if parent is not None and not found.parameters.has_parent:
        raise InvalidArgumentError("the disk has no parent: open it without one")
    if found.parameters.has_parent and parent is None:
        raise VhdxUnsupportedError(
            "a differencing disk: it can be read only together with its parent;"
            " open it through its chain"
        )

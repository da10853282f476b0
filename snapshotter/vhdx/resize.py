"""Another size for the disk in a VHDX file.

Room for the larger table and its new entries lie where nothing refers to until one log entry
changes the size (and the region tables, where the table had to move) as a whole. A smaller disk
drops the blocks behind its end: the size first, then their entries, then the file is cut.
"""

from __future__ import annotations

import os
import struct
from dataclasses import replace

from snapshotter.blockio import BlockFile, LocalBlockFile
from snapshotter.errors import InvalidArgumentError, VhdxUnsupportedError
from snapshotter.units import MIB, TIB
from snapshotter.vhdx.bat import ENTRY_SIZE, BatBuilder, BatGeometry
from snapshotter.vhdx.batcheck import BatCheck
from snapshotter.vhdx.battable import BatTable
from snapshotter.vhdx.format import ALIGNMENT, MAX_DISK_SIZE, REGION_TABLE_OFFSETS
from snapshotter.vhdx.log import SECTOR
from snapshotter.vhdx.metadata import VIRTUAL_DISK_SIZE
from snapshotter.vhdx.pages import MetadataPages
from snapshotter.vhdx.region import BAT_REGION, RegionTable
from snapshotter.vhdx.session import WriteSession
from snapshotter.vhdx.space import FileSpace
from snapshotter.vhdx.structures import Structures, read_structures


def resize_vhdx(path: str | os.PathLike[str], size: int, *, shrink: bool = False) -> None:
    """Give the disk in the file at `path` another size, durably; what is new reads as zeros.

    `shrink` says that what lies behind a smaller size may be lost. On failure the disk has the old
    size or the new one, whole.

    Raises InvalidArgumentError for a size the format cannot hold, or a smaller one without
    `shrink`; VhdxUnsupportedError for a differencing disk; what `VhdxDisk.open` raises.
    """
    with LocalBlockFile.open(path, writable=True) as file:
        resize(file, size, shrink=shrink)


def resize(file: BlockFile, size: int, *, shrink: bool = False) -> None:
    """As `resize_vhdx`, for a file that the caller has open and nobody else changes."""
    found = read_structures(file)
    _check_request(found, size, shrink=shrink)
    table = BatTable(found.file, found.bat_region.offset, found.geometry)
    use = BatCheck(table, file_size=found.file.size, structures=found.extents).require()
    session = WriteSession.start(file, found)
    if size != found.parameters.disk_size:
        space = FileSpace(use, found.extents, block_size=found.parameters.block_size)
        _Resizer(file, found, session, end=space.end).run(size)


def _check_request(found: Structures, size: int, *, shrink: bool) -> None:
    parameters = replace(found.parameters, disk_size=size)
    if parameters.problem() is not None or size == 0:
        raise InvalidArgumentError(
            f"no VHDX can hold {size} bytes: sizes are multiples of the logical sector,"
            f" {parameters.logical_sector_size}, up to {MAX_DISK_SIZE // TIB} TiB"
        )
    if size < found.parameters.disk_size and not shrink:
        raise InvalidArgumentError(
            f"{size} bytes are less than the disk has, {found.parameters.disk_size}: allow it to"
            " shrink, and shrink the file system first"
        )
    if parameters.has_parent and size != found.parameters.disk_size:
        # [MS-VHDX] 2.6.2.2: a child is as long as its parent.
        raise VhdxUnsupportedError(
            "a differencing disk has the size of its parent: merge it first, then resize"
        )


class _Resizer:
    """One change of size; `end` is where everything in use ends in the file."""

    def __init__(
        self, file: BlockFile, found: Structures, session: WriteSession, *, end: int
    ) -> None:
        self._file = file
        self._found = found
        self._session = session
        self._end = end
        self._pages = MetadataPages(file)
        self._old = found.geometry
        self._bat = found.bat_region.offset

    def run(self, size: int) -> None:
        new = replace(self._old, disk_size=size)
        self._session.begin()
        with self._session.guard():
            place = self._found.item_places[VIRTUAL_DISK_SIZE]
            self._pages.write(place, struct.pack("<Q", size))
            if size > self._old.disk_size:
                self._zero_tail()
                self._grow(new)
        self._commit()
        if size < self._old.disk_size:
            self._drop_blocks(new)
        self._session.close()
        if size < self._old.disk_size:
            self._cut_file()

    def _commit(self) -> None:
        self._session.commit(self._pages.changes())
        self._pages.settled()

    def _zero_tail(self) -> None:
        """Make what the last block holds behind the disk's end part of the disk, as zeros."""
        within = self._old.disk_size % self._old.block_size
        if not within:
            return
        table = BatTable(self._file, self._bat, self._old, pages=self._pages)
        place = table.place(self._old.payload_blocks - 1)
        if place >= 0:
            start, stop = place + within, place + self._old.block_size
            if start < self._file.size:
                self._file.write_zeros(start, min(stop, self._file.size) - start)
            if stop > self._file.size:
                self._file.truncate(stop)

    def _grow(self, new: BatGeometry) -> None:
        used = self._old.entries * ENTRY_SIZE
        needed = new.entries * ENTRY_SIZE
        length = self._found.bat_region.length
        moves = needed > length
        bat = self._bat
        if moves:
            bat, length = self._end, -(-needed // ALIGNMENT) * ALIGNMENT
            self._extend(length)
            for start in range(0, used, MIB):
                part = self._file.read_at(self._bat + start, min(MIB, used - start))
                self._file.write_at(bat + start, part)
            self._move_region(bat, length)
        builder = BatBuilder(new)
        if self._found.parameters.leave_blocks_allocated:
            blocks = new.payload_blocks - self._old.payload_blocks
            builder.set_run(self._old.payload_blocks, blocks, self._end)
            self._extend(blocks * new.block_size)
        # A sector that holds old entries too is logged, unless all of the table is new.
        shared = bat + used if moves else -(-(bat + used) // SECTOR) * SECTOR
        shared = min(shared, bat + needed)
        if not moves:
            self._pages.write(bat + used, bytes(shared - bat - used))
            self._file.write_zeros(shared, bat + needed - shared)
        for offset, raw in builder.pieces(bat):
            fresh = raw[max(0, bat + used - offset) :]
            offset += len(raw) - len(fresh)
            logged = max(0, min(len(fresh), shared - offset))
            if logged:
                self._pages.write(offset, fresh[:logged])
            if fresh[logged:]:
                self._file.write_at(offset + logged, fresh[logged:])

    def _extend(self, length: int) -> None:
        """Add zeros behind everything in use."""
        size = self._file.size
        if self._end < size:
            self._file.write_zeros(self._end, min(length, size - self._end))
        self._end += length
        if self._end > size:
            self._file.truncate(self._end)

    def _move_region(self, offset: int, length: int) -> None:
        table = RegionTable(
            tuple(
                replace(entry, offset=offset, length=length) if entry.guid == BAT_REGION else entry
                for entry in self._found.regions.entries
            )
        )
        self._found = replace(self._found, regions=table)
        raw = table.pack()
        for at in REGION_TABLE_OFFSETS:
            old = self._pages.read(at, RegionTable.SIZE)
            for start in range(0, RegionTable.SIZE, SECTOR):
                part = raw[start : start + SECTOR]
                if part != old[start : start + SECTOR]:
                    self._pages.write(at + start, part)

    def _drop_blocks(self, new: BatGeometry) -> None:
        """Clear the entries of blocks behind the new end, as many as fit an entry at a time."""
        table = BatTable(self._file, self._bat, self._old, pages=self._pages)
        for block in table.find(new.payload_blocks, self._old.payload_blocks, but=(0,)):
            if self._pages.changed_sectors >= self._session.capacity:
                self._commit()
            with self._session.guard():
                table.set_entry(self._old.index(block), 0)
        self._commit()

    def _cut_file(self) -> None:
        found = read_structures(self._file)
        table = BatTable(found.file, found.bat_region.offset, found.geometry)
        use = BatCheck(table, file_size=self._file.size, structures=found.extents).require()
        end = FileSpace(use, found.extents, block_size=found.parameters.block_size).end
        if end < self._file.size:
            self._file.truncate(end)
            self._file.flush()

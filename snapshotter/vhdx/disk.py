"""A VHDX file as the disk it holds, read only.

Opening checks every structure once, so that a damaged file is refused as a whole instead of
giving wrong data later; the file itself is never changed, a dirty log is replayed in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self
from uuid import UUID

import numpy as np

from snapshotter.blockio import BlockReader, LocalBlockFile
from snapshotter.errors import InvalidArgumentError, VhdxCorruptError, VhdxError
from snapshotter.vhdx.bat import ENTRY_SIZE, BatGeometry, BatReader, PayloadState
from snapshotter.vhdx.format import (
    HEADER_OFFSETS,
    HEADER_SECTION_SIZE,
    REGION_TABLE_OFFSETS,
    FileIdentifier,
)
from snapshotter.vhdx.header import NO_GUID, Header, current_header
from snapshotter.vhdx.log import active_sequence, check_replayable
from snapshotter.vhdx.metadata import TABLE_SIZE, DiskParameters, MetadataTable
from snapshotter.vhdx.region import (
    BAT_REGION,
    METADATA_REGION,
    Extent,
    RegionEntry,
    RegionTable,
    check_disjoint,
)
from snapshotter.vhdx.replay import ReplayedFile


@dataclass(frozen=True, slots=True)
class VhdxInfo:
    """What a VHDX file says about itself; sizes in bytes.

    `log_dirty` is true where the log has to be replayed before anyone writes to the disk,
    `replayed_entries` is how many entries that takes. `blocks` counts payload blocks by state.
    """

    size: int
    block_size: int
    logical_sector_size: int
    physical_sector_size: int
    disk_id: UUID
    leave_blocks_allocated: bool
    creator: str
    file_size: int
    sequence_number: int
    file_write_guid: UUID
    data_write_guid: UUID
    log_length: int
    log_dirty: bool
    replayed_entries: int
    blocks: Mapping[PayloadState, int]


class VhdxDisk:
    """A VHDX file open for reading: a `BlockReader` of the disk and a context manager."""

    def __init__(self, file: BlockReader, bat: BatReader, info: VhdxInfo) -> None:
        self._file = file
        self._bat = bat
        self._place = bat.place
        self._info = info
        self._size = info.size
        self._block_size = info.block_size
        self._owned: LocalBlockFile | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the VHDX file at `path`; closing the disk closes it.

        Raises VhdxCorruptError, VhdxUnsupportedError, UnavailableError, FileNotFoundError.
        """
        file = LocalBlockFile.open(path)
        try:
            disk = cls.load(file)
        except BaseException:
            file.close()
            raise
        disk._owned = file
        return disk

    @classmethod
    def load(cls, file: BlockReader) -> Self:
        """Return the disk in `file`, which stays the caller's and must stay open.

        Raises VhdxCorruptError, VhdxUnsupportedError for a disk with a parent, an unknown version
        or an unknown structure that is required.
        """
        identifier = FileIdentifier.unpack(file.read_at(0, FileIdentifier.SIZE))
        first, second = (file.read_at(at, Header.SIZE) for at in HEADER_OFFSETS)
        header = current_header(first, second)
        replayed, entries = _replay(file, header)
        regions = _read_region_table(replayed)
        structures = [
            Extent("header section", 0, HEADER_SECTION_SIZE),
            Extent("log", header.log_offset, header.log_length),
            *(entry.extent for entry in regions.entries),
        ]
        check_disjoint(extent for extent in structures if extent.length)
        parameters = _read_metadata(replayed, regions.find(METADATA_REGION))
        bat = _open_bat(replayed, regions.find(BAT_REGION), parameters)
        blocks = bat.check([extent for extent in structures if extent.length])
        info = VhdxInfo(
            size=parameters.disk_size,
            block_size=parameters.block_size,
            logical_sector_size=parameters.logical_sector_size,
            physical_sector_size=parameters.physical_sector_size,
            disk_id=parameters.disk_id,
            leave_blocks_allocated=parameters.leave_blocks_allocated,
            creator=identifier.creator,
            file_size=file.size,
            sequence_number=header.sequence_number,
            file_write_guid=header.file_write_guid,
            data_write_guid=header.data_write_guid,
            log_length=header.log_length,
            log_dirty=header.log_guid != NO_GUID,
            replayed_entries=entries,
            blocks=blocks,
        )
        return cls(replayed, bat, info)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file that `open` opened; a second call does nothing."""
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
        """Return what the file says about itself and its disk."""
        return self._info

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes of the disk from `offset`; fewer only where its end is reached.

        Raises InvalidArgumentError for a negative offset or length.
        """
        if offset < 0 or length < 0:
            raise InvalidArgumentError(f"cannot read {length} bytes at {offset}")
        length = min(length, self._size - offset)
        if length <= 0:
            return b""
        block, within = divmod(offset, self._block_size)
        if within + length <= self._block_size:
            place = self._place(block)
            return bytes(length) if place < 0 else self._read_file(place + within, length)
        return b"".join(
            bytes(count) if place < 0 else self._read_file(place, count)
            for place, count in self._runs(offset, length)
        )

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

    def _read_file(self, offset: int, length: int) -> bytes:
        raw = self._file.read_at(offset, length)
        if len(raw) < length:  # places are checked at open: the file shrank since
            raise VhdxCorruptError(
                "payload block", "the file ends inside", section="2.4", offset=offset
            )
        return raw

    def allocated_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the disk's stretches that have data in the file, ascending.

        Everything between them reads as zeros. Neighbours are joined, so that a caller who copies
        a disk has one stretch per gap.
        """
        open_start, open_end = 0, 0
        for first, words in self._bat.payload_words():
            present = (words & np.uint64(7)) == PayloadState.FULLY_PRESENT
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


def _replay(file: BlockReader, header: Header) -> tuple[BlockReader, int]:
    """Return the file as it reads after replaying its log, and how many entries that took."""
    if header.log_guid == NO_GUID:
        return file, 0
    at = header.log_offset
    check_replayable(header.log_length, at=at)
    ring = file.read_at(at, header.log_length)
    if len(ring) < header.log_length:
        raise VhdxCorruptError("log", "the file ends inside", section="2.3", offset=at)
    sequence = active_sequence(ring, log_guid=header.log_guid, at=at)
    if not sequence:
        return file, 0
    return ReplayedFile.check(file, sequence, at=at), len(sequence)


def _read_region_table(file: BlockReader) -> RegionTable:
    """Return the first region table that is intact: the second is a copy."""
    failure: VhdxError | None = None
    for at in REGION_TABLE_OFFSETS:
        try:
            return RegionTable.unpack(file.read_at(at, RegionTable.SIZE), at=at)
        except VhdxCorruptError as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _read_metadata(file: BlockReader, region: RegionEntry) -> DiskParameters:
    if region.length < TABLE_SIZE or region.extent.end > file.size:
        raise VhdxCorruptError(
            "metadata region",
            f"{region.length} bytes in a file of {file.size}",
            section="2.6",
            offset=region.offset,
        )
    table = MetadataTable.unpack(
        file.read_at(region.offset, TABLE_SIZE), at=region.offset, region_length=region.length
    )
    places = table.locate()
    items = {
        item_id: file.read_at(region.offset + offset, length)
        for item_id, (offset, length) in places.items()
    }
    return DiskParameters.from_items(
        items, places={item_id: region.offset + offset for item_id, (offset, _) in places.items()}
    )


def _open_bat(file: BlockReader, region: RegionEntry, parameters: DiskParameters) -> BatReader:
    geometry = BatGeometry(
        parameters.disk_size, parameters.block_size, parameters.logical_sector_size
    )
    if region.length < geometry.entries * ENTRY_SIZE or region.extent.end > file.size:
        raise VhdxCorruptError(
            "BAT region",
            f"{region.length} bytes for {geometry.entries} entries in a file of {file.size}",
            section="2.5",
            offset=region.offset,
        )
    return BatReader(file, region.offset, geometry)

"""Log entries to write, [MS-VHDX] 2.3.1, and the ring they go to."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from snapshotter.blockio import BlockFile
from snapshotter.vhdx.format import structure_checksum
from snapshotter.vhdx.log import SECTOR, EntryHeader, SectorUpdate

# Header and descriptors fit one sector: 64 + 126 x 32 = 4096.
MAX_UPDATES: Final = (SECTOR - EntryHeader.LAYOUT.size) // SectorUpdate.LAYOUT.size


def pack_entry(
    updates: Sequence[tuple[int, bytes]],
    *,
    sequence_number: int,
    tail: int,
    log_guid: UUID,
    file_size: int,
) -> bytes:
    """Return an entry that writes 4 KiB of data to each file offset of `updates`.

    `tail` is the offset in the log of the oldest entry still to be replayed with this one.
    `file_size` is the length that the file has on disk and must have after a replay. At most
    `MAX_UPDATES`.
    """
    assert len(updates) <= MAX_UPDATES
    descriptors, sectors = bytearray(), bytearray()
    for offset, data in updates:
        descriptors += SectorUpdate.LAYOUT.pack(
            b"desc", data[-4:], data[:8], offset, sequence_number
        )
        sectors += SectorUpdate.SECTOR_LAYOUT.pack(
            b"data", sequence_number >> 32, data[8:-4], sequence_number & 0xFFFF_FFFF
        )
    header = EntryHeader.LAYOUT.pack(
        b"loge",
        0,
        SECTOR + len(sectors),
        tail,
        sequence_number,
        len(updates),
        0,
        log_guid.bytes_le,
        file_size,
        file_size,
    )
    raw = bytearray((header + descriptors).ljust(SECTOR, b"\0") + sectors)
    struct.pack_into("<I", raw, 4, structure_checksum(bytes(raw)))
    return bytes(raw)


class LogRing:
    """The log at `offset` of `file`, of `length` bytes, under one LogGuid.

    Every entry is its own tail: when it is written, all before it have been applied and flushed,
    so that a replay needs this one alone. An entry takes at most half of the ring and so never
    covers the one before it, which counts until this one is whole on disk: the ring cannot fill.
    """

    def __init__(self, file: BlockFile, offset: int, length: int, log_guid: UUID) -> None:
        self._file = file
        self._offset = offset
        self._length = length
        self._log_guid = log_guid
        self._position = 0
        self._sequence_number = 0

    @staticmethod
    def capacity(length: int) -> int:
        """Return how many updates an entry of a log of `length` bytes holds; 0: unusable."""
        return max(0, min(MAX_UPDATES, length // 2 // SECTOR - 1))

    def append(self, updates: Sequence[tuple[int, bytes]], *, file_size: int) -> None:
        """Write an entry behind the last one. The caller has flushed before, and flushes after."""
        self._sequence_number += 1
        raw = pack_entry(
            updates,
            sequence_number=self._sequence_number,
            tail=self._position,
            log_guid=self._log_guid,
            file_size=file_size,
        )
        first = min(len(raw), self._length - self._position)
        self._file.write_at(self._offset + self._position, raw[:first])
        if first < len(raw):
            self._file.write_at(self._offset, raw[first:])
        self._position = (self._position + len(raw)) % self._length

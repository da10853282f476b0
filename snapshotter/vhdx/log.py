"""The log, [MS-VHDX] 2.3: a ring of entries, and which of them have to be replayed.

A log is dirty when the header's LogGuid is not zero. Its active sequence is the run of entries
with the greatest sequence number whose newest entry (the head) names an entry of the run as its
tail; everything from the tail to the head is replayed. An entry that a power cut tore simply ends
a run before it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Final
from uuid import UUID

from snapshotter.errors import VhdxCorruptError, VhdxUnsupportedError
from snapshotter.units import MIB
from snapshotter.vhdx.format import structure_checksum

SECTOR: Final = 4096
# Far above what writers make (1 MiB for each TiB or so): bounds the memory a replay can take.
MAX_REPLAY_LENGTH: Final = 64 * MIB

_ENTRY = b"loge"
_ZERO = b"zero"
_DATA_DESCRIPTOR = b"desc"
_DATA_SECTOR = b"data"
_OFFSET_LIMIT = 1 << 63


@dataclass(frozen=True, slots=True)
class EntryHeader:
    """Log entry header, [MS-VHDX] 2.3.1.1; `tail` is an offset in the log."""

    LAYOUT: ClassVar = struct.Struct("<4sIIIQII16sQQ")

    checksum: int
    entry_length: int
    tail: int
    sequence_number: int
    descriptor_count: int
    log_guid: UUID
    flushed_file_offset: int
    last_file_offset: int

    @property
    def descriptor_sectors(self) -> int:
        """How many sectors the header and its descriptors fill: 126 fit the first, 128 others."""
        return -(-(self.LAYOUT.size + _DESCRIPTOR_SIZE * self.descriptor_count) // SECTOR)

    @classmethod
    def parse(cls, ring: bytes, start: int, *, log_guid: UUID) -> EntryHeader | None:
        """Return the header at `start`, None where none of this log's with legal fields is."""
        signature, checksum, length, tail, sequence, count, reserved, guid, flushed, last = (
            cls.LAYOUT.unpack_from(ring, start)
        )
        if signature != _ENTRY or guid != log_guid.bytes_le or reserved or not sequence:
            return None
        header = cls(checksum, length, tail, sequence, count, log_guid, flushed, last)
        if length % SECTOR or not header.descriptor_sectors * SECTOR <= length <= len(ring):
            return None
        if tail % SECTOR or tail >= len(ring) or last >= _OFFSET_LIMIT:
            return None
        return header


assert EntryHeader.LAYOUT.size == 64

_DESCRIPTOR_SIZE = 32


@dataclass(frozen=True, slots=True)
class ZeroedRange:
    """What a zero descriptor asks for, [MS-VHDX] 2.3.1.2: zeros from `offset` for `length`."""

    LAYOUT: ClassVar = struct.Struct("<4sIQQQ")

    offset: int
    length: int

    @classmethod
    def parse(cls, raw: bytes, *, sequence_number: int) -> ZeroedRange | None:
        """Return the range of a descriptor, None where a field is not legal."""
        _signature, reserved, length, offset, sequence = cls.LAYOUT.unpack(raw)
        if reserved or length % SECTOR or offset % SECTOR or sequence != sequence_number:
            return None
        if offset + length > _OFFSET_LIMIT:
            return None
        return cls(offset, length)


@dataclass(frozen=True, slots=True)
class SectorUpdate:
    """What a data descriptor and its data sector ask for, [MS-VHDX] 2.3.1.3 and 2.3.1.4."""

    LAYOUT: ClassVar = struct.Struct("<4s4s8sQQ")
    SECTOR_LAYOUT: ClassVar = struct.Struct("<4sI4084sI")

    offset: int
    data: bytes

    @classmethod
    def parse(cls, raw: bytes, sector: bytes, *, sequence_number: int) -> SectorUpdate | None:
        """Return the restored 4 KiB, None where a field is not legal or the sector is torn."""
        _signature, trailing, leading, offset, sequence = cls.LAYOUT.unpack(raw)
        _signature, sequence_high, middle, sequence_low = cls.SECTOR_LAYOUT.unpack(sector)
        if not sequence == sequence_number == sequence_high << 32 | sequence_low:
            return None
        if offset % SECTOR or offset + SECTOR > _OFFSET_LIMIT:
            return None
        return cls(offset, leading + middle + trailing)


assert ZeroedRange.LAYOUT.size == SectorUpdate.LAYOUT.size == _DESCRIPTOR_SIZE
assert SectorUpdate.SECTOR_LAYOUT.size == SECTOR


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A valid log entry, [MS-VHDX] 2.3.1, at `start` in the log."""

    start: int
    header: EntryHeader
    updates: tuple[ZeroedRange | SectorUpdate, ...]

    @classmethod
    def parse(cls, ring: bytes, start: int, *, log_guid: UUID) -> LogEntry | None:
        """Return the entry at `start`, which may wrap round the end; None where it is not valid.

        The signatures of its sectors are looked at before the checksum is computed: they end the
        entry at the next header, so that no sector is hashed for two entries.
        """
        header = EntryHeader.parse(ring, start, log_guid=log_guid)
        if header is None:
            return None
        first_data = header.descriptor_sectors
        for sector in range(1, header.entry_length // SECTOR):
            at = (start + sector * SECTOR) % len(ring)
            signature = ring[at : at + 4]
            expected = (_ZERO, _DATA_DESCRIPTOR) if sector < first_data else (_DATA_SECTOR,)
            if signature not in expected:
                return None
        end = start + header.entry_length
        raw = ring[start:end]
        if end > len(ring):
            raw += ring[: end - len(ring)]
        if structure_checksum(raw) != header.checksum:
            return None
        updates = _parse_descriptors(raw, header)
        return None if updates is None else cls(start, header, updates)


def _parse_descriptors(
    raw: bytes, header: EntryHeader
) -> tuple[ZeroedRange | SectorUpdate, ...] | None:
    updates: list[ZeroedRange | SectorUpdate] = []
    data_at = header.descriptor_sectors * SECTOR
    start = EntryHeader.LAYOUT.size
    for at in range(start, start + _DESCRIPTOR_SIZE * header.descriptor_count, _DESCRIPTOR_SIZE):
        descriptor = raw[at : at + _DESCRIPTOR_SIZE]
        update: ZeroedRange | SectorUpdate | None = None
        if descriptor[:4] == _ZERO:
            update = ZeroedRange.parse(descriptor, sequence_number=header.sequence_number)
        elif descriptor[:4] == _DATA_DESCRIPTOR and data_at < len(raw):
            sector = raw[data_at : data_at + SECTOR]
            data_at += SECTOR
            update = SectorUpdate.parse(descriptor, sector, sequence_number=header.sequence_number)
        if update is None:
            return None
        updates.append(update)
    return tuple(updates) if data_at == len(raw) else None


def check_replayable(length: int, *, at: int) -> None:
    """Raise where a dirty log of `length` bytes at file offset `at` cannot be read into memory.

    VhdxCorruptError for a length of 0, VhdxUnsupportedError above `MAX_REPLAY_LENGTH`.
    """
    if length == 0:
        raise VhdxCorruptError("log", "dirty and of length 0", section="2.2.2", offset=at)
    if length > MAX_REPLAY_LENGTH:
        raise VhdxUnsupportedError(
            f"a dirty log of {length // MIB} MiB at {at:#x}: at most"
            f" {MAX_REPLAY_LENGTH // MIB} MiB are replayed; open and close the disk once with the"
            " program that wrote it"
        )


def active_sequence(ring: bytes, *, log_guid: UUID, at: int) -> tuple[LogEntry, ...]:
    """Return the entries to replay in order, tail first, [MS-VHDX] 2.3.3.

    `ring` is the whole log, found at file offset `at`. A log without any entry of `log_guid`
    gives an empty sequence: a writer that stopped between setting the GUID and its first entry
    leaves one (QEMU does), and nothing was changed after that GUID. Entries cannot overlap, so
    that runs are disjoint and the search is linear in the length of the log.

    Raises VhdxCorruptError where there are entries and none ends a complete sequence.
    """
    entries: dict[int, LogEntry] = {}
    any_entry = False
    for start in range(0, len(ring), SECTOR):
        if ring[start : start + 4] != _ENTRY:
            continue
        any_entry = any_entry or ring[start + 32 : start + 48] == log_guid.bytes_le
        entry = LogEntry.parse(ring, start, log_guid=log_guid)
        if entry is not None:
            entries[start] = entry
    if not any_entry:
        return ()

    before: dict[int, LogEntry] = {}
    heads: list[LogEntry] = []
    for entry in entries.values():
        end = (entry.start + entry.header.entry_length) % len(ring)
        after = entries.get(end)
        if after and after.header.sequence_number == entry.header.sequence_number + 1:
            before[end] = entry
        else:
            heads.append(entry)
    for head in sorted(heads, key=lambda entry: entry.header.sequence_number, reverse=True):
        sequence = _back_to_tail(head, before)
        if sequence:
            return sequence
    raise VhdxCorruptError("log", "dirty without a complete sequence", section="2.3.3", offset=at)


def _back_to_tail(head: LogEntry, before: dict[int, LogEntry]) -> tuple[LogEntry, ...]:
    sequence = [head]
    while sequence[-1].start != head.header.tail:
        previous = before.get(sequence[-1].start)
        if previous is None:
            return ()
        sequence.append(previous)
    return tuple(reversed(sequence))

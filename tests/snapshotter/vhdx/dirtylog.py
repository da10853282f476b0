"""Dirty logs written from the text of [MS-VHDX] 2.3, independently of the code under test."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from uuid import UUID

from snapshotter.crc32c import crc32c
from snapshotter.units import KIB, MIB

from .memory import MemoryFile

SECTOR = 4096
GUID = UUID("11223344-5566-7788-99aa-bbccddeeff00")

# What an entry asks for: (file offset, 4 KiB of data), or (file offset, how many zeros).
Update = tuple[int, bytes] | tuple[int, int]


def log_entry(
    updates: Sequence[Update],
    *,
    sequence: int,
    tail: int,
    flushed: int = 0,
    last: int = 0,
    guid: UUID = GUID,
) -> bytes:
    descriptors, data = b"", b""
    for offset, what in updates:
        if isinstance(what, int):
            descriptors += struct.pack("<4sIQQQ", b"zero", 0, what, offset, sequence)
        else:
            descriptors += struct.pack("<4s4s8sQQ", b"desc", what[-4:], what[:8], offset, sequence)
            data += struct.pack("<4sI", b"data", sequence >> 32) + what[8:-4]
            data += struct.pack("<I", sequence & 0xFFFFFFFF)
    head_length = -(-(64 + len(descriptors)) // SECTOR) * SECTOR
    header = struct.pack(
        "<4sIIIQII16sQQ",
        b"loge",
        0,
        head_length + len(data),
        tail,
        sequence,
        len(updates),
        0,
        guid.bytes_le,
        flushed,
        last,
    )
    entry = bytearray((header + descriptors).ljust(head_length, b"\0") + data)
    return seal(entry)


def seal(entry: bytearray) -> bytes:
    entry[4:8] = bytes(4)
    entry[4:8] = crc32c(bytes(entry)).to_bytes(4, "little")
    return bytes(entry)


def place(ring: bytearray, start: int, entry: bytes) -> int:
    """Write `entry` into the ring and return where the next one goes."""
    for at in range(0, len(entry), SECTOR):
        where = (start + at) % len(ring)
        ring[where : where + SECTOR] = entry[at : at + SECTOR]
    return (start + len(entry)) % len(ring)


def make_dirty(
    file: MemoryFile,
    ring: bytes,
    *,
    guid: UUID = GUID,
    at: int = MIB,
    sequence: int = 1 << 40,
) -> None:
    """Put `ring` at `at` as the log, and name it in both headers."""
    file.write_at(at, ring)
    for number, offset in enumerate((64 * KIB, 128 * KIB)):
        file.write_at(offset + 8, struct.pack("<Q", sequence + number))
        file.write_at(offset + 48, guid.bytes_le)
        file.write_at(offset + 68, struct.pack("<IQ", len(ring), at))
        file.reseal(offset, 4096)

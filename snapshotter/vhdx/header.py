"""The two headers, [MS-VHDX] 2.2.2: where the log is, and which state of the file is current."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Self
from uuid import UUID

from snapshotter.crc32c import crc32c
from snapshotter.errors import VhdxCorruptError, VhdxUnsupportedError
from snapshotter.vhdx.format import ALIGNMENT, HEADER_OFFSETS, structure_checksum

NO_GUID = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Header:
    """Header, [MS-VHDX] 2.2.2; `log_guid` is `NO_GUID` when there is nothing to replay."""

    LAYOUT: ClassVar = struct.Struct("<4sIQ16s16s16sHHIQ")
    SIGNATURE: ClassVar = b"head"
    SIZE: ClassVar = 4096

    sequence_number: int
    file_write_guid: UUID
    data_write_guid: UUID
    log_guid: UUID
    log_version: int
    version: int
    log_length: int
    log_offset: int

    def pack(self) -> bytes:
        """Return the 4 KiB of the header, checksum included."""
        raw = bytearray(self.SIZE)
        self.LAYOUT.pack_into(
            raw,
            0,
            self.SIGNATURE,
            0,
            self.sequence_number,
            self.file_write_guid.bytes_le,
            self.data_write_guid.bytes_le,
            self.log_guid.bytes_le,
            self.log_version,
            self.version,
            self.log_length,
            self.log_offset,
        )
        struct.pack_into("<I", raw, 4, structure_checksum(bytes(raw)))
        return bytes(raw)

    @classmethod
    def with_write_guids(cls, raw: bytes, guids: bytes) -> bytes:
        """Return a packed header with other GUIDs: `guids` is FileWriteGuid, then DataWriteGuid.

        For making many headers that differ in nothing else.
        """
        head, tail = raw[8:16], raw[48:]
        checksum = crc32c(b"".join((cls.SIGNATURE, bytes(4), head, guids, tail)))
        return b"".join((cls.SIGNATURE, checksum.to_bytes(4, "little"), head, guids, tail))

    @classmethod
    def unpack(cls, raw: bytes, *, at: int) -> Self:
        """Decode 4 KiB found at file offset `at`.

        Only signature and checksum decide whether a header is valid; see `current_header` for the
        rules about the fields. Raises VhdxCorruptError.
        """
        if len(raw) < cls.SIZE:
            raise VhdxCorruptError("header", "the file ends inside", section="2.2.2", offset=at)
        signature, checksum, sequence, file_write, data_write, log_guid, *rest = (
            cls.LAYOUT.unpack_from(raw)
        )
        if signature != cls.SIGNATURE:
            raise VhdxCorruptError("header signature", signature, section="2.2.2", offset=at)
        if structure_checksum(raw) != checksum:
            raise VhdxCorruptError("header checksum", f"{checksum:#x}", section="2.2.2", offset=at)
        return cls(
            sequence,
            UUID(bytes_le=file_write),
            UUID(bytes_le=data_write),
            UUID(bytes_le=log_guid),
            *rest,
        )


assert Header.LAYOUT.size == 80


def current_header(first: bytes, second: bytes) -> Header:
    """Return the current header of the two raw ones, its fields checked.

    It is the only valid one, or the one with the greater sequence number. Equal numbers occur in
    the wild (disk2vhd writes the same header twice) and are accepted when the contents match.

    Raises VhdxCorruptError, VhdxUnsupportedError for a version of the format or of the log that
    is not known.
    """
    valid: list[tuple[Header, int]] = []
    failures: list[VhdxCorruptError] = []
    for raw, at in zip((first, second), HEADER_OFFSETS, strict=True):
        try:
            valid.append((Header.unpack(raw, at=at), at))
        except VhdxCorruptError as error:
            failures.append(error)
    if not valid:
        raise VhdxCorruptError(
            "headers", f"neither is valid: {failures[0]}", section="2.2.2", offset=HEADER_OFFSETS[0]
        ) from failures[0]
    current, at = max(valid, key=lambda found: found[0].sequence_number)
    for other, other_at in valid:
        if other.sequence_number == current.sequence_number and other != current:
            raise VhdxCorruptError(
                "headers",
                f"both have sequence number {other.sequence_number} and differ",
                section="2.2.2",
                offset=other_at,
            )
    _check_fields(current, at)
    return current


def _check_fields(header: Header, at: int) -> None:
    if header.version != 1:
        raise VhdxUnsupportedError(
            f"VHDX version {header.version} at {at + 66:#x}: only version 1 is known"
        )
    if header.log_version != 0 and header.log_guid != NO_GUID:
        raise VhdxUnsupportedError(
            f"log version {header.log_version} at {at + 64:#x}: its log cannot be replayed;"
            " open and close the disk once with the program that wrote it"
        )
    if header.log_length % ALIGNMENT:
        raise VhdxCorruptError(
            "LogLength", f"{header.log_length:#x}", section="2.2.2", offset=at + 68
        )
    if header.log_offset % ALIGNMENT or (header.log_length and header.log_offset < ALIGNMENT):
        raise VhdxCorruptError(
            "LogOffset", f"{header.log_offset:#x}", section="2.2.2", offset=at + 72
        )

"""Fixed VHDs: the bare disk followed by one footer of 512 bytes (big-endian).

Source: Microsoft "Virtual Hard Disk Image Format Specification" 1.0. Windows reads a disk's size
from Current Size. QEMU's vpc driver computes it from the CHS geometry unless the creator is known
to keep Current Size exact: hence the creator `win `, and a real geometry beside it.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import ClassVar, Final, Self
from uuid import UUID

from snapshotter.blockio import BlockReader, LocalBlockFile
from snapshotter.errors import InvalidArgumentError, VhdError

FOOTER_SIZE: Final = 512

_SECTOR = 512
_COOKIE = b"conectix"
_FEATURES = 2  # reserved bit that is always set
_VERSION = 0x0001_0000
_NO_DATA_OFFSET = (1 << 64) - 1  # fixed disks have no second structure
_FIXED = 2
_DISK_TYPES = {3: "dynamic", 4: "differencing"}
_CREATOR = b"win "
_CREATOR_VERSION = 0x000A_0000  # Windows 10
_CREATOR_HOST_OS = b"Wi2k"
_EPOCH = 946_684_800  # 2000-01-01 00:00 UTC as Unix time
_MAX_U32 = 0xFFFF_FFFF
_CHECKSUM_AT = 64
_MAX_GEOMETRY_SECTORS = 65535 * 16 * 255


@dataclass(frozen=True, slots=True)
class Geometry:
    """Cylinders, heads and sectors per track, as BIOSes count them."""

    cylinders: int
    heads: int
    sectors_per_track: int

    @classmethod
    def of(cls, size: int) -> Self:
        """Return the geometry of a disk of `size` bytes, VHD specification appendix.

        It never holds more than the disk; disks above 127 GiB get the greatest one there is.
        """
        sectors = min(size // _SECTOR, _MAX_GEOMETRY_SECTORS)
        if sectors >= 65535 * 16 * 63:
            heads, per_track = 16, 255
            tracks = sectors // per_track
        else:
            per_track = 17
            tracks = sectors // per_track
            heads = max(4, (tracks + 1023) // 1024)
            if tracks >= heads * 1024 or heads > 16:
                heads, per_track = 16, 31
                tracks = sectors // per_track
            if tracks >= heads * 1024:
                heads, per_track = 16, 63
                tracks = sectors // per_track
        return cls(tracks // heads, heads, per_track)


@dataclass(frozen=True, slots=True)
class VhdFooter:
    """Footer of a fixed VHD; sizes in bytes, `timestamp` in Unix seconds."""

    LAYOUT: ClassVar = struct.Struct(">8sIIQI4sI4sQQHBBII16sB")

    current_size: int
    original_size: int
    unique_id: UUID
    timestamp: int
    geometry: Geometry
    creator: bytes = _CREATOR
    creator_version: int = _CREATOR_VERSION
    creator_host_os: bytes = _CREATOR_HOST_OS

    def pack(self) -> bytes:
        """Return the 512 bytes of the footer, checksum included."""
        raw = bytearray(FOOTER_SIZE)
        self.LAYOUT.pack_into(
            raw,
            0,
            _COOKIE,
            _FEATURES,
            _VERSION,
            _NO_DATA_OFFSET,
            min(max(self.timestamp - _EPOCH, 0), _MAX_U32),
            self.creator,
            self.creator_version,
            self.creator_host_os,
            self.original_size,
            self.current_size,
            self.geometry.cylinders,
            self.geometry.heads,
            self.geometry.sectors_per_track,
            _FIXED,
            0,
            self.unique_id.bytes,
            0,
        )
        struct.pack_into(">I", raw, _CHECKSUM_AT, _checksum(raw))
        return bytes(raw)


assert VhdFooter.LAYOUT.size == 85


def _checksum(raw: bytes | bytearray) -> int:
    """Return the one's complement of the sum of all bytes but the checksum's own."""
    total = sum(raw) - sum(raw[_CHECKSUM_AT : _CHECKSUM_AT + 4])
    return ~total & _MAX_U32


def fixed_footer(size: int, *, unique_id: UUID, timestamp: int) -> bytes:
    """Return the footer to append to a disk of `size` bytes.

    `timestamp` is Unix time in seconds; what lies before 2000 is stored as 2000-01-01, so that 0
    is a fine value for files that must not depend on when they are made.

    Raises InvalidArgumentError where `size` is not a positive multiple of 512.
    """
    if size <= 0 or size % _SECTOR or size >= 1 << 63:
        raise InvalidArgumentError(f"a VHD's size is a positive multiple of 512, not {size}")
    return VhdFooter(
        current_size=size,
        original_size=size,
        unique_id=unique_id,
        timestamp=timestamp,
        geometry=Geometry.of(size),
    ).pack()


def parse_footer(raw: bytes) -> VhdFooter:
    """Return the footer in the last 512 bytes of a fixed VHD.

    Geometry, creator and time are whatever the creator wrote: hcsshim leaves them zero.

    Raises VhdError: no footer, a wrong checksum, or a dynamic or differencing disk.
    """
    if len(raw) != FOOTER_SIZE:
        raise VhdError(f"a VHD footer has {FOOTER_SIZE} bytes, not {len(raw)}")
    (
        cookie,
        _features,
        version,
        _data_offset,
        seconds,
        creator,
        creator_version,
        creator_host_os,
        original_size,
        current_size,
        cylinders,
        heads,
        sectors_per_track,
        disk_type,
        checksum,
        unique_id,
        _saved_state,
    ) = VhdFooter.LAYOUT.unpack_from(raw)
    if cookie != _COOKIE:
        raise VhdError(f"no VHD footer: it starts with {cookie!r}, not {_COOKIE!r}")
    if checksum != _checksum(raw):
        raise VhdError(f"VHD footer checksum is {checksum:#x}, its bytes give {_checksum(raw):#x}")
    if disk_type != _FIXED:
        kind = _DISK_TYPES.get(disk_type, f"type {disk_type}")
        raise VhdError(f"a {kind} VHD: only fixed ones are read; convert it with qemu-img")
    if version >> 16 != 1:
        raise VhdError(f"VHD format version {version >> 16}.{version & 0xFFFF} is not known")
    if current_size == 0 or current_size % _SECTOR:
        raise VhdError(f"VHD footer gives a size of {current_size}, no multiple of 512")
    return VhdFooter(
        current_size=current_size,
        original_size=original_size,
        unique_id=UUID(bytes=unique_id),
        timestamp=seconds + _EPOCH,
        geometry=Geometry(cylinders, heads, sectors_per_track),
        creator=creator,
        creator_version=creator_version,
        creator_host_os=creator_host_os,
    )


class FixedVhd:
    """A fixed VHD open for reading: a `BlockReader` of its disk and a context manager."""

    def __init__(self, file: BlockReader, footer: VhdFooter) -> None:
        self._file = file
        self.footer = footer
        self._owned: LocalBlockFile | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open the fixed VHD at `path`; closing the disk closes it.

        Raises VhdError, UnavailableError, FileNotFoundError.
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
        """Return the disk in `file`, which stays the caller's. Raises VhdError."""
        payload = file.size - FOOTER_SIZE
        if payload < 0:
            raise VhdError(f"{file.size} bytes are too few for a VHD footer")
        footer = parse_footer(file.read_at(payload, FOOTER_SIZE))
        if footer.current_size > payload:
            raise VhdError(
                f"the footer gives {footer.current_size} bytes, the file has {payload}:"
                " it was truncated"
            )
        return cls(file, footer)

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
        """Length of the disk in bytes, the footer not counted."""
        return self.footer.current_size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes of the disk from `offset`; fewer only where its end is reached.

        Raises InvalidArgumentError for a negative offset or length.
        """
        if offset < 0 or length < 0:
            raise InvalidArgumentError(f"cannot read {length} bytes at {offset}")
        return self._file.read_at(offset, max(0, min(length, self.size - offset)))

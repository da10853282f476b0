"""The fixed places of a VHDX file, [MS-VHDX] 2.2, and the structure that it starts with.

::

    0        file identifier      never rewritten after creation
    64 KiB   header 1             128 KiB   header 2
    192 KiB  region table 1       256 KiB   region table 2
    1 MiB    log, metadata region, BAT region, payload blocks: 1 MiB aligned, in any order
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Self

from snapshotter.crc32c import crc32c
from snapshotter.errors import InvalidArgumentError, VhdxCorruptError
from snapshotter.units import KIB, MIB, TIB

ALIGNMENT: Final = MIB
HEADER_SECTION_SIZE: Final = MIB
IDENTIFIER_AREA: Final = 64 * KIB
HEADER_OFFSETS: Final = (64 * KIB, 128 * KIB)
REGION_TABLE_OFFSETS: Final = (192 * KIB, 256 * KIB)

MAX_DISK_SIZE: Final = 64 * TIB
SECTOR_SIZES: Final = (512, 4096)

_ZERO_CHECKSUM = bytes(4)


def structure_checksum(raw: bytes) -> int:
    """Return the CRC-32C of a structure whose own checksum field is bytes 4 to 7."""
    return crc32c(raw[8:], crc32c(_ZERO_CHECKSUM, crc32c(raw[:4])))


@dataclass(frozen=True, slots=True)
class FileIdentifier:
    """File type identifier, [MS-VHDX] 2.2.1: the signature and who created the file."""

    SIGNATURE: ClassVar = b"vhdxfile"
    SIZE: ClassVar = 8 + 512

    creator: str

    def pack(self) -> bytes:
        """Return the signature and the creator in UTF-16, without the zeros that follow.

        Raises InvalidArgumentError for a creator longer than 512 bytes.
        """
        creator = self.creator.encode("utf-16-le")
        if len(creator) > self.SIZE - len(self.SIGNATURE):
            raise InvalidArgumentError(f"creator is longer than 256 UTF-16 units: {self.creator!r}")
        return self.SIGNATURE + creator

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """Decode the first 520 bytes of a file. Raises VhdxCorruptError.

        The creator is free text for diagnosis: what is not UTF-16 in it is replaced.
        """
        if raw[:8] != cls.SIGNATURE:
            raise VhdxCorruptError("file identifier", raw[:8], section="2.2.1", offset=0)
        text = raw[8 : cls.SIZE].decode("utf-16-le", errors="replace")
        return cls(text.split("\0", 1)[0])

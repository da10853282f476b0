"""A second reader of VHDX files, which shares nothing with the product's: [MS-VHDX] in one page.

For clean files alone: no log, no checksums, one block after the other into a raw file.
"""

from __future__ import annotations

import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

_BAT = UUID("2DC27766-F623-4200-9D64-115E9BFD4A08")
_METADATA = UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E")
_PARAMETERS = UUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
_SIZE = UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
_DISK_ID = UUID("BECA12AB-B2E6-4523-93EF-C309E000C746")
_LOGICAL = UUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
_PHYSICAL = UUID("CDA348C7-445D-4471-9CC9-E9885251C556")
_LOCATOR = UUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")


@dataclass(frozen=True)
class PlainVhdx:
    """What a file says; sizes in bytes. `parent` lies in the same directory."""

    path: Path
    size: int
    block_size: int
    logical: int
    physical: int
    disk_id: UUID
    fixed: bool
    parent: Path | None
    bat_offset: int

    @classmethod
    def read(cls, path: Path) -> PlainVhdx:
        """Raises ValueError, struct.error or KeyError for what is no such file."""
        with path.open("rb") as file:
            if file.read(8) != b"vhdxfile":
                raise ValueError(path)
            file.seek(192 << 10)
            table = file.read(64 << 10)
            (regions,) = struct.unpack_from("<I", table, 8)
            places = {
                UUID(bytes_le=table[at : at + 16]): struct.unpack_from("<Q", table, at + 16)[0]
                for at in range(16, 16 + 32 * regions, 32)
            }
            file.seek(places[_METADATA])
            metadata = file.read(1 << 20)
        (count,) = struct.unpack_from("<H", metadata, 10)
        items = {}
        for at in range(32, 32 + 32 * count, 32):
            offset, length = struct.unpack_from("<II", metadata, at + 16)
            items[UUID(bytes_le=metadata[at : at + 16])] = metadata[offset : offset + length]
        block_size, flags = struct.unpack("<II", items[_PARAMETERS])
        return cls(
            path,
            size=_number(items[_SIZE]),
            block_size=block_size,
            logical=_number(items[_LOGICAL]),
            physical=_number(items[_PHYSICAL]),
            disk_id=UUID(bytes_le=items[_DISK_ID]),
            fixed=bool(flags & 1),
            parent=_parent(path, items[_LOCATOR]) if flags & 2 else None,
            bat_offset=places[_BAT],
        )

    def to_raw(self, raw: Path) -> None:
        """Write the disk's content, that of its parents included."""
        if self.parent is None:
            raw.touch()
        else:
            PlainVhdx.read(self.parent).to_raw(raw)
        ratio = (1 << 23) * self.logical // self.block_size
        with self.path.open("rb") as file, raw.open("r+b") as out:
            out.truncate(self.size)

            def entry(index: int) -> tuple[int, int]:
                file.seek(self.bat_offset + 8 * index)
                (word,) = struct.unpack("<Q", file.read(8))
                return word & 7, word >> 20 << 20

            for block in range(-(-self.size // self.block_size)):
                chunk, within = divmod(block, ratio)
                state, place = entry(block + chunk)
                start = block * self.block_size
                length = min(self.block_size, self.size - start)
                if state in (1, 2, 3):
                    out.seek(start)
                    out.write(bytes(length))
                elif state == 6:
                    file.seek(place)
                    out.seek(start)
                    out.write(file.read(length))
                elif state == 7:
                    _, bitmap_place = entry(chunk * (ratio + 1) + ratio)
                    sectors = self.block_size // self.logical
                    file.seek(bitmap_place + within * sectors // 8)
                    bitmap = file.read(-(-sectors // 8))
                    for sector in range(length // self.logical):
                        if bitmap[sector // 8] >> sector % 8 & 1:
                            file.seek(place + sector * self.logical)
                            out.seek(start + sector * self.logical)
                            out.write(file.read(self.logical))


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def _parent(path: Path, locator: bytes) -> Path:
    (count,) = struct.unpack_from("<H", locator, 18)
    values = {}
    for at in range(20, 20 + 12 * count, 12):
        key, value, key_length, value_length = struct.unpack_from("<IIHH", locator, at)
        values[locator[key : key + key_length].decode("utf-16-le")] = locator[
            value : value + value_length
        ].decode("utf-16-le")
    return path.with_name(values["relative_path"].rpartition("\\")[2])


def copy_fixed_vhd(path: Path, raw: Path) -> None:
    """Write the content of a fixed VHD: everything before the footer."""
    shutil.copyfile(path, raw)
    with raw.open("r+b") as out:
        out.truncate(path.stat().st_size - 512)

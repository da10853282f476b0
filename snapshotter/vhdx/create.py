"""New VHDX files: the content of a whole file for the content of a disk.

The layout follows the order of files that Windows makes::

    0      file identifier, headers, region tables
    1 MiB  log (1 MiB, empty)
    2 MiB  metadata region (1 MiB)
    3 MiB  BAT region (as many MiB as the disk needs)
    then   payload blocks, in the order of the disk
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Self
from uuid import UUID

from snapshotter.blockio import DiskContent
from snapshotter.errors import InvalidArgumentError
from snapshotter.units import MIB
from snapshotter.vhdx.bat import ENTRY_SIZE, BatBuilder, BatGeometry
from snapshotter.vhdx.format import (
    ALIGNMENT,
    HEADER_OFFSETS,
    REGION_TABLE_OFFSETS,
    FileIdentifier,
)
from snapshotter.vhdx.header import NO_GUID, Header
from snapshotter.vhdx.metadata import (
    MAX_BLOCK_SIZE,
    MIN_BLOCK_SIZE,
    TABLE_SIZE,
    VIRTUAL_DISK_ID,
    DiskParameters,
)
from snapshotter.vhdx.publish import write_content
from snapshotter.vhdx.region import BAT_REGION, METADATA_REGION, RegionEntry, RegionTable

DEFAULT_CREATOR: Final = "lcowlab"

_LOG_OFFSET = 1 * MIB
_LOG_LENGTH = 1 * MIB
_METADATA_OFFSET = 2 * MIB
_METADATA_LENGTH = 1 * MIB
_BAT_OFFSET = 3 * MIB
_GUID_SIZE = 16


@dataclass(frozen=True, slots=True)
class VhdxIdentity:
    """The GUIDs that make one file, its data and its disk different from every other."""

    file_write_guid: UUID
    data_write_guid: UUID
    disk_id: UUID

    @classmethod
    def fresh(cls) -> Self:
        """Return three new random GUIDs."""
        return cls(uuid.uuid4(), uuid.uuid4(), uuid.uuid4())


@dataclass(frozen=True, slots=True)
class VhdxLayout:
    """A VHDX file whose identity is still open; `stamp` gives it one.

    Everything but headers and metadata items is computed once, so that one layout serves any
    number of files that differ in their identity alone.
    """

    file_size: int
    disk_size: int
    items: bytes  # the metadata items, without the disk's id
    disk_id_at: int  # its place in the items
    before_items: tuple[tuple[int, bytes], ...]
    after_items: tuple[tuple[int, bytes], ...]
    zeros: tuple[tuple[int, int], ...] = field(init=False)  # what no piece covers

    def __post_init__(self) -> None:
        pieces = self._pieces(VhdxIdentity(NO_GUID, NO_GUID, NO_GUID))
        object.__setattr__(self, "zeros", tuple(_gaps(pieces, self.file_size)))

    def stamp(self, identity: VhdxIdentity) -> DiskContent:
        """Return the content of the file with this identity."""
        return DiskContent(self.file_size, self._pieces(identity), self.zeros)

    def identity_pieces(self, identity: VhdxIdentity) -> tuple[tuple[int, bytes], ...]:
        """Return (offset, bytes) of what differs between files: both headers, then the items.

        None of them shares a page of 4 KiB with anything else.
        """
        at = self.disk_id_at
        items = self.items[:at] + identity.disk_id.bytes_le + self.items[at + _GUID_SIZE :]
        return (*_headers(identity), (_METADATA_OFFSET + TABLE_SIZE, items))

    def _pieces(self, identity: VhdxIdentity) -> tuple[tuple[int, bytes], ...]:
        first, second, items = self.identity_pieces(identity)
        identifier, *tables = self.before_items
        return (identifier, first, second, *tables, items, *self.after_items)


_BLANK_HEADERS: Final = tuple(
    (
        at,
        Header(
            sequence_number=number,
            file_write_guid=NO_GUID,
            data_write_guid=NO_GUID,
            log_guid=NO_GUID,
            log_version=0,
            version=1,
            log_length=_LOG_LENGTH,
            log_offset=_LOG_OFFSET,
        ).pack(),
    )
    for number, at in enumerate(HEADER_OFFSETS, start=1)
)


def _headers(identity: VhdxIdentity) -> Iterable[tuple[int, bytes]]:
    """Yield the headers of a new file: blank ones with the GUIDs filled in."""
    guids = identity.file_write_guid.bytes_le + identity.data_write_guid.bytes_le
    for at, blank in _BLANK_HEADERS:
        yield at, Header.with_write_guids(blank, guids)


def _joined(pieces: Iterable[tuple[int, bytes]]) -> Iterable[tuple[int, bytes]]:
    """Yield the pieces, those that touch as one: each is a system call in every file made."""
    start, parts, end = 0, list[bytes](), 0
    for offset, data in pieces:
        if parts and offset != end:
            yield start, b"".join(parts)
            parts = []
        if not parts:
            start = offset
        parts.append(data)
        end = offset + len(data)
    if parts:
        yield start, b"".join(parts)


def _gaps(pieces: Iterable[tuple[int, bytes]], size: int) -> Iterable[tuple[int, int]]:
    """Yield (offset, length) of what is not in a piece: all of it must read as zeros."""
    end = 0
    for offset, data in pieces:
        if offset > end:
            yield end, offset - end
        end = offset + len(data)
    if size > end:
        yield end, size - end


def layout_vhdx(
    content: DiskContent,
    *,
    block_size: int = MIB,
    logical_sector_size: int = 512,
    physical_sector_size: int = 4096,
    creator: str = DEFAULT_CREATOR,
    fixed: bool = False,
    parent_locator: bytes | None = None,
) -> VhdxLayout:
    """Return the layout of a VHDX that holds `content`: dynamic, `fixed`, or a child.

    Blocks with a piece are FULLY_PRESENT, further blocks that `content.zeros` touches are ZERO
    and take no room, the rest is NOT_PRESENT. `block_size` is a power of two from 1 to 256 MiB,
    sector sizes are 512 or 4096. In a fixed disk every block is FULLY_PRESENT, in the order of
    the disk, and stays so (LeaveBlockAllocated, [MS-VHDX] 2.6.2.1). `parent_locator` is the packed
    item of a differencing disk: then `content` must be whole blocks, and what it leaves out is
    the parent's.

    Raises InvalidArgumentError for a size that the format cannot hold (a multiple of the logical
    sector size up to 64 TiB it can) or content that breaks the rules of `DiskContent`.
    """
    _check_arguments(content, block_size, logical_sector_size, physical_sector_size)
    has_parent = parent_locator is not None
    if has_parent:
        _check_child(content, block_size, fixed=fixed)
    geometry = BatGeometry(content.size, block_size, logical_sector_size, has_parent)
    bat_length = max(1, -(-geometry.entries * ENTRY_SIZE // ALIGNMENT)) * ALIGNMENT
    bat = BatBuilder(geometry)
    start = _BAT_OFFSET + bat_length
    if fixed:
        bat.set_run(0, geometry.payload_blocks, start)
        payload = [(start + offset, data) for offset, data in content.pieces if data]
        end = start + geometry.payload_blocks * block_size
    else:
        payload, end = _place_blocks(content, bat, block_size=block_size, start=start)

    regions = RegionTable(
        (
            RegionEntry(BAT_REGION, _BAT_OFFSET, bat_length, required=True),
            RegionEntry(METADATA_REGION, _METADATA_OFFSET, _METADATA_LENGTH, required=True),
        )
    )
    table = regions.pack()[: regions.used_size]
    metadata, items = DiskParameters(
        disk_size=content.size,
        block_size=block_size,
        logical_sector_size=logical_sector_size,
        physical_sector_size=physical_sector_size,
        disk_id=NO_GUID,
        leave_blocks_allocated=fixed,
        has_parent=has_parent,
    ).pack_items(parent_locator=parent_locator or b"")
    return VhdxLayout(
        file_size=end,
        disk_size=content.size,
        items=items,
        disk_id_at=metadata.locate()[VIRTUAL_DISK_ID][0] - TABLE_SIZE,
        before_items=(
            (0, FileIdentifier(creator).pack()),
            *((at, table) for at in REGION_TABLE_OFFSETS),
            (_METADATA_OFFSET, metadata.pack()),
        ),
        after_items=(*bat.pieces(_BAT_OFFSET), *_joined(payload)),
    )


def _place_blocks(
    content: DiskContent, bat: BatBuilder, *, block_size: int, start: int
) -> tuple[list[tuple[int, bytes]], int]:
    """Return the payload by file offset, from `start` on, and where it ends; fill in the table."""
    for offset, length in content.zeros:
        if length:
            bat.set_zero(offset // block_size, (offset + length - 1) // block_size + 1)
    payload: list[tuple[int, bytes]] = []
    end, last_block = start, -1
    for offset, data in content.pieces:
        done = 0
        while done < len(data):
            block, within = divmod(offset + done, block_size)
            if block != last_block:
                bat.set_present(block, end)
                last_block, end = block, end + block_size
            count = min(block_size - within, len(data) - done)
            part = data if count == len(data) else data[done : done + count]
            payload.append((end - block_size + within, part))
            done += count
    return payload, end


def emit_vhdx(
    content: DiskContent,
    *,
    block_size: int = MIB,
    logical_sector_size: int = 512,
    physical_sector_size: int = 4096,
    creator: str = DEFAULT_CREATOR,
    fixed: bool = False,
    parent_locator: bytes | None = None,
    identity: VhdxIdentity | None = None,
) -> DiskContent:
    """Return the content of a whole VHDX file that holds `content`; `write_content` stores it.

    Without an `identity` it gets fresh GUIDs. Raises as `layout_vhdx`.
    """
    layout = layout_vhdx(
        content,
        block_size=block_size,
        logical_sector_size=logical_sector_size,
        physical_sector_size=physical_sector_size,
        creator=creator,
        fixed=fixed,
        parent_locator=parent_locator,
    )
    return layout.stamp(identity or VhdxIdentity.fresh())


def create_vhdx(
    path: str | os.PathLike[str],
    size: int,
    *,
    block_size: int = MIB,
    logical_sector_size: int = 512,
    physical_sector_size: int = 4096,
    fixed: bool = False,
) -> None:
    """Create an empty disk of `size` bytes at `path`, durably; all of it reads as zeros.

    It is dynamic, or `fixed`: then the file has its full length at once, sparsely where the file
    system can, and never gives a block back.

    Raises InvalidArgumentError, AlreadyExistsError, UnavailableError; on failure nothing is left.
    """
    content = emit_vhdx(
        DiskContent(size, ()),
        block_size=block_size,
        logical_sector_size=logical_sector_size,
        physical_sector_size=physical_sector_size,
        fixed=fixed,
    )
    write_content(path, content)


def _check_arguments(
    content: DiskContent, block_size: int, logical_sector_size: int, physical_sector_size: int
) -> None:
    parameters = DiskParameters(
        content.size, block_size, logical_sector_size, physical_sector_size, NO_GUID
    )
    if parameters.problem() is not None or content.size == 0:
        raise InvalidArgumentError(
            f"no VHDX can hold {content.size} bytes in blocks of {block_size} with sectors of"
            f" {logical_sector_size}/{physical_sector_size}: sizes are multiples of the logical"
            " sector up to 64 TiB, blocks powers of two from"
            f" {MIN_BLOCK_SIZE // MIB} to {MAX_BLOCK_SIZE // MIB} MiB, sectors 512 or 4096"
        )
    for (left, data), (right, _) in pairwise(content.pieces):
        if left + len(data) > right:
            raise InvalidArgumentError(f"the pieces at {left} and {right} overlap")
    stretches = [(offset, len(data)) for offset, data in content.pieces] + list(content.zeros)
    for offset, length in stretches:
        if offset < 0 or length < 0 or offset + length > content.size:
            raise InvalidArgumentError(
                f"{length} bytes at {offset} are not on a disk of {content.size} bytes"
            )


def _check_child(content: DiskContent, block_size: int, *, fixed: bool) -> None:
    if fixed:
        raise InvalidArgumentError("a differencing disk cannot be fixed: it grows by what differs")
    stretches = [(offset, len(data)) for offset, data in content.pieces] + list(content.zeros)
    for offset, length in stretches:
        ends = offset + length == content.size or not (offset + length) % block_size
        if offset % block_size or not ends:
            raise InvalidArgumentError(
                f"{length} bytes at {offset} are not whole blocks of {block_size}: the rest of a"
                " child's block would hide its parent's"
            )

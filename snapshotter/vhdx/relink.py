"""Changing what a differencing disk says about its parent: its parent locator, in place."""

from __future__ import annotations

from dataclasses import replace

from snapshotter.blockio import BlockFile
from snapshotter.errors import VhdxUnsupportedError
from snapshotter.vhdx.locator import ParentLinks
from snapshotter.vhdx.log import SECTOR
from snapshotter.vhdx.metadata import PARENT_LOCATOR, TABLE_SIZE, MetadataTable
from snapshotter.vhdx.pages import MetadataPages
from snapshotter.vhdx.region import METADATA_REGION
from snapshotter.vhdx.session import WriteSession
from snapshotter.vhdx.structures import read_structures

_ITEM_ALIGNMENT = 8


def relink(file: BlockFile, links: ParentLinks) -> None:
    """Make the differencing disk in `file` say `links`; durable when this returns.

    The item and its table entry change through the log: after a crash the file says what it said
    before, or `links`. What the disk reads as does not change, so neither does its DataWriteGuid.
    The caller sees to it that nobody else writes to `file`.

    Raises VhdxUnsupportedError for a disk without a parent, or where the item does not fit the
    metadata region or the log; VhdxCorruptError, UnavailableError.
    """
    found = read_structures(file)
    if found.parent_locator is None:
        raise VhdxUnsupportedError("a disk without a parent has nothing to link")
    region = found.regions.find(METADATA_REGION)
    session = WriteSession.start(file, found)
    table = MetadataTable.unpack(
        file.read_at(region.offset, TABLE_SIZE), at=region.offset, region_length=region.length
    )
    item = links.locator().pack()
    offset = _place(table, len(item), region_length=region.length)
    entries = tuple(
        replace(entry, offset=offset, length=len(item))
        if entry.item_id == PARENT_LOCATOR and not entry.is_user
        else entry
        for entry in table.entries
    )
    pages = MetadataPages(file)
    pages.write(region.offset + offset, item)
    pages.write(region.offset, MetadataTable(entries).pack())
    if pages.changed_sectors > session.capacity:
        raise VhdxUnsupportedError(
            f"a parent locator of {len(item)} bytes does not fit the log: shorten its paths"
        )
    session.begin(data_changes=False)
    session.commit(pages.changes())
    session.close()


def _place(table: MetadataTable, length: int, *, region_length: int) -> int:
    """Return where in the region the item goes: where it was, or behind all others."""
    old = table.find(PARENT_LOCATOR)
    assert old is not None  # read_structures found it
    if length <= old.length:
        return old.offset
    end = max(TABLE_SIZE, *(entry.offset + entry.length for entry in table.entries))
    # Page by page: what shares a sector with another item would be logged with it anyway.
    offset = -(-end // _ITEM_ALIGNMENT) * _ITEM_ALIGNMENT
    if -(-(offset + length) // SECTOR) * SECTOR > region_length:
        raise VhdxUnsupportedError(
            f"no room for a parent locator of {length} bytes in the metadata region"
        )
    return offset

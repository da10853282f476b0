"""Everything of a VHDX file but its payload, read and checked: what opening, checking and
changing a file start from.

Nothing is changed here: a dirty log is replayed in memory, [MS-VHDX] 2.3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from snapshotter.blockio import BlockReader
from snapshotter.errors import VhdxCorruptError, VhdxError
from snapshotter.vhdx.bat import ENTRY_SIZE, BatGeometry
from snapshotter.vhdx.format import (
    HEADER_OFFSETS,
    HEADER_SECTION_SIZE,
    REGION_TABLE_OFFSETS,
    FileIdentifier,
)
from snapshotter.vhdx.header import NO_GUID, Header, current_header
from snapshotter.vhdx.log import LogEntry, active_sequence, check_replayable
from snapshotter.vhdx.metadata import (
    PARENT_LOCATOR,
    TABLE_SIZE,
    DiskParameters,
    MetadataTable,
)
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
class Structures:
    """The structures of a file as they are once its log has been replayed.

    `file` reads as the replayed file; `sequence` are the entries that takes. `item_places` are
    the file offsets of the metadata items. `parent_locator` is the raw item, None without parent.
    """

    file: BlockReader
    identifier: FileIdentifier
    header: Header
    sequence: tuple[LogEntry, ...]
    regions: RegionTable
    parameters: DiskParameters
    item_places: Mapping[UUID, int]
    parent_locator: bytes | None

    @property
    def bat_region(self) -> RegionEntry:
        """Where the BAT is."""
        return self.regions.find(BAT_REGION)

    @property
    def geometry(self) -> BatGeometry:
        """How the BAT is laid out."""
        parameters = self.parameters
        return BatGeometry(
            parameters.disk_size,
            parameters.block_size,
            parameters.logical_sector_size,
            parameters.has_parent,
        )

    @property
    def log_dirty(self) -> bool:
        """Whether the log has to be replayed before anyone writes to the disk."""
        return self.header.log_guid != NO_GUID

    @property
    def extents(self) -> list[Extent]:
        """The stretches of the file that payload blocks must spare."""
        return _extents(self.header, self.regions)


def read_structures(file: BlockReader) -> Structures:
    """Return the structures of the VHDX in `file`; the BAT's entries are not looked at.

    Raises VhdxCorruptError, VhdxUnsupportedError for an unknown version or an unknown structure
    that is required.
    """
    identifier = FileIdentifier.unpack(file.read_at(0, FileIdentifier.SIZE))
    first, second = (file.read_at(at, Header.SIZE) for at in HEADER_OFFSETS)
    header = current_header(first, second)
    replayed, sequence = _replay(file, header)
    regions = read_region_table(replayed)
    check_disjoint(_extents(header, regions))
    parameters, places, locator = _read_metadata(replayed, regions.find(METADATA_REGION))
    found = Structures(replayed, identifier, header, sequence, regions, parameters, places, locator)
    _check_bat_region(found)
    return found


def _extents(header: Header, regions: RegionTable) -> list[Extent]:
    extents = [
        Extent("header section", 0, HEADER_SECTION_SIZE),
        Extent("log", header.log_offset, header.log_length),
        *(entry.extent for entry in regions.entries),
    ]
    return [extent for extent in extents if extent.length]


def _replay(file: BlockReader, header: Header) -> tuple[BlockReader, tuple[LogEntry, ...]]:
    """Return the file as it reads after replaying its log, and the entries that takes."""
    if header.log_guid == NO_GUID:
        return file, ()
    at = header.log_offset
    check_replayable(header.log_length, at=at)
    ring = file.read_at(at, header.log_length)
    if len(ring) < header.log_length:
        raise VhdxCorruptError("log", "the file ends inside", section="2.3", offset=at)
    sequence = active_sequence(ring, log_guid=header.log_guid, at=at)
    if not sequence:
        return file, ()
    return ReplayedFile.check(file, sequence, at=at), sequence


def read_region_table(file: BlockReader) -> RegionTable:
    """Return the first region table that is intact: the second is a copy.

    Raises VhdxCorruptError where neither is, VhdxUnsupportedError for a required region that is
    not known.
    """
    failure: VhdxError | None = None
    for at in REGION_TABLE_OFFSETS:
        try:
            return RegionTable.unpack(file.read_at(at, RegionTable.SIZE), at=at)
        except VhdxCorruptError as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _read_metadata(
    file: BlockReader, region: RegionEntry
) -> tuple[DiskParameters, dict[UUID, int], bytes | None]:
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
    items = {
        item_id: file.read_at(region.offset + offset, length)
        for item_id, (offset, length) in table.locate().items()
    }
    places = {entry.item_id: region.offset + entry.offset for entry in table.entries}
    places.update(
        {item_id: region.offset + offset for item_id, (offset, _) in table.locate().items()}
    )
    parameters = DiskParameters.from_items(items, places=places)
    if not parameters.has_parent:
        return parameters, places, None
    locator = table.find(PARENT_LOCATOR)
    if locator is None or not locator.length:
        raise VhdxCorruptError("Parent Locator", "missing", section="2.6.2.6", offset=region.offset)
    places[PARENT_LOCATOR] = region.offset + locator.offset
    return parameters, places, file.read_at(places[PARENT_LOCATOR], locator.length)


def _check_bat_region(found: Structures) -> None:
    region, entries = found.bat_region, found.geometry.entries
    if region.length < entries * ENTRY_SIZE or region.extent.end > found.file.size:
        raise VhdxCorruptError(
            "BAT region",
            f"{region.length} bytes for {entries} entries in a file of {found.file.size}",
            section="2.5",
            offset=region.offset,
        )

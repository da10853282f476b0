"""What a VHDX file says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from uuid import UUID

from snapshotter.vhdx.bat import PayloadState
from snapshotter.vhdx.batcheck import BatUse
from snapshotter.vhdx.structures import Structures


@dataclass(frozen=True, slots=True)
class VhdxInfo:
    """What a VHDX file says about itself; sizes in bytes.

    `log_dirty` is true where the log has to be replayed before anyone writes to the disk,
    `replayed_entries` is how many entries that takes. `blocks` counts payload blocks by state.
    """

    size: int
    block_size: int
    logical_sector_size: int
    physical_sector_size: int
    disk_id: UUID
    leave_blocks_allocated: bool
    has_parent: bool
    creator: str
    file_size: int
    sequence_number: int
    file_write_guid: UUID
    data_write_guid: UUID
    log_length: int
    log_dirty: bool
    replayed_entries: int
    blocks: Mapping[PayloadState, int]

    @classmethod
    def of(cls, found: Structures, use: BatUse, *, file_size: int) -> Self:
        """Return what `found`, with a BAT that says `use`, tells of a file."""
        parameters, header = found.parameters, found.header
        return cls(
            size=parameters.disk_size,
            block_size=parameters.block_size,
            logical_sector_size=parameters.logical_sector_size,
            physical_sector_size=parameters.physical_sector_size,
            disk_id=parameters.disk_id,
            leave_blocks_allocated=parameters.leave_blocks_allocated,
            has_parent=parameters.has_parent,
            creator=found.identifier.creator,
            file_size=file_size,
            sequence_number=header.sequence_number,
            file_write_guid=header.file_write_guid,
            data_write_guid=header.data_write_guid,
            log_length=header.log_length,
            log_dirty=found.log_dirty,
            replayed_entries=len(found.sequence),
            blocks=use.counts,
        )

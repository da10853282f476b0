"""Scratch disks: an empty ext4 in a dynamic VHDX, laid out once and stored once per snapshot.

A copy of a cached scratch would cost 17 MiB of I/O (containerd's way). A template keeps the few
dozen KiB that are not zero in memory and stores them anew, each time as another disk.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from uuid import UUID

from snapshotter.blockio import DiskContent
from snapshotter.errors import Ext4CorruptError, FailedPreconditionError
from snapshotter.ext4.format import (
    BLOCK_SIZE,
    STATE_CLEAN,
    SUPERBLOCK_OFFSET,
    SUPERBLOCK_SIZE,
    Incompat,
    Superblock,
)
from snapshotter.ext4.mkfs import format_ext4
from snapshotter.units import MIB
from snapshotter.vhdx import (
    Allocation,
    VhdxDisk,
    VhdxIdentity,
    VhdxLayout,
    layout_vhdx,
    write_content,
    write_new,
)

DEFAULT_LABEL: Final = "scratch"

# As upstream's scratch (hcsshim internal/lcow/scratch.go): small blocks keep a fresh disk small.
SCRATCH_BLOCK_SIZE: Final = MIB


@dataclass(frozen=True, slots=True)
class ScratchTemplate:
    """The layout of one kind of scratch disk; `size` is that of the disk in bytes."""

    size: int
    layout: VhdxLayout

    @classmethod
    def build(
        cls,
        size: int,
        *,
        journal_mib: int = 0,
        label: str = DEFAULT_LABEL,
        grow_to: int | None = None,
        fs_uuid: UUID | None = None,
    ) -> Self:
        """Return the template of scratch disks of `size` bytes, 1 GiB to 64 TiB.

        Upstream's scratch has no journal; with one, a disk survives a killed guest without a
        check. Up to `grow_to` bytes it can be enlarged while it is in use. `fs_uuid` is that of the
        ext4 in every disk, by default a random one.
        Raises InvalidArgumentError.
        """
        content = format_ext4(
            size, journal_mib=journal_mib, label=label, grow_to=grow_to, uuid=fs_uuid
        )
        return cls(content.size, layout_vhdx(content, block_size=SCRATCH_BLOCK_SIZE))

    @property
    def file_size(self) -> int:
        """Length in bytes of each VHDX file."""
        return self.layout.file_size

    def content(self) -> DiskContent:
        """Return the content of a VHDX file with an identity of its own.

        The ext4 UUID is the template's in every disk, as in upstream's copies.
        """
        return self.layout.stamp(VhdxIdentity.fresh())

    def write(
        self,
        path: str | os.PathLike[str],
        *,
        durable: bool = True,
        overwrite: bool = False,
        allocation: Allocation = Allocation.SPARSE,
    ) -> None:
        """Store a new scratch disk at `path`; on failure nothing is left there.

        Raises AlreadyExistsError where `path` exists (unless `overwrite`), UnavailableError.
        """
        write_content(
            path, self.content(), durable=durable, overwrite=overwrite, allocation=allocation
        )

    def write_staged(
        self,
        path: str | os.PathLike[str],
        *,
        durable: bool = True,
        allocation: Allocation = Allocation.SPARSE,
    ) -> None:
        """Store a new scratch disk at `path` in a folder that is published as a whole later.

        Raises AlreadyExistsError, UnavailableError; on failure nothing is left there.
        """
        write_new(Path(path), self.content(), durable=durable, allocation=allocation)


def verify_scratch(path: str | os.PathLike[str], *, size: int) -> None:
    """Return when the file at `path` is a clean scratch disk of `size` bytes.

    Clean means: an intact VHDX with nothing to replay, and in it an ext4 of the whole disk that
    was unmounted properly. What the file system holds is not looked at.

    Raises VhdxCorruptError, VhdxUnsupportedError or Ext4CorruptError for a file that is no such
    disk, FailedPreconditionError for one of another size or one in use or not shut down cleanly,
    FileNotFoundError, UnavailableError.
    """
    with VhdxDisk.open(path) as disk:
        if disk.size != size:
            raise FailedPreconditionError(
                f"{os.fspath(path)} holds a disk of {disk.size} bytes, not {size}: remove it or"
                " ask for its size"
            )
        if disk.info().log_dirty:
            raise FailedPreconditionError(
                f"{os.fspath(path)} is in use or was not closed cleanly: its VHDX log is not empty"
            )
        superblock = Superblock.unpack(disk.read_at(SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE))
    if superblock.log_block_size != 2 or superblock.blocks_count != size // BLOCK_SIZE:
        raise Ext4CorruptError(
            "superblock geometry",
            f"{superblock.blocks_count} blocks of 1024 << {superblock.log_block_size} bytes on a"
            f" disk of {size}",
            offset=SUPERBLOCK_OFFSET,
        )
    if superblock.state != STATE_CLEAN or superblock.incompat & Incompat.RECOVER:
        raise FailedPreconditionError(
            f"the ext4 in {os.fspath(path)} is mounted or was not unmounted cleanly: run e2fsck"
        )

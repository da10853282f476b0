"""What a VHDX file says about itself, without its parents."""

from __future__ import annotations

import os

from snapshotter.blockio import LocalBlockFile
from snapshotter.vhdx.batcheck import BatCheck
from snapshotter.vhdx.battable import BatTable
from snapshotter.vhdx.info import VhdxInfo
from snapshotter.vhdx.locator import ParentLinks
from snapshotter.vhdx.parent import parent_links
from snapshotter.vhdx.structures import read_structures


def inspect_vhdx(path: str | os.PathLike[str]) -> tuple[VhdxInfo, ParentLinks | None]:
    """Return what the file at `path` says about itself, and about its parent if it has one.

    Raises VhdxCorruptError, VhdxUnsupportedError, UnavailableError, FileNotFoundError.
    """
    with LocalBlockFile.open(path) as file:
        found = read_structures(file)
        table = BatTable(found.file, found.bat_region.offset, found.geometry)
        check = BatCheck(table, file_size=found.file.size, structures=found.extents)
        return VhdxInfo.of(found, check.require(), file_size=file.size), parent_links(found)

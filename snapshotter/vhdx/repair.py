"""Putting right what can be put right in a VHDX file without losing anything."""

from __future__ import annotations

import os
from dataclasses import dataclass

from snapshotter.blockio import BlockFile, LocalBlockFile
from snapshotter.vhdx.batcheck import BatCheck
from snapshotter.vhdx.battable import BatTable
from snapshotter.vhdx.check import Finding, check_vhdx
from snapshotter.vhdx.format import REGION_TABLE_OFFSETS
from snapshotter.vhdx.pages import MetadataPages
from snapshotter.vhdx.session import WriteSession
from snapshotter.vhdx.space import FileSpace
from snapshotter.vhdx.structures import Structures, read_structures


@dataclass(frozen=True, slots=True)
class Repair:
    """What `repair_vhdx` put right, and what is left. Nothing is touched where much is wrong."""

    repaired: tuple[Finding, ...]
    left: tuple[Finding, ...]


def repair_vhdx(path: str | os.PathLike[str]) -> Repair:
    """Repair the file at `path`; its disk reads as before.

    A dirty log is replayed, a damaged header or region table is written anew from its twin, the
    file is made to end where its last block does, also where nothing was wrong. Where anything
    else is wrong the file stays as it is.

    Raises FailedPreconditionError where somebody writes to it, UnavailableError,
    FileNotFoundError.
    """
    with LocalBlockFile.open(path, writable=True) as file:
        return repair(file)


def repair(file: BlockFile) -> Repair:
    """As `repair_vhdx`, for a file that the caller has open and nobody else changes."""
    findings = check_vhdx(file)
    if any(not finding.repairable for finding in findings):
        return Repair((), tuple(findings))
    found = read_structures(file)
    if findings or _used_end(file) != file.size:
        _rewrite(file, found)
        file.truncate(_used_end(file))
        file.flush()
    left = check_vhdx(file)
    return Repair(tuple(finding for finding in findings if finding not in left), tuple(left))


def _rewrite(file: BlockFile, found: Structures) -> None:
    """Replay the log, and write both headers and both region tables anew."""
    session = WriteSession.start(file, found)
    pages = MetadataPages(file)
    table = found.regions.pack()
    for at in REGION_TABLE_OFFSETS:
        if pages.read(at, len(table)) != table:
            pages.write(at, table)
    session.begin(data_changes=False)  # begun and closed, a session writes both headers
    session.commit(pages.changes())
    session.close()


def _used_end(file: BlockFile) -> int:
    """Return the file offset behind which nothing is, the log replayed."""
    found = read_structures(file)
    bat = BatTable(found.file, found.bat_region.offset, found.geometry)
    use = BatCheck(bat, file_size=found.file.size, structures=found.extents).require()
    return FileSpace(use, found.extents, block_size=found.parameters.block_size).end

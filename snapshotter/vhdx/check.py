"""What is wrong with a VHDX file: every finding, not the first error.

Content never makes this raise: each structure is read with the code that reads it for use, and
what that refuses becomes a finding. A structure that cannot be found hides those behind it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from snapshotter.blockio import BlockReader, LocalBlockFile
from snapshotter.errors import VhdxCorruptError, VhdxError
from snapshotter.units import MIB
from snapshotter.vhdx.batcheck import BatCheck, BatUse
from snapshotter.vhdx.battable import BatTable
from snapshotter.vhdx.format import HEADER_OFFSETS, REGION_TABLE_OFFSETS, FileIdentifier
from snapshotter.vhdx.header import NO_GUID, Header, current_header
from snapshotter.vhdx.region import RegionTable
from snapshotter.vhdx.space import FileSpace
from snapshotter.vhdx.structures import Structures, read_structures

# Enough to see what happened: a table can hold millions of bad entries.
MAX_FINDINGS: Final = 200

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: which structure, by which section of [MS-VHDX], where, and how.

    `offset` is in bytes from the start of the file, None where there is no one place. `repairable`
    is what `repair_vhdx` can put right without losing anything.
    """

    structure: str
    section: str
    offset: int | None
    value: str
    message: str
    repairable: bool


def check_vhdx(target: str | os.PathLike[str] | BlockReader) -> list[Finding]:
    """Return what is wrong with the file at a path, or an open one; nothing where it is sound.

    At most `MAX_FINDINGS`. A dirty log is a finding, and the rest is checked as it will be after
    the replay. Raises only what opening and reading the file itself does: FileNotFoundError,
    UnavailableError.
    """
    if isinstance(target, str | os.PathLike):
        with LocalBlockFile.open(target) as file:
            return _Check(file).run()
    return _Check(target).run()


class _Check:
    """One pass over `file`, from its first structure to its last."""

    def __init__(self, file: BlockReader) -> None:
        self._file = file
        self._findings: list[Finding] = []

    def run(self) -> list[Finding]:
        file = self._file
        self._try(partial(FileIdentifier.unpack, file.read_at(0, FileIdentifier.SIZE)))
        if self._findings:  # not a VHDX: nothing else would mean anything
            return self._findings
        header = self._check_headers()
        if header is None:
            return self._findings
        found = self._try(partial(read_structures, file))
        if found is None:
            return self._findings
        self._check_log(found)
        self._check_region_tables(found)
        self._check_extents(found)
        use = self._check_table(found)
        if use is not None and not any(not finding.repairable for finding in self._findings):
            self._check_length(found, use)
        return self._findings[:MAX_FINDINGS]

    def _check_headers(self) -> Header | None:
        raws = [self._file.read_at(at, Header.SIZE) for at in HEADER_OFFSETS]
        current = self._try(partial(current_header, raws[0], raws[1]))
        if current is not None:
            for raw, at in zip(raws, HEADER_OFFSETS, strict=True):
                self._try(partial(Header.unpack, raw, at=at), repairable=True)
        return current

    def _check_log(self, found: Structures) -> None:
        header = found.header
        if header.log_guid == NO_GUID:
            return
        entries = len(found.sequence)
        self._add(
            "log",
            "2.3.3",
            header.log_offset,
            str(header.log_guid),
            f"{entries} entries have to be replayed before the disk can be written to"
            if entries
            else "the headers name a log without any entry of that GUID: its writer was stopped"
            " before its first change",
        )

    def _check_region_tables(self, found: Structures) -> None:
        for at in REGION_TABLE_OFFSETS:
            raw = found.file.read_at(at, RegionTable.SIZE)
            table = self._try(partial(RegionTable.unpack, raw, at=at), repairable=True)
            if table is not None and set(table.entries) != set(found.regions.entries):
                self._add(
                    "region table",
                    "2.2.3",
                    at,
                    f"{len(table.entries)} entries",
                    "differs from the first region table",
                )

    def _check_extents(self, found: Structures) -> None:
        for extent in found.extents:
            if extent.end > found.file.size:
                self._add(
                    extent.name,
                    "2.2",
                    extent.offset,
                    f"{extent.length} bytes",
                    f"lies behind the end of the file, {found.file.size}",
                    repairable=False,
                )

    def _check_table(self, found: Structures) -> BatUse | None:
        table = BatTable(found.file, found.bat_region.offset, found.geometry)
        check = BatCheck(table, file_size=found.file.size, structures=found.extents)

        def walk() -> BatUse:
            for problem in check.problems():
                self._refused(problem)
                if len(self._findings) >= MAX_FINDINGS:
                    break
            return check.use()

        return self._try(walk)

    def _check_length(self, found: Structures, use: BatUse) -> None:
        size = found.file.size
        space = FileSpace(use, found.extents, block_size=found.parameters.block_size)
        if size < space.end:
            self._add(
                "file size",
                "2.2",
                size,
                f"{size} bytes",
                f"the file ends inside its last block, which reaches to {space.end}",
            )
        elif size % MIB:  # whole mebibytes of room are fine: QEMU leaves some
            self._add(
                "file size",
                "2.2",
                space.end,
                f"{size} bytes",
                "the file does not end with a block, at a multiple of 1 MiB",
            )

    def _try(self, read: Callable[[], T], *, repairable: bool = False) -> T | None:
        try:
            return read()
        except VhdxError as error:
            self._refused(error, repairable=repairable)
            return None

    def _refused(self, error: VhdxError, *, repairable: bool = False) -> None:
        if isinstance(error, VhdxCorruptError):
            finding = Finding(
                error.structure,
                error.section,
                error.offset,
                str(error.value),
                str(error),
                repairable,
            )
        else:
            finding = Finding("file", "1", None, "", str(error), repairable)
        if finding not in self._findings:
            self._findings.append(finding)

    def _add(
        self,
        structure: str,
        section: str,
        offset: int | None,
        value: str,
        message: str,
        *,
        repairable: bool = True,
    ) -> None:
        self._findings.append(Finding(structure, section, offset, value, message, repairable))

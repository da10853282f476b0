"""Replaying the log of a file that was not closed cleanly, in the file itself."""

from __future__ import annotations

import os

from snapshotter.blockio import LocalBlockFile
from snapshotter.vhdx.batcheck import BatCheck
from snapshotter.vhdx.battable import BatTable
from snapshotter.vhdx.info import VhdxInfo
from snapshotter.vhdx.session import WriteSession
from snapshotter.vhdx.structures import read_structures


def replay_log(path: str | os.PathLike[str]) -> VhdxInfo:
    """Replay the log of the VHDX at `path`, durably; return what the file said before.

    A clean file is not changed, and the parent of a differencing disk is not needed. Everything
    is checked as it will be before anything is written.

    Raises VhdxCorruptError, VhdxUnsupportedError, UnavailableError, FileNotFoundError,
    FailedPreconditionError where the file is open for writing.
    """
    with LocalBlockFile.open(path, writable=True) as file:
        found = read_structures(file)
        table = BatTable(found.file, found.bat_region.offset, found.geometry)
        check = BatCheck(table, file_size=found.file.size, structures=found.extents)
        info = VhdxInfo.of(found, check.require(), file_size=file.size)
        WriteSession.start(file, found).close()
        return info

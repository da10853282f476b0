"""Room for the write-ahead log, laid out once instead of a little with each commit.

SQLite appends to its log until a checkpoint, some thousand pages later, and then overwrites it from
the beginning. While the log grows, each flush has to write the file's size and blocks as well: one
more write to wait for, and a whole commit of the journal where the file system has one. A flush of
what is overwritten writes the data alone.

The log is as durable in either case, and nothing may rely on what else a flush of a growing file
writes (the names made before it): every store gets to the overwriting in time.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from snapshotter.units import KIB, MIB

_log = logging.getLogger(__name__)

_FRAME: Final = 24 + 4 * KIB
"""A frame's header and a page (sqlite.org/fileformat2.html, 4.1)."""

_SIZE: Final = 32 + (1000 + 64) * _FRAME
"""SQLite checkpoints from 1000 frames on, with the commit that gets there; that may be a large one.

The first 32 bytes are the log's header.
"""

_CHUNK: Final = 1 * MIB


def log_of(metadata: Path) -> Path:
    """Where SQLite keeps the write-ahead log of a file."""
    return metadata.with_name(f"{metadata.name}-wal")


def lay_out(log: Path) -> bool:
    """Fill the log up to its size with zeros, and whether there was anything to do.

    The write lock must be held, else a frame that is written meanwhile would be lost. Frames of
    zeros are none: their checksums do not fit, like those of frames that are left over from before
    a checkpoint (fileformat2, 4.1), so that a reader after a crash stops at them. Not flushed. A
    disk without the space is left as it is.
    """
    try:
        # Unbuffered, and never truncated: what is there stays there.
        with log.open("r+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if end >= _SIZE:
                return False
            while end < _SIZE:
                # Written, not reserved: a block that was never written has its state changed by
                # the first write, which is what this is to avoid.
                end += file.write(bytes(min(_CHUNK, _SIZE - end))) or 0
    except OSError as error:
        _log.info("no room is laid out in %s: %s", log, error.strerror)
    return True


def flush(log: Path) -> None:
    """Write out what `lay_out` did, or the first commit would; no lock is needed."""
    try:
        with log.open("r+b", buffering=0) as file:
            os.fsync(file.fileno())
    except OSError as error:
        _log.info("%s cannot be flushed: %s", log, error.strerror)

"""Space kept back for the moment when the disk is full.

Removing a snapshot frees space but has to write its row first. On a full disk that would fail,
and nothing could ever be freed; so a small file is kept that can be given up then.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from snapshotter.units import KIB

_log = logging.getLogger(__name__)

_SIZE: Final = 256 * KIB
"""Some sixty pages of the write-ahead log; a removal takes about ten."""


class Reserve:
    """The file beside the metadata."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def fill(self) -> None:
        """Keep the space back, where there is enough to do so."""
        try:
            if self._path.stat().st_size == _SIZE:
                return
        except OSError:
            pass  # missing, or unreadable: the write below tells
        try:
            # Not zeros: a file system that compresses would keep nothing back.
            with self._path.open("wb") as file:
                file.write(os.urandom(_SIZE))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            _log.info("no space can be kept back at %s: %s", self._path, error)
            self.spend()

    def spend(self) -> None:
        """Give the space up."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("cannot give up %s: %s", self._path, error)

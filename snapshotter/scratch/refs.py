"""Scratch disks as clones of one file on ReFS, where files without a name do not exist.

The template has a staged directory of the shelf to itself: it is gone with the object, and what a
killed process leaves is what any process leaves that is killed while it writes a disk.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Final, Self

from snapshotter.blockio import LocalBlockFile
from snapshotter.errors import AlreadyExistsError, FailedPreconditionError, UnavailableError
from snapshotter.platform import Platform
from snapshotter.platform.patience import discard_file
from snapshotter.scratch.reflink import write_identity
from snapshotter.scratch.template import ScratchTemplate
from snapshotter.shelf import Shelf, discard
from snapshotter.units import KIB
from snapshotter.vhdx import Allocation

_PROBE: Final = 64 * KIB  # the largest cluster that ReFS has


class NamedSource:
    """A template file on a shelf, to be cloned within that volume."""

    def __init__(self, path: Path, template: ScratchTemplate, platform: Platform) -> None:
        self._path = path
        self._template = template
        self._platform = platform
        self._end = weakref.finalize(self, discard, platform, [path.parent])

    @classmethod
    def open(cls, shelf: Shelf, template: ScratchTemplate, platform: Platform) -> Self | None:
        """Return the source of clones of `template` on `shelf`; None where that cannot be.

        Raises UnavailableError (disk full, no permission).
        """
        folder = shelf.stage()
        source = cls(folder / "template.vhdx", template, platform)
        try:
            if _can_clone(folder, platform):
                template.write_staged(
                    platform.long(source._path), durable=False, allocation=Allocation.DENSE
                )
                return source
        except BaseException:
            source.close()
            raise
        source.close()
        return None

    def close(self) -> None:
        """Delete the file; no thread may be cloning it. A second call does nothing."""
        self._end()

    def write_staged(self, path: Path, *, durable: bool = True) -> bool:
        """Store a new scratch disk as `ScratchTemplate.write_staged` does; say whether it is there.

        It is not where the volume refuses after all, or a scanner keeps the new file to itself.
        Raises AlreadyExistsError.
        """
        try:
            self._platform.reflink(self._path, path)
        except FileExistsError as error:
            raise AlreadyExistsError(f"{path} exists already") from error
        except OSError:  # nothing is left
            return False
        try:
            with LocalBlockFile.open(self._platform.long(path), writable=True) as file:
                write_identity(file, self._template.layout)
                if durable:
                    file.flush()
        except BaseException as error:
            discard_file(self._platform.long(path))
            if isinstance(error, UnavailableError | FailedPreconditionError):
                return False
            raise
        return True


def _can_clone(folder: Path, platform: Platform) -> bool:
    """Say whether files there can share blocks, by cloning one."""
    probe = folder / "probe"
    try:
        platform.long(probe).write_bytes(bytes(_PROBE))
        platform.reflink(probe, folder / "clone")
    except OSError:
        return False
    return True

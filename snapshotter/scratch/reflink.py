"""Scratch disks as clones of one file, on file systems that share blocks (XFS, Btrfs, bcachefs).

The clone shares every block with a nameless template file; what makes it a disk of its own, its
headers and metadata items, is then written over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import weakref
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from snapshotter.blockio import LocalBlockFile
from snapshotter.errors import UnavailableError
from snapshotter.scratch.template import ScratchTemplate
from snapshotter.units import KIB, MIB
from snapshotter.vhdx.create import VhdxIdentity, VhdxLayout
from snapshotter.vhdx.publish import Allocation, create_new, fill

# No O_TMPFILE there, or no such thing in this kernel.
_NOT_HERE: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.EISDIR, errno.ENOSYS})
_PAGE: Final = 4 * KIB
_MAX_DENSE: Final = 32 * MIB  # the file of a 4 TiB disk; of larger ones zeros are not written
_PROBE: Final = 64 * KIB  # a multiple of any file system's blocks


class ReflinkSource:
    """A template file in a directory, to be cloned within that file system; a context manager.

    The file has no name: it is gone with the object, or with the process. It is closed only when
    the last thread that clones it has let go of the object.
    """

    def __init__(self, file: LocalBlockFile, layout: VhdxLayout) -> None:
        self._file = file
        self._layout = layout
        self._end = weakref.finalize(self, file.close)

    @classmethod
    def open(cls, directory: Path, template: ScratchTemplate) -> Self | None:
        """Return the source of clones of `template` in `directory`; None where that cannot be.

        Raises UnavailableError (disk full, no permission).
        """
        file = _nameless(directory) if _can_share(directory) else None
        if file is None:
            return None
        source = cls(file, template.layout)
        # Without a hole it is one extent, and a clone costs a transaction for each.
        dense = template.file_size <= _MAX_DENSE
        try:
            fill(file, template.content(), Allocation.DENSE if dense else Allocation.SPARSE)
            file.flush()
        except BaseException:
            source.close()
            raise
        return source

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; no thread may be cloning it. A second call does nothing."""
        self._end()

    def write_staged(self, path: Path, *, durable: bool = True) -> bool:
        """Store a new scratch disk as `ScratchTemplate.write_staged` does; say whether it is there.

        It is not where the file system refuses after all: full, or another one than before.
        Raises AlreadyExistsError, UnavailableError.
        """
        shared = False

        def write(file: LocalBlockFile) -> None:
            nonlocal shared
            shared = self._share(file)
            if shared:
                write_identity(file, self._layout)

        create_new(path, write, durable=durable)
        if not shared:
            path.unlink()
        return shared

    def _share(self, file: LocalBlockFile) -> bool:
        return file.share_from(self._file, 0, 0, self._layout.file_size)


def write_identity(file: LocalBlockFile, layout: VhdxLayout) -> None:
    """Make a file that is a clone of another of this `layout` a disk of its own."""
    for offset, data in layout.identity_pieces(VhdxIdentity.fresh()):
        # Whole pages: of a part, the rest would be read first.
        file.write_at(offset, data.ljust(-(-len(data) // _PAGE) * _PAGE, b"\0"))


def _can_share(directory: Path) -> bool:
    """Say whether files there can share blocks, by having two of them share one."""
    with contextlib.ExitStack() as files:
        pair = [files.enter_context(file) for _ in range(2) if (file := _nameless(directory))]
        if len(pair) < 2:
            return False
        pair[0].write_at(0, bytes(_PROBE))
        return pair[1].share_from(pair[0], 0, 0, _PROBE)


if sys.platform == "linux":

    def _nameless(directory: Path) -> LocalBlockFile | None:
        """Return a new file without a name. Raises UnavailableError."""
        flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
        try:
            return LocalBlockFile(os.open(directory, flags, 0o600), directory)
        except OSError as error:
            if error.errno in _NOT_HERE:
                return None
            raise UnavailableError(
                f"cannot make a template in {directory}: {error.strerror}"
            ) from error

else:

    def _nameless(directory: Path) -> LocalBlockFile | None:
        """Say that there are none."""
        del directory
        return None

r"""Windows: NTFS and ReFS through kernel32.

A file that anybody has open without sharing its deletion can be neither renamed nor deleted, nor
can a directory that contains one; scanners open files for moments, utility VMs for hours. Links
need a privilege. Paths longer than 260 characters need the `\\?\` spelling.
"""

from __future__ import annotations

import contextlib
import ntpath
import os
from pathlib import Path
from typing import Final

from snapshotter.platform.kernel32 import (
    CREATE_NEW,
    DELETE,
    FILE_ATTRIBUTE_NORMAL,
    FILE_SHARE_READ,
    GENERIC_READ,
    GENERIC_WRITE,
    MOVEFILE_REPLACE_EXISTING,
    MOVEFILE_WRITE_THROUGH,
    OPEN_EXISTING,
    SYMBOLIC_LINK_FLAG_ALLOW_UNPRIVILEGED_CREATE,
    Kernel32,
)
from snapshotter.platform.winerror import (
    ACCESS_DENIED,
    BUSY,
    INVALID_PARAMETER,
    winerror_of,
)
from snapshotter.units import GIB

_EXTENDED: Final = "\\\\?\\"
_UNC: Final = "\\\\?\\UNC\\"
_CLONE_STEP: Final = GIB
"""A single FSCTL_DUPLICATE_EXTENTS_TO_FILE takes less than 4 GiB."""
_SHORT: Final = 180
"""Directories may have 247 characters; what callers append to a path has less than 60."""
_REPARSE_POINT: Final = 0x400
"""FILE_ATTRIBUTE_REPARSE_POINT."""


def extended(path: str) -> str:
    """An absolute Windows path in the spelling without a length limit."""
    if path.startswith(_EXTENDED):
        return path
    whole = ntpath.normpath(path)  # that spelling is taken literally, `..` included
    if whole.startswith("\\\\"):
        return _UNC + whole[2:]
    return _EXTENDED + whole


class WindowsPlatform:
    """A volume as kernel32 shows it."""

    link_fix: Final = (
        "turn on developer mode, or grant the account the right to create symbolic links"
        " (SeCreateSymbolicLinkPrivilege)"
    )
    # A sparse VHDX was refused by Windows 10 1809; WSL sets the attribute. So none are made.
    sparse_disks: Final = False

    def __init__(self, kernel: Kernel32) -> None:
        self._kernel = kernel

    def long(self, path: Path) -> Path:
        """The path as it is where it is short, else the extended spelling."""
        return path if len(str(path)) < _SHORT else Path(extended(str(path)))

    def fold(self, path: str) -> str:
        """The path in lower case, with slashes; an extended spelling is as good as none."""
        plain = path.removeprefix(_EXTENDED) if not path.startswith(_UNC) else "\\\\" + path[8:]
        return ntpath.normcase(ntpath.normpath(plain)).replace("\\", "/")

    def make_directory(self, path: Path) -> None:
        """Make one directory; its access list is inherited."""
        self._kernel.create_directory(self._spell(path))

    def names(self, directory: Path) -> list[str]:
        """The names in a directory."""
        return os.listdir(self.long(directory))  # noqa: PTH208 (names are what is asked for)

    def exists(self, path: Path) -> bool:
        """Whether something has that name."""
        return os.path.lexists(self.long(path))

    def rename(self, source: Path, target: Path) -> None:
        """Move to a name that nothing has, and return when that is durable."""
        self._kernel.move_file(self._spell(source), self._spell(target), MOVEFILE_WRITE_THROUGH)

    def replace(self, source: Path, target: Path) -> None:
        """Move over whatever file has the name."""
        flags = MOVEFILE_WRITE_THROUGH | MOVEFILE_REPLACE_EXISTING
        self._kernel.move_file(self._spell(source), self._spell(target), flags)

    def remove_tree(self, path: Path) -> None:
        """Delete a directory and all in it, write-protected files included."""
        with os.scandir(self.long(path)) as entries:
            found = list(entries)
        for entry in found:
            child = path / entry.name
            if entry.is_dir(follow_symlinks=False) and not _is_reparse_point(entry):
                self.remove_tree(child)
            elif entry.is_dir(follow_symlinks=False):
                self._kernel.remove_directory(self._spell(child))  # a junction, not its target
            else:
                self._delete_file(self._spell(child))
        self._kernel.remove_directory(self._spell(path))

    def symlink(self, link: Path, target: Path) -> None:
        """Make a symbolic link to a file; its text is the plain path, which hcsshim resolves."""
        spelled = self._spell(link)
        try:
            self._kernel.create_symbolic_link(
                spelled, str(target), SYMBOLIC_LINK_FLAG_ALLOW_UNPRIVILEGED_CREATE
            )
        except OSError as error:
            if winerror_of(error) != INVALID_PARAMETER:
                raise
            # Before Windows 10 1703 there was no such flag.
            self._kernel.create_symbolic_link(spelled, str(target), 0)

    def hard_link(self, source: Path, target: Path) -> None:
        """Give a file a second name."""
        self._kernel.create_hard_link(self._spell(target), self._spell(source))

    def reflink(self, source: Path, target: Path) -> None:
        """Clone on ReFS; NTFS refuses."""
        size = self.long(source).stat().st_size
        cluster = self._kernel.cluster_size(self._spell(target.parent))
        with contextlib.ExitStack() as handles:
            reading = self._kernel.create_file(
                self._spell(source), GENERIC_READ, FILE_SHARE_READ, OPEN_EXISTING
            )
            handles.callback(self._kernel.close_handle, reading)
            writing = self._kernel.create_file(
                self._spell(target), GENERIC_READ | GENERIC_WRITE | DELETE, 0, CREATE_NEW
            )
            try:
                try:
                    self._kernel.set_file_size(writing, size)
                    self._clone(reading, writing, -(-size // cluster) * cluster)
                finally:
                    self._kernel.close_handle(writing)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._kernel.delete_file(self._spell(target))
                raise

    def free_space(self, path: Path) -> int:
        """Bytes that are left to this account."""
        return self._kernel.free_bytes(self._spell(path))

    def flush_names(self, directory: Path) -> None:
        """Nothing: renames are written through, and NTFS journals what else happens to names."""

    def file_flush_keeps_path(self, directory: Path) -> bool:
        """False, which costs nothing: `flush_names` has nothing to do here."""
        del directory
        return False

    def may_pass(self, error: OSError) -> bool:
        """Whether somebody has the file, or one in the directory, open."""
        return winerror_of(error) in BUSY

    def _spell(self, path: Path) -> str:
        return extended(str(path))

    def _clone(self, source: int, target: int, length: int) -> None:
        # The last cluster is cloned whole: the length must be in clusters, and the target's end
        # is where set_file_size put it.
        for offset in range(0, length, _CLONE_STEP):
            self._kernel.duplicate_extents(
                target,
                source,
                source_offset=offset,
                target_offset=offset,
                length=min(_CLONE_STEP, length - offset),
            )

    def _delete_file(self, path: str) -> None:
        try:
            self._kernel.delete_file(path)
        except OSError as error:
            if winerror_of(error) != ACCESS_DENIED:
                raise
            self._kernel.set_attributes(path, FILE_ATTRIBUTE_NORMAL)  # it was write-protected
            self._kernel.delete_file(path)


def _is_reparse_point(entry: os.DirEntry[str]) -> bool:
    attributes: int = getattr(entry.stat(follow_symlinks=False), "st_file_attributes", 0)
    return bool(attributes & _REPARSE_POINT)

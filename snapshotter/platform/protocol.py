"""What the store asks of a system's files: the few calls where systems differ.

Everything else (reading, writing, measuring a file) goes through Python's own calls on
`Platform.long(path)`. The implementations raise the system's OSError; whoever calls says what
was meant to be done.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Platform(Protocol):
    """Directories and links of one system. Every call raises OSError."""

    @property
    def link_fix(self) -> str:
        """What an administrator has to do where symbolic links are refused."""
        ...

    @property
    def sparse_disks(self) -> bool:
        """Whether whoever attaches a disk takes its file with holes."""
        ...

    def long(self, path: Path) -> Path:
        """An absolute path, spelled so that the system takes it at any length."""
        ...

    def fold(self, path: str) -> str:
        """A text that is equal for two spellings of one absolute path; links are not followed."""
        ...

    def make_directory(self, path: Path) -> None:
        """Make one directory that only this account may enter; FileExistsError where it is."""
        ...

    def names(self, directory: Path) -> list[str]:
        """The names in a directory, in no order."""
        ...

    def exists(self, path: Path) -> bool:
        """Whether something has that name, be it a dangling link."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Move within a file system to a name that nothing has."""
        ...

    def replace(self, source: Path, target: Path) -> None:
        """Move a file within a file system over whatever file has the name."""
        ...

    def remove_tree(self, path: Path) -> None:
        """Delete a directory and all in it; a link goes, what it leads to stays."""
        ...

    def symlink(self, link: Path, target: Path) -> None:
        """Make a symbolic link to the absolute path of a file."""
        ...

    def hard_link(self, source: Path, target: Path) -> None:
        """Give a file a second name on the same file system."""
        ...

    def reflink(self, source: Path, target: Path) -> None:
        """A new file that shares the blocks of `source` until one of them is changed.

        Nothing is left at `target` where it fails, as it does on most file systems.
        """
        ...

    def free_space(self, path: Path) -> int:
        """Bytes that this account can still write to the file system of a directory."""
        ...

    def flush_names(self, directory: Path) -> None:
        """Return when the names in a directory would survive a power cut."""
        ...

    def file_flush_keeps_path(self, directory: Path) -> bool:
        """Whether flushing a new file in `directory` keeps the names that lead to it as well.

        Also where a directory above it was renamed a moment before. Asked of the file system by
        its name: False where nobody proved it.
        """
        ...

    def may_pass(self, error: OSError) -> bool:
        """Whether a file that is open elsewhere is the cause, so that trying again may help."""
        ...

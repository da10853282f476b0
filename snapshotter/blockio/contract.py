"""Files and disks addressed by byte offset, and the content of a disk that is still to be written.

`BlockReader` is what readers of a disk take (a raw file, a VHDX, a slice of either);
`BlockFile` adds what writers need. `DiskContent` describes a whole disk sparsely, so that a
formatted disk of any size can be handed from the file-system code to an image writer in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

LARGEST_FILE: Final = 2**63 - 1
"""No file of Linux or Windows is longer: offsets are signed there."""


class BlockReader(Protocol):
    """Something that can be read at any byte offset."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; fewer only where the end is reached.

        No offset is too large to ask for: damaged structures name places that no file reaches to.
        """
        ...


class BlockFile(BlockReader, Protocol):
    """A `BlockReader` that can be changed."""

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at `offset`, growing the file where needed."""
        ...

    def write_zeros(self, offset: int, length: int) -> None:
        """Make `length` bytes at `offset` read as zeros, all of them within the file.

        Room on the disk is given back where the file system can: never to be relied on.
        """
        ...

    def truncate(self, size: int) -> None:
        """Set the length to `size` bytes."""
        ...

    def flush(self) -> None:
        """Return only when everything written so far would survive a power cut."""
        ...


@dataclass(frozen=True, slots=True)
class DiskContent:
    """A whole disk, sparsely.

    `pieces` are (offset, bytes) in ascending order without overlap. `zeros` are (offset, length)
    ranges that must read as zeros. Everything else is free: it may read as anything.
    """

    size: int
    pieces: tuple[tuple[int, bytes], ...]
    zeros: tuple[tuple[int, int], ...] = ()

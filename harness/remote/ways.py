"""What every way of a file's content to a host takes and gives.

A way brings the bytes into one or more part files below our folder there and says how they are put
together; whoever called it has them joined and compared. A part is appended to: a transfer that
broke off is taken up again from its length, in the next run and by another way that uses the same
part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from harness.remote.deadline import Deadline

WayName = Literal["cache", "smb", "pull", "streams"]

Progress = Callable[[int, int], object]
"""Takes the bytes done and those in all; called from several threads, one at a time."""


@dataclass(frozen=True, slots=True)
class Errand:
    """A file of ours to be brought to the host: `size` bytes with that SHA-256."""

    source: Path
    sha256: str
    size: int
    deadline: Deadline
    progress: Progress | None = None

    @property
    def whole(self) -> str:
        """The part file of ways that bring the content in one piece, below our folder there."""
        return f"cache/partial/{self.sha256}.whole"


@dataclass(frozen=True, slots=True)
class Delivery:
    """The part files, in order; `first_size` is that of the first, `moved` are the bytes sent."""

    parts: tuple[str, ...]
    first_size: int
    moved: int


@dataclass(frozen=True, slots=True)
class Closed:
    """Why a way does not lead to the host: the next one is tried."""

    reason: str


class Way(Protocol):
    """One way of a file's content to the host."""

    @property
    def name(self) -> WayName:
        """What reports call it."""
        ...

    def carry(self, errand: Errand) -> Delivery | Closed:
        """Bring the content there. Raises RemoteError when it broke off; what arrived stays."""
        ...

"""Where targets keep files: in memory where it can be, for flushes are most of a run's time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_MEMORY: Final = Path("/dev/shm")


@contextmanager
def private_folder() -> Iterator[Path]:
    """Yield a folder that is gone afterwards."""
    place = _MEMORY if _MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="lcowlab-fuzz-", dir=place) as directory:
        yield Path(directory)

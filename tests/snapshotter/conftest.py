from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter import Snapshotter


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Snapshotter]:
    """An open store in a fresh root, without fsync."""
    with Snapshotter.open(tmp_path / "root", durable=False) as snapshotter:
        yield snapshotter

"""Every test has a cache of its own: which leases a controller holds lies there."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LCOWLAB_CACHE", str(tmp_path / "cache"))

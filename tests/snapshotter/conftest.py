from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter import Snapshotter
from snapshotter.platform import Platform, local_platform
from tests.fakes.ntfs import FakeNtfs, NtfsPlatform


@pytest.fixture
def ntfs() -> FakeNtfs:
    """A volume that behaves as NTFS."""
    return FakeNtfs()


@pytest.fixture(params=["posix", "ntfs"])
def platform(request: pytest.FixtureRequest, ntfs: FakeNtfs) -> Platform:
    """The platforms that every behaviour of a store has to be the same on."""
    return local_platform() if request.param == "posix" else NtfsPlatform(ntfs)


@pytest.fixture
def store(tmp_path: Path, platform: Platform) -> Iterator[Snapshotter]:
    """An open store in a fresh root, without fsync."""
    with Snapshotter.open(tmp_path / "root", durable=False, platform=platform) as snapshotter:
        yield snapshotter

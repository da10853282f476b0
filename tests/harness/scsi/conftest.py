"""A manager on a strict fake machine; every test ends with no rule broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.scsi import ScsiManager
from tests.fakes.scsi_host import FakeScsiHost


@pytest.fixture
def vm() -> Iterator[FakeScsiHost]:
    host = FakeScsiHost()
    yield host
    assert host.violations == []


@pytest.fixture
def manager(vm: FakeScsiHost) -> ScsiManager:
    return ScsiManager(vm, vm)


@pytest.fixture
def make_disk(tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        path = tmp_path / name
        path.write_bytes(b"")
        return path

    return make


@pytest.fixture
def disk(make_disk: Callable[[str], Path]) -> Path:
    return make_disk("sandbox.vhdx")

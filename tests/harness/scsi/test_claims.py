"""One disk, several virtual machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import DiskError
from harness.scsi import DiskClaims, ScsiManager
from tests.fakes.scsi_host import FakeScsiHost


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "sandbox.vhdx"
    path.touch()
    return path


def machines(claims: DiskClaims) -> tuple[ScsiManager, ScsiManager]:
    first, second = FakeScsiHost(), FakeScsiHost()
    return (
        ScsiManager(first, first, claims=claims, machine="vm-1"),
        ScsiManager(second, second, claims=claims, machine="vm-2"),
    )


def test_a_disk_of_another_machine_is_refused_and_its_holder_named(disk: Path) -> None:
    claims = DiskClaims()
    first, second = machines(claims)
    held = first.acquire(disk, holder="container pod")
    with pytest.raises(DiskError, match=r"vm-1 has it read-write \(held by container pod\)"):
        second.acquire(disk, holder="container thief")
    held.release()
    second.acquire(disk, holder="container heir").release()
    assert len(claims) == 0


def test_readers_share_a_disk_between_machines(disk: Path) -> None:
    claims = DiskClaims()
    first, second = machines(claims)
    shares = [each.acquire(disk, holder="c", read_only=True) for each in (first, second)]
    third = ScsiManager(FakeScsiHost(), FakeScsiHost(), claims=claims, machine="vm-3")
    with pytest.raises(DiskError, match="has it read-only"):
        third.acquire(disk, holder="writer")
    for share in shares:
        share.release()
    assert len(claims) == 0


def test_a_machine_that_is_gone_claims_nothing(disk: Path) -> None:
    claims = DiskClaims()
    first, second = machines(claims)
    first.acquire(disk, holder="c")
    first.abandon()
    second.acquire(disk, holder="c").release()
    assert len(claims) == 0


def test_a_failed_attach_claims_nothing(disk: Path) -> None:
    claims = DiskClaims()
    host = FakeScsiHost()
    manager = ScsiManager(host, host, claims=claims, machine="vm-1")
    host.die()
    with pytest.raises(DiskError):
        manager.acquire(disk, holder="c")
    assert len(claims) == 0

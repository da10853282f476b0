"""The largest scratch disks before e2fsck, which takes ten seconds for one."""

from __future__ import annotations

import pytest

from snapshotter.ext4.mkfs import format_ext4
from snapshotter.units import TIB
from tests.snapshotter.ext4.oracles import fsck, vast_file, write_raw

pytestmark = [pytest.mark.conformance, pytest.mark.long]


@pytest.mark.parametrize("size", [4 * TIB, 16 * TIB - 4096, 16 * TIB])
def test_e2fsck_finds_nothing_to_say_of_terabytes(size: int) -> None:
    with vast_file() as disk:
        fsck(write_raw(format_ext4(size, journal_mib=128), disk))

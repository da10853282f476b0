"""Scratch disks that can grow: as small as the others, and what e2fsprogs expects of them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from snapshotter.errors import InvalidArgumentError
from snapshotter.ext4.layout import backup_groups
from snapshotter.ext4.mkfs import format_ext4
from snapshotter.ext4.reader import Ext4
from snapshotter.scratch.template import ScratchTemplate
from snapshotter.units import GIB, MIB, TIB
from tests.snapshotter.ext4.oracles import ContentDisk, debugfs, fsck, write_raw


@pytest.mark.parametrize(
    ("size_gib", "grow_gib", "journal_mib", "checksums"),
    [
        (1, 20, 0, True),
        (1, 1, 4, False),
        (20, 400, 64, True),
        (33, 1024, 128, True),
        (5, 64, 0, False),
    ],
)
def test_e2fsck_finds_nothing_to_say(
    tmp_path: Path, size_gib: int, grow_gib: int, journal_mib: int, checksums: bool
) -> None:
    content = format_ext4(
        size_gib * GIB, journal_mib=journal_mib, checksums=checksums, grow_to=grow_gib * GIB
    )
    disk = write_raw(content, tmp_path / "disk.raw")
    fsck(disk)
    shown = debugfs(disk, "show_super_stats -h")
    assert "resize_inode" in shown
    assert "sparse_super2" not in shown


@pytest.mark.parametrize("journal_mib", [0, 64, 128])
def test_growth_to_a_terabyte_keeps_a_20_gib_scratch_at_5_mib(journal_mib: int) -> None:
    template = ScratchTemplate.build(20 * GIB, journal_mib=journal_mib, grow_to=TIB)
    assert template.file_size <= 5 * MIB


def test_resize2fs_grows_it_to_its_maximum(tmp_path: Path) -> None:
    if not shutil.which("resize2fs"):
        pytest.skip("resize2fs is not installed (package e2fsprogs)")
    disk = write_raw(format_ext4(20 * GIB, grow_to=100 * GIB), tmp_path / "disk.raw")
    with disk.open("r+b") as file:
        file.truncate(100 * GIB)
    subprocess.run(["resize2fs", str(disk)], check=True, capture_output=True)
    fsck(disk)
    assert "Block count:              26214400" in debugfs(disk, "show_super_stats -h")


def test_the_largest_growth_is_refused_from_16_tib_on() -> None:
    format_ext4(GIB, grow_to=16 * TIB - 4096)
    with pytest.raises(InvalidArgumentError, match="growth"):
        format_ext4(GIB, grow_to=16 * TIB)
    with pytest.raises(InvalidArgumentError, match="growth"):
        format_ext4(2 * GIB, grow_to=GIB)


def test_a_last_group_without_room_for_its_copy_is_refused() -> None:
    size = 9 * 128 * MIB + 4096  # group 9 has one block
    format_ext4(size)
    with pytest.raises(InvalidArgumentError, match=str(9 * 128 * MIB)):
        format_ext4(size, grow_to=20 * GIB)


def test_copies_stand_where_e2fsprogs_puts_them() -> None:
    assert backup_groups(130) == (1, 3, 5, 7, 9, 25, 27, 49, 81, 125)
    assert backup_groups(1) == ()


@pytest.mark.parametrize("size", [16 * TIB - 4096, 16 * TIB, 16 * TIB + 4096])
def test_sizes_around_32_bits_of_blocks_are_read_back(size: int) -> None:
    files = Ext4.open(ContentDisk(format_ext4(size)))
    assert files.superblock.blocks_count == size // 4096
    assert files.listdir("/") == ["lost+found"]

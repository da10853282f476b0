from __future__ import annotations

import random
from pathlib import Path

import pytest

from snapshotter.blockio import DiskContent
from snapshotter.errors import InvalidArgumentError, VhdxUnsupportedError
from snapshotter.units import GIB, KIB, MIB, TIB
from snapshotter.vhdx import VhdxDisk, create_vhdx, emit_vhdx
from snapshotter.vhdx.resize import resize, resize_vhdx

from . import oracle
from .crash import CrashFile
from .memory import MemoryFile

ODD = 5 * MIB + 512
CONTENT = DiskContent(ODD, ((0, b"A" * 4096), (5 * MIB, b"Z" * 512)))
# In blocks of 1 MiB the first MiB of table is full at about 128 GiB.
MOVES = 200 * GIB


def disk_file(*, fixed: bool = False) -> MemoryFile:
    return MemoryFile.of(emit_vhdx(CONTENT, fixed=fixed))


def read_all(file: MemoryFile, length: int) -> bytes:
    return VhdxDisk.load(file).read_at(0, length)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("size", [ODD + 512, 6 * MIB, 40 * MIB, 3 * GIB])
def test_a_grown_disk_keeps_its_data_and_is_zeros_behind(size: int, fixed: bool) -> None:
    file = disk_file(fixed=fixed)
    before = read_all(file, ODD)
    identity = VhdxDisk.load(file).info()
    resize(file, size)
    disk = VhdxDisk.load(file)
    assert disk.size == size
    assert disk.read_at(0, 8 * MIB) == before + bytes(min(size, 8 * MIB) - ODD)
    info = disk.info()
    assert not info.log_dirty
    assert info.data_write_guid != identity.data_write_guid
    assert info.disk_id == identity.disk_id
    if fixed:
        assert set(info.blocks) == {6}


def test_a_table_that_outgrows_its_region_moves() -> None:
    file = disk_file()
    before = read_all(file, ODD)
    resize(file, MOVES)
    with VhdxDisk.load_writable(file) as disk:
        assert disk.read_at(0, ODD) == before
        assert disk.read_at(ODD, 4 * MIB) == bytes(4 * MIB)
        disk.write_at(MOVES - 512, b"e" * 512)
        disk.write_at(3 * MIB, b"m" * MIB)
    disk = VhdxDisk.load(file)
    assert disk.read_at(MOVES - 512, 512) == b"e" * 512
    assert disk.read_at(3 * MIB, MIB) == b"m" * MIB
    assert disk.read_at(0, MIB) == before[:MIB]


def test_what_other_writers_left_behind_the_end_is_not_shown() -> None:
    file = disk_file()
    place = 5 * MIB  # the block of the disk's last 512 bytes: BAT at 3 MiB, first block at 4 MiB
    file.truncate(6 * MIB)
    file.write_at(place + 512, b"stale" * 1000)
    file.write_at(3 * MIB + 8 * 6, b"\xff" * 8)  # entries that the table does not have yet
    resize(file, 20 * MIB)
    assert VhdxDisk.load(file).read_at(ODD, 15 * MIB) == bytes(20 * MIB - ODD)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_shrunk_disk_gives_its_blocks_back_and_grows_again_as_zeros(fixed: bool) -> None:
    file = disk_file(fixed=fixed)
    full = file.size
    resize(file, 2 * MIB + 512, shrink=True)
    disk = VhdxDisk.load(file)
    assert disk.size == 2 * MIB + 512
    assert disk.read_at(0, 4096) == b"A" * 4096
    assert file.size < full
    resize(file, 8 * MIB)
    disk = VhdxDisk.load(file)
    assert disk.read_at(0, 8 * MIB) == b"A" * 4096 + bytes(8 * MIB - 4096)


def test_a_disk_shrinks_only_when_allowed() -> None:
    file = disk_file()
    with pytest.raises(InvalidArgumentError, match="shrink"):
        resize(file, MIB)
    assert VhdxDisk.load(file).size == ODD


@pytest.mark.parametrize("size", [0, 1000, 65 * TIB, -512])
def test_impossible_sizes_are_refused(size: int) -> None:
    with pytest.raises(InvalidArgumentError, match="no VHDX can hold"):
        resize(disk_file(), size, shrink=True)


def test_the_same_size_changes_nothing() -> None:
    file = disk_file()
    before = file.content()
    resize(file, ODD)
    assert file.content() == before


def test_a_child_keeps_the_size_of_its_parent() -> None:
    file = MemoryFile.of(emit_vhdx(DiskContent(ODD, ()), parent_locator=b"x" * 20))
    with pytest.raises(VhdxUnsupportedError, match="merge"):
        resize(file, 2 * ODD + 512)


@pytest.mark.parametrize(
    ("size", "fixed"),
    [(12 * MIB, False), (12 * MIB, True), (MOVES, False), (2 * MIB, False), (2 * MIB, True)],
)
def test_a_cut_leaves_the_old_size_or_the_new_one(size: int, fixed: bool) -> None:
    file = CrashFile.starting_as(disk_file(fixed=fixed))
    before = read_all(file, ODD)
    resize(file, size, shrink=True)
    chance = random.Random(size)
    seen = set()
    for cut in range(len(file.steps) + 1):
        for _ in range(4):
            left = file.cut(cut, chance)
            disk = VhdxDisk.load(left)
            expected = before[: disk.size] + bytes(max(0, min(size, 12 * MIB) - ODD))
            assert disk.size in (ODD, size)
            wanted = before if disk.size == ODD else expected[: 12 * MIB]
            assert disk.read_at(0, 12 * MIB) == wanted[: disk.size]
            seen.add(disk.size)
            with VhdxDisk.load_writable(left) as reopened:
                assert reopened.size == disk.size
            resize(left, size, shrink=True)
            assert VhdxDisk.load(left).size == size
    assert seen == {ODD, size}


@oracle.needs_qemu
@pytest.mark.parametrize("size", [300 * MIB, MOVES, 16 * MIB])
def test_qemu_accepts_a_resized_disk(tmp_path: Path, size: int) -> None:
    path = tmp_path / "disk.vhdx"
    create_vhdx(path, 64 * MIB)
    oracle.io(path, "write -P 0x41 0 1M", "write -P 0x42 60M 64k")
    resize_vhdx(path, size, shrink=True)
    oracle.check(path)
    assert oracle.info(path)["virtual-size"] == size
    oracle.io(path, "read -P 0x41 0 1M", f"write -P 0x43 {size - 64 * KIB} 64k")
    oracle.check(path)
    with VhdxDisk.open(path) as disk:
        assert disk.read_at(0, MIB) == b"A" * MIB
        assert disk.read_at(size - 64 * KIB, 64 * KIB) == b"C" * 64 * KIB

"""Fixed and differencing files as they are made."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapshotter.blockio import DiskContent
from snapshotter.errors import InvalidArgumentError, VhdxCorruptError
from snapshotter.units import GIB, KIB, MIB, TIB
from snapshotter.vhdx import VhdxDisk, check_vhdx, create_vhdx, emit_vhdx, write_content
from snapshotter.vhdx.bat import BatBuilder, BatGeometry, PayloadState
from snapshotter.vhdx.battable import BatTable
from snapshotter.vhdx.metadata import PARENT_LOCATOR
from snapshotter.vhdx.structures import read_structures

from . import oracle
from .memory import MemoryFile

SIZE = 6 * MIB + 512
CONTENT = DiskContent(SIZE, ((MIB - 5, b"fixed" * 2), (SIZE - 3, b"end")))
WHOLE = MemoryFile.of(CONTENT).read_at(0, SIZE)


def test_every_block_of_a_fixed_disk_is_present_in_order() -> None:
    file = MemoryFile.of(emit_vhdx(CONTENT, fixed=True))
    disk = VhdxDisk.load(file)
    info = disk.info()
    assert info.leave_blocks_allocated
    assert info.blocks == {PayloadState.FULLY_PRESENT: 7}
    assert file.size == 4 * MIB + 7 * MIB
    assert disk.read_at(0, SIZE) == WHOLE == file.read_at(4 * MIB, SIZE)
    assert check_vhdx(file) == []


def test_a_fixed_disk_never_gives_a_block_back() -> None:
    file = MemoryFile.of(emit_vhdx(CONTENT, fixed=True))
    size = file.size
    with VhdxDisk.load_writable(file) as disk:
        disk.trim(0, SIZE)
    disk = VhdxDisk.load(file)
    assert disk.read_at(0, SIZE) == bytes(SIZE)
    assert disk.info().blocks == {PayloadState.FULLY_PRESENT: 7}
    assert file.size == size


def test_a_run_of_blocks_passes_over_the_bitmap_entries() -> None:
    geometry = BatGeometry(40 * GIB, MIB, 512)
    builder = BatBuilder(geometry)
    builder.set_run(4000, 20_000, 100 * MIB)
    file = MemoryFile(TIB)
    for offset, raw in builder.pieces(3 * MIB):
        file.write_at(offset, raw)
    table = BatTable(file, 3 * MIB, geometry)
    for block in (4000, 4095, 4096, 8191, 8192, 23_999):
        assert table.place(block) == (100 + block - 4000) * MIB
    assert table.place(3999) == table.place(24_000) == -1


@oracle.needs_qemu
@pytest.mark.parametrize("block_size", [MIB, 32 * MIB])
def test_qemu_reads_and_writes_a_fixed_disk(tmp_path: Path, block_size: int) -> None:
    path, raw = tmp_path / "disk.vhdx", tmp_path / "disk.raw"
    write_content(path, emit_vhdx(CONTENT, fixed=True, block_size=block_size))
    oracle.check(path)
    assert oracle.to_raw(path, raw).read_bytes() == WHOLE
    oracle.io(path, "write -P 0x51 3M 64k")
    with VhdxDisk.open(path) as disk:
        assert disk.read_at(3 * MIB, 64 * KIB) == b"Q" * 64 * KIB
        assert disk.read_at(0, 3 * MIB) == WHOLE[: 3 * MIB]


def test_a_fixed_disk_has_its_full_length_at_once(tmp_path: Path) -> None:
    create_vhdx(tmp_path / "disk.vhdx", 64 * MIB, fixed=True)
    assert (tmp_path / "disk.vhdx").stat().st_size == 68 * MIB


def test_a_child_carries_its_locator_and_shows_its_parent() -> None:
    parent = MemoryFile.of(CONTENT)
    own = DiskContent(SIZE, ((2 * MIB, b"c" * MIB),), zeros=((6 * MIB, 512),))
    file = MemoryFile.of(emit_vhdx(own, parent_locator=b"raw locator"))
    found = read_structures(file)
    assert found.parent_locator == b"raw locator"
    assert file.read_at(found.item_places[PARENT_LOCATOR], 11) == b"raw locator"
    disk = VhdxDisk.load(file, parent=parent)
    expected = bytearray(WHOLE)
    expected[2 * MIB : 3 * MIB] = b"c" * MIB
    expected[6 * MIB :] = bytes(512)
    assert disk.read_at(0, SIZE) == expected
    assert check_vhdx(file) == []


def test_a_partially_present_block_without_a_bitmap_is_damage() -> None:
    file = MemoryFile.of(emit_vhdx(DiskContent(SIZE, ((0, b"c" * MIB),)), parent_locator=b"l"))
    file.write_at(3 * MIB, bytes([file.read_at(3 * MIB, 1)[0] | 7]))
    with pytest.raises(VhdxCorruptError, match="no sector bitmap block"):
        VhdxDisk.load(file, parent=MemoryFile.of(CONTENT))


@pytest.mark.parametrize(
    ("content", "fixed"),
    [
        (DiskContent(SIZE, ((0, b"part"),)), False),
        (DiskContent(SIZE, ((5, b"x" * MIB),)), False),
        (DiskContent(SIZE, (), zeros=((MIB, 512),)), False),
        (DiskContent(SIZE, ()), True),
    ],
)
def test_a_child_is_made_of_whole_blocks_and_never_fixed(content: DiskContent, fixed: bool) -> None:
    with pytest.raises(InvalidArgumentError):
        emit_vhdx(content, parent_locator=b"l", fixed=fixed)

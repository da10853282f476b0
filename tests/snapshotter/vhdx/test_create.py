from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.blockio import DiskContent
from snapshotter.errors import AlreadyExistsError, InvalidArgumentError
from snapshotter.units import GIB, MIB, TIB
from snapshotter.vhdx import (
    VhdxDisk,
    VhdxIdentity,
    create_vhdx,
    emit_vhdx,
    layout_vhdx,
    write_content,
)
from snapshotter.vhdx.bat import PayloadState

from . import oracle
from .memory import MemoryFile


@st.composite
def contents(draw: st.DrawFn, sector: int = 512) -> DiskContent:
    size = sector * draw(
        st.integers(1, 64 * MIB // sector)
        | st.integers(1, 200 * GIB // sector)
        | st.sampled_from((GIB // sector, (GIB + sector) // sector))
    )
    bounds = sorted(draw(st.lists(st.integers(0, size), max_size=12, unique=True)))
    pieces, zeros = [], []
    for number, (start, end) in enumerate(zip(bounds[::2], bounds[1::2], strict=False)):
        if draw(st.booleans()):
            length = min(end - start, draw(st.integers(1, 3 * MIB)))
            pieces.append((start, (bytes([65 + number]) * length)))
        else:
            zeros.append((start, end - start))
    return DiskContent(size, tuple(pieces), tuple(zeros))


def assert_reads_as(disk: VhdxDisk, content: DiskContent) -> None:
    assert disk.size == content.size
    for offset, data in content.pieces:
        assert disk.read_at(offset, len(data)) == data
    for offset, length in content.zeros:
        for start in (offset, offset + length - min(length, 8192)):
            assert not any(disk.read_at(start, min(length, 8192)))


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    block_size=st.integers(20, 28).map(lambda n: 1 << n),
    sector=st.sampled_from((512, 4096)),
)
def test_emitted_content_reads_back(data: st.DataObject, block_size: int, sector: int) -> None:
    content = data.draw(contents(sector))
    file = emit_vhdx(content, block_size=block_size, logical_sector_size=sector)
    disk = VhdxDisk.load(MemoryFile.of(file))
    assert_reads_as(disk, content)
    info = disk.info()
    assert (info.block_size, info.logical_sector_size) == (block_size, sector)
    touched = {
        block
        for offset, piece in content.pieces
        for block in range(offset // block_size, (offset + len(piece) - 1) // block_size + 1)
    }
    assert info.blocks.get(PayloadState.FULLY_PRESENT, 0) == len(touched)
    ranges = list(disk.allocated_ranges())
    assert sum(length for _, length in ranges) == sum(
        min(block_size, content.size - block * block_size) for block in touched
    )
    for (left, length), (right, _) in pairwise(ranges):
        assert left + length < right


def test_pieces_and_zeros_of_the_file_cover_all_of_it() -> None:
    file = emit_vhdx(DiskContent(GIB, ((5, b"x"), (700 * MIB, b"y" * 5 * MIB))))
    stretches = sorted([(o, len(d)) for o, d in file.pieces] + list(file.zeros))
    position = 0
    for offset, length in stretches:
        assert offset == position
        position += length
    assert position == file.size


def test_zeroed_blocks_take_no_room_and_untouched_ones_are_not_present() -> None:
    content = DiskContent(100 * MIB, ((0, b"x"),), ((0, 3 * MIB + 1), (50 * MIB - 1, 1)))
    file = emit_vhdx(content)
    assert file.size == 5 * MIB
    assert VhdxDisk.load(MemoryFile.of(file)).info().blocks == {
        PayloadState.NOT_PRESENT: 95,
        PayloadState.ZERO: 4,
        PayloadState.FULLY_PRESENT: 1,
    }


def test_an_empty_disk_is_4_mib_and_its_layout_that_of_windows(tmp_path: Path) -> None:
    create_vhdx(tmp_path / "disk.vhdx", 20 * GIB)
    raw = (tmp_path / "disk.vhdx").read_bytes()
    assert len(raw) == 4 * MIB
    assert raw[:8] == b"vhdxfile"
    assert raw[8:22].decode("utf-16-le") == "lcowlab"
    assert [raw[at : at + 4] for at in (65536, 131072, 196608, 262144)] == [
        b"head",
        b"head",
        b"regi",
        b"regi",
    ]
    assert raw[MIB : 2 * MIB] == bytes(MIB)
    assert raw[2 * MIB : 2 * MIB + 8] == b"metadata"
    with VhdxDisk.open(tmp_path / "disk.vhdx") as disk:
        assert disk.size == 20 * GIB
        assert disk.read_at(20 * GIB - 4096, 8192) == bytes(4096)
        assert list(disk.allocated_ranges()) == []


def test_every_emitted_file_has_an_identity_of_its_own() -> None:
    content = DiskContent(GIB, ((0, b"x"),))
    first, second = (VhdxDisk.load(MemoryFile.of(emit_vhdx(content))).info() for _ in range(2))
    assert first.disk_id != second.disk_id
    assert first.file_write_guid != second.file_write_guid
    assert first.data_write_guid != second.data_write_guid


def test_the_same_identity_gives_the_same_bytes() -> None:
    layout = layout_vhdx(DiskContent(GIB, ((0, b"x"),)))
    identity = VhdxIdentity.fresh()
    assert layout.stamp(identity) == layout.stamp(identity)


@pytest.mark.parametrize(
    "content",
    [
        DiskContent(0, ()),
        DiskContent(-512, ()),
        DiskContent(1000, ()),
        DiskContent(64 * TIB + 512, ()),
        DiskContent(MIB, ((0, b"aa"), (1, b"b"))),
        DiskContent(MIB, ((5, b"a"), (1, b"b"))),
        DiskContent(MIB, ((MIB - 1, b"ab"),)),
        DiskContent(MIB, ((-1, b"ab"),)),
        DiskContent(MIB, (), ((0, MIB + 1),)),
        DiskContent(MIB, (), ((-5, 5),)),
    ],
)
def test_content_that_no_disk_can_have_is_refused(content: DiskContent) -> None:
    with pytest.raises(InvalidArgumentError):
        emit_vhdx(content)


@pytest.mark.parametrize("block_size", [0, 512, 3 * MIB, MIB // 2, 512 * MIB, -MIB])
def test_illegal_block_sizes_are_refused(block_size: int) -> None:
    with pytest.raises(InvalidArgumentError, match="powers of two"):
        emit_vhdx(DiskContent(GIB, ()), block_size=block_size)


def test_an_overlong_creator_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="creator"):
        emit_vhdx(DiskContent(GIB, ()), creator="x" * 257)


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    path.write_bytes(b"mine")
    with pytest.raises(AlreadyExistsError):
        create_vhdx(path, GIB)
    assert path.read_bytes() == b"mine"


@oracle.needs_qemu
@pytest.mark.parametrize(
    ("size", "block_size", "physical"),
    [
        (MIB, MIB, 512),
        (GIB + 512, MIB, 4096),
        (20 * GIB, 2 * MIB, 4096),
        (5 * GIB, 32 * MIB, 512),
        (10 * GIB, 256 * MIB, 4096),
        (64 * TIB, 32 * MIB, 4096),
        (3 * TIB, MIB, 4096),
    ],
)
def test_qemu_accepts_every_size(tmp_path: Path, size: int, block_size: int, physical: int) -> None:
    path = tmp_path / "disk.vhdx"
    content = DiskContent(size, ((size - 512, b"end!" * 128),), ((0, min(size - 512, 8 * MIB)),))
    write_content(path, emit_vhdx(content, block_size=block_size, physical_sector_size=physical))
    oracle.check(path)
    assert oracle.info(path)["virtual-size"] == size
    oracle.io(path, f"read -P 0x65 {size - 512} 1", f"read -P 0 0 {min(size - 512, MIB)}")


@oracle.needs_qemu
def test_qemu_reads_the_same_disk(tmp_path: Path) -> None:
    pieces = ((0, b"start" * 1000), (3 * MIB - 100, b"ab" * MIB), (64 * MIB - 512, b"z" * 512))
    content = DiskContent(64 * MIB, pieces, ((10 * MIB, 5 * MIB),))
    path = tmp_path / "disk.vhdx"
    write_content(path, emit_vhdx(content))
    raw = oracle.to_raw(path, tmp_path / "disk.raw").read_bytes()
    with VhdxDisk.open(path) as disk:
        assert disk.read_at(0, disk.size) == raw
    assert raw == MemoryFile.of(content).read_at(0, content.size)


@oracle.needs_qemu
def test_qemu_writes_to_an_emitted_disk(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    write_content(path, emit_vhdx(DiskContent(GIB, ((0, b"x" * MIB),), ((MIB, MIB),))))
    oracle.io(path, "write -P 0x41 1M 64k", "write -P 0x42 600M 3M", "write -P 0x43 512 512")
    oracle.check(path)
    with VhdxDisk.open(path) as disk:
        assert disk.read_at(0, 2048) == b"x" * 512 + b"C" * 512 + b"x" * 1024
        assert disk.read_at(MIB, 128 * 1024) == b"A" * 65536 + bytes(65536)
        assert disk.read_at(600 * MIB, 3 * MIB) == b"B" * 3 * MIB

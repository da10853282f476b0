from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.blockio import DiskContent
from snapshotter.errors import (
    InvalidArgumentError,
    UnavailableError,
    VhdxCorruptError,
    VhdxError,
    VhdxUnsupportedError,
)
from snapshotter.units import GIB, KIB, MIB, TIB
from snapshotter.vhdx import VhdxDisk, create_vhdx, emit_vhdx, write_content

from . import dirtylog
from .memory import MemoryFile

CONTENT = DiskContent(GIB, ((0, b"A" * MIB), (5 * MIB, b"B" * 2 * MIB), (GIB - 512, b"C" * 512)))
METADATA = 2 * MIB
ITEMS = METADATA + 64 * KIB
BAT = 3 * MIB
PAYLOAD = 4 * MIB


def sample() -> MemoryFile:
    return MemoryFile.of(emit_vhdx(CONTENT))


def test_reads_may_start_and_end_anywhere() -> None:
    disk = VhdxDisk.load(sample())
    whole = disk.read_at(0, 8 * MIB)
    assert whole == b"A" * MIB + bytes(4 * MIB) + b"B" * 2 * MIB + bytes(MIB)
    for offset, length in ((0, 1), (MIB - 1, 2), (5 * MIB - 3, MIB + 7), (6 * MIB - 1, 3 * MIB)):
        expected = (whole + bytes(2 * MIB))[offset : offset + length]
        assert disk.read_at(offset, length) == expected
    assert disk.read_at(GIB - 600, 5000) == bytes(88) + b"C" * 512
    assert disk.read_at(GIB, 10) == b""
    assert disk.read_at(GIB + 5, 10) == b""
    assert disk.read_at(7, 0) == b""


@pytest.mark.parametrize(("offset", "length"), [(-1, 5), (0, -1)])
def test_negative_reads_are_refused(offset: int, length: int) -> None:
    with pytest.raises(InvalidArgumentError):
        VhdxDisk.load(sample()).read_at(offset, length)


def test_allocated_ranges_join_neighbours() -> None:
    assert list(VhdxDisk.load(sample()).allocated_ranges()) == [
        (0, MIB),
        (5 * MIB, 2 * MIB),
        (GIB - MIB, MIB),
    ]


def test_allocated_ranges_end_with_the_disk() -> None:
    content = DiskContent(5 * MIB + 512, ((5 * MIB, b"x"),))
    disk = VhdxDisk.load(MemoryFile.of(emit_vhdx(content)))
    assert list(disk.allocated_ranges()) == [(5 * MIB, 512)]


def test_allocated_ranges_join_across_pages_of_the_table() -> None:
    pieces = tuple((block * MIB, b"x") for block in range(4090, 4100))
    disk = VhdxDisk.load(MemoryFile.of(emit_vhdx(DiskContent(5 * GIB, pieces))))
    assert list(disk.allocated_ranges()) == [(4090 * MIB, 10 * MIB)]


def test_closing_closes_the_file_and_may_be_repeated(tmp_path: Path) -> None:
    create_vhdx(tmp_path / "disk.vhdx", GIB)
    disk = VhdxDisk.open(tmp_path / "disk.vhdx")
    disk.close()
    disk.close()
    with pytest.raises(UnavailableError, match="Bad file descriptor"):
        disk.read_at(0, 1)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        VhdxDisk.open(tmp_path / "disk.vhdx")


def test_a_refused_file_is_closed(tmp_path: Path) -> None:
    (tmp_path / "disk.vhdx").write_bytes(b"no disk")
    open_before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self").exists() else 0
    for _ in range(5):
        with pytest.raises(VhdxCorruptError):
            VhdxDisk.open(tmp_path / "disk.vhdx")
    if open_before:
        assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def test_the_largest_disk_opens_fast_and_small() -> None:
    content = DiskContent(64 * TIB, ((0, b"x"), (64 * TIB - 1, b"y")))
    file = MemoryFile.of(emit_vhdx(content))
    started = time.process_time()
    disk = VhdxDisk.load(file)
    assert disk.read_at(64 * TIB - 2, 2) == b"\0y"
    assert time.process_time() - started < 5
    assert list(disk.allocated_ranges()) == [(0, MIB), (64 * TIB - MIB, MIB)]


def test_one_damaged_header_or_region_table_is_no_obstacle() -> None:
    for at in (64 * KIB, 128 * KIB, 192 * KIB, 256 * KIB):
        file = sample()
        file.write_at(at, bytes(4096))
        assert VhdxDisk.load(file).read_at(5 * MIB, 1) == b"B"


def put(offset: int, layout: str, *values: int | bytes) -> Callable[[MemoryFile], None]:
    return lambda file: file.write_at(offset, struct.pack(layout, *values))


def in_headers(offset: int, layout: str, value: int | bytes) -> Callable[[MemoryFile], None]:
    def change(file: MemoryFile) -> None:
        for at in (64 * KIB, 128 * KIB):
            file.write_at(at + offset, struct.pack(layout, value))
            file.reseal(at, 4096)

    return change


def in_regions(offset: int, layout: str, value: int | bytes) -> Callable[[MemoryFile], None]:
    def change(file: MemoryFile) -> None:
        for at in (192 * KIB, 256 * KIB):
            file.write_at(at + offset, struct.pack(layout, value))
            file.reseal(at, 64 * KIB)

    return change


@pytest.mark.parametrize(
    ("change", "structure"),
    [
        (put(0, "<8s", b"conectix"), "file identifier"),
        (lambda file: file.truncate(0), "file identifier"),
        (lambda file: file.truncate(64 * KIB), "headers"),
        (lambda file: file.truncate(200 * KIB), "region table"),
        (lambda file: file.truncate(2 * MIB), "metadata region"),
        (lambda file: file.truncate(3 * MIB + 5), "BAT region"),
        (lambda file: file.truncate(5 * MIB), "BAT entry 5"),
        (in_headers(8, "<Q", 9), None),  # equal numbers, other GUIDs equal: fine
        (in_headers(68, "<I", 2 * MIB), "metadata region"),  # the log would overlap it
        (in_headers(72, "<Q", 2 * MIB), "metadata region"),
        (in_headers(72, "<Q", 1 << 63), None),  # an empty log that is nowhere harms nobody
        (in_headers(48, "<16s", b"g" * 16), None),  # a dirty log without an entry is empty
        (in_regions(16 + 16, "<Q", 4 * MIB), "BAT entry 0"),
        (in_regions(16 + 16, "<Q", 100 * MIB), "BAT region"),
        (in_regions(16 + 24, "<I", 0), "BAT region"),
        (in_regions(48 + 24, "<I", 0), "metadata region"),
        (in_regions(48 + 24, "<I", 0xFFF0_0000), "region"),
        (in_regions(8, "<I", 0), "region table"),
        (in_regions(8, "<I", 0xFFFF_FFFF), "region table EntryCount"),
        (put(METADATA, "<8s", b"METADATA"), "metadata table signature"),
        (put(METADATA + 10, "<H", 0), "File Parameters"),
        (put(METADATA + 10, "<H", 0xFFFF), "metadata table EntryCount"),
        (put(METADATA + 32 + 16, "<I", 0xFFFF_FFFF), "metadata entry"),
        (put(METADATA + 32 + 20, "<I", 4), "File Parameters"),
        (put(ITEMS, "<I", 0), "File Parameters"),
        (put(ITEMS + 4, "<I", 0x100), "File Parameters reserved bits"),
        (put(ITEMS + 8, "<Q", 65 * TIB), "Virtual Disk Size"),
        (put(ITEMS + 8, "<Q", 2 * TIB), "BAT region"),
        (put(ITEMS + 32, "<I", 520), "Logical Sector Size"),
        (put(ITEMS + 36, "<I", 0), "Physical Sector Size"),
        (put(BAT, "<Q", 5), "BAT entry 0"),
        (put(BAT, "<Q", 1 << 20 | 6), "BAT entry 0"),
        (put(BAT + 8, "<Q", 4 << 20 | 6), "BAT entry 1"),
        (put(BAT + 8 * 100, "<Q", 1 << 60 | 6), "BAT entry 100"),
    ],
)
def test_each_damage_is_refused_by_name_or_harmless(
    change: Callable[[MemoryFile], None], structure: str | None
) -> None:
    file = sample()
    change(file)
    if structure is None:
        assert VhdxDisk.load(file).read_at(5 * MIB, 1) == b"B"
        return
    with pytest.raises(VhdxCorruptError) as caught:
        VhdxDisk.load(file)
    assert structure in caught.value.structure
    assert caught.value.section


def test_a_differencing_disk_without_a_locator_is_damaged() -> None:
    file = sample()
    file.write_at(ITEMS + 4, b"\2")
    with pytest.raises(VhdxCorruptError, match="Parent Locator"):
        VhdxDisk.load(file)


def test_an_unknown_required_region_is_not_hidden_by_the_second_table() -> None:
    file = sample()
    file.write_at(192 * KIB + 8, struct.pack("<I", 3))
    file.write_at(192 * KIB + 80, UUID(int=7).bytes_le + struct.pack("<QII", 100 * MIB, MIB, 1))
    file.reseal(192 * KIB, 64 * KIB)
    with pytest.raises(VhdxUnsupportedError, match="required"):
        VhdxDisk.load(file)


structure_bytes = st.one_of(
    st.integers(0, 600),
    st.integers(64 * KIB, 64 * KIB + 90),
    st.integers(128 * KIB, 128 * KIB + 90),
    st.integers(192 * KIB, 192 * KIB + 90),
    st.integers(256 * KIB, 256 * KIB + 90),
    st.integers(METADATA, METADATA + 200),
    st.integers(ITEMS, ITEMS + 50),
    st.integers(BAT, BAT + 8 * 1030),
)


@settings(max_examples=200, deadline=None)
@given(
    flips=st.lists(st.tuples(structure_bytes, st.integers(1, 255)), min_size=1, max_size=6),
    cut=st.none() | st.integers(0, 8 * MIB),
)
def test_no_damage_gives_anything_but_a_disk_or_a_typed_error(
    flips: list[tuple[int, int]], cut: int | None
) -> None:
    file = sample()
    for offset, change in flips:
        file.write_at(offset, bytes([file.read_at(offset, 1)[0] ^ change]))
    for at, length in ((64 * KIB, 4096), (128 * KIB, 4096), (192 * KIB, 65536)):
        file.reseal(at, length)
    if cut is not None:
        file.truncate(cut)
    try:
        disk = VhdxDisk.load(file)
        disk.read_at(0, 8 * MIB)
        list(disk.allocated_ranges())
    except VhdxError:
        pass


def test_a_dirty_log_is_replayed_in_memory_only(tmp_path: Path) -> None:
    file = sample()
    page = bytearray(file.read_at(BAT, 4096))
    struct.pack_into("<Q", page, 8 * 100, 8 << 20 | 6)
    ring = bytearray(MIB)
    entry = dirtylog.log_entry(
        [(BAT, bytes(page))], sequence=5, tail=0, flushed=8 * MIB, last=9 * MIB
    )
    dirtylog.place(ring, 0, entry)
    dirtylog.make_dirty(file, bytes(ring))
    path = tmp_path / "disk.vhdx"
    write_content(path, file.content())
    before = path.read_bytes()
    with VhdxDisk.open(path) as disk:
        assert disk.info().log_dirty
        assert disk.info().replayed_entries == 1
        assert disk.read_at(100 * MIB, MIB) == bytes(MIB)
        assert (100 * MIB, MIB) in list(disk.allocated_ranges())
    assert path.read_bytes() == before


def test_a_region_table_moved_by_the_log_is_found() -> None:
    file = sample()
    table = MemoryFile(64 * KIB)
    table.write_at(0, file.read_at(192 * KIB, 64 * KIB))
    table.write_at(16 + 16, struct.pack("<Q", 20 * MIB))
    table.reseal(0, 64 * KIB)
    first_sector = table.read_at(0, 4096)
    moved_bat = file.read_at(BAT, 8192)
    ring = bytearray(MIB)
    entry = dirtylog.log_entry(
        [
            (192 * KIB, first_sector),
            (256 * KIB, first_sector),
            (20 * MIB, MIB),
            (20 * MIB, moved_bat[:4096]),
            (20 * MIB + 4096, moved_bat[4096:]),
            (BAT, MIB),
        ],
        sequence=1,
        tail=0,
        last=21 * MIB,
    )
    dirtylog.place(ring, 0, entry)
    dirtylog.make_dirty(file, bytes(ring))
    disk = VhdxDisk.load(file)
    assert disk.read_at(GIB - 512, 512) == b"C" * 512


def test_a_dirty_file_that_was_truncated_is_refused() -> None:
    file = sample()
    ring = bytearray(MIB)
    dirtylog.place(ring, 0, dirtylog.log_entry([], sequence=5, tail=0, flushed=50 * MIB))
    dirtylog.make_dirty(file, bytes(ring))
    with pytest.raises(VhdxCorruptError, match="truncated"):
        VhdxDisk.load(file)


def test_a_dirty_log_outside_the_file_is_refused() -> None:
    file = sample()
    in_headers(72, "<Q", 100 * MIB)(file)
    in_headers(48, "<16s", b"g" * 16)(file)
    with pytest.raises(VhdxCorruptError, match="ends inside"):
        VhdxDisk.load(file)

"""Dirty logs: our replay in memory against QEMU's on disk."""

from __future__ import annotations

import random
import shutil
import struct
from pathlib import Path

import pytest

from snapshotter.blockio import DiskContent
from snapshotter.units import GIB, MIB
from snapshotter.vhdx import VhdxDisk, create_vhdx, emit_vhdx, write_content

from . import oracle
from .crash import CrashFile, Flush
from .dirtylog import GUID, SECTOR, Update, log_entry, make_dirty, place
from .memory import MemoryFile

pytestmark = oracle.needs_qemu

BAT = 3 * MIB
FIRST_BLOCK = 500
BLOCKS = range(FIRST_BLOCK, FIRST_BLOCK + 20)
MOST_ENTRIES = 8


def read_blocks(path: Path) -> list[bytes]:
    with VhdxDisk.open(path) as disk:
        return [disk.read_at(block * MIB, 4096) for block in (0, *BLOCKS)]


def assert_same_as_qemu(path: Path, tmp_path: Path) -> list[bytes]:
    """Compare what we read with what is on the disk once QEMU has replayed its log."""
    ours = read_blocks(path)
    repaired = tmp_path / "repaired.vhdx"
    shutil.copyfile(path, repaired)
    oracle.repair(repaired)
    oracle.check(repaired)
    with VhdxDisk.open(repaired) as disk:
        # Killed between naming its log and writing to it, QEMU leaves the name of an empty log,
        # which its own repair keeps.
        assert not disk.info().replayed_entries
    assert ours == read_blocks(repaired)
    raw = tmp_path / "repaired.raw"
    with oracle.to_raw(repaired, raw).open("rb") as file, VhdxDisk.open(path) as disk:
        assert file.seek(0, 2) == disk.size
        for block, expected in zip((0, *BLOCKS), ours, strict=True):
            file.seek(block * MIB)
            assert file.read(4096) == expected
    return ours


def dirty_file(generator: random.Random, *, entries: int, torn: bool) -> tuple[MemoryFile, int]:
    """A disk whose log places one more block an entry, and how many of them count."""
    file = MemoryFile.of(emit_vhdx(DiskContent(GIB, ((0, b"first block" * 1000),))))
    payload = file.size
    for number in range(MOST_ENTRIES):
        file.write_at(payload + number * MIB, bytes([0x61 + number]) * MIB)
    page = bytearray(file.read_at(BAT, SECTOR))
    ring = bytearray(MIB)
    self_tail = generator.random() < 0.3
    start = at = generator.choice((0, 17 * SECTOR, MIB - 2 * SECTOR))
    first = generator.choice((1, 1 << 20, 1 << 33))
    sequence = first
    for number in range(entries):
        struct.pack_into("<Q", page, 8 * (FIRST_BLOCK + number), payload + number * MIB | 6)
        updates: list[Update] = [(BAT, bytes(page))]
        if generator.random() < 0.4:
            updates.insert(0, (BAT + SECTOR, SECTOR))
        tail = at if self_tail else start
        entry = log_entry(updates, sequence=sequence, tail=tail, flushed=file.size, last=file.size)
        last_start, at = at, place(ring, at, entry)
        sequence += 1
    if torn:
        ring[(last_start + 100) % MIB] ^= 0xFF
    make_dirty(file, bytes(ring), guid=GUID)
    return file, entries - torn


@pytest.mark.parametrize("seed", range(12))
def test_synthetic_logs_read_as_qemu_replays_them(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    entries = generator.randint(1, MOST_ENTRIES)
    file, counted = dirty_file(generator, entries=entries, torn=seed % 4 == 3 and entries > 1)
    path = tmp_path / "disk.vhdx"
    write_content(path, file.content())
    blocks = assert_same_as_qemu(path, tmp_path)
    expected = [
        bytes([0x61 + n]) * 4096 if n < counted else bytes(4096) for n in range(len(BLOCKS))
    ]
    with VhdxDisk.open(path) as disk:
        self_pointing = disk.info().replayed_entries == 1
    if not self_pointing:
        assert blocks[1:] == expected
    assert blocks[counted] == expected[counted - 1]


@pytest.mark.parametrize("maker", ["qemu", "ours"])
@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        (("write -P 0x42 513M 1M",), {513: 0x42}),
        (("write -P 0x41 510M 1M", "write -P 0x42 513M 64k"), {510: 0x41, 513: 0x42}),
        (
            ("write -P 0x41 503M 2M", "write -P 0x44 501M 512", "write -P 0x42 515M 1M"),
            {501: 0x44, 503: 0x41, 504: 0x41, 515: 0x42},
        ),
    ],
    ids=lambda value: f"{len(value)}",
)
def test_a_log_that_qemu_wrote_and_could_not_apply_reads_as_qemu_replays_it(
    tmp_path: Path, maker: str, commands: tuple[str, ...], expected: dict[int, int]
) -> None:
    path = tmp_path / "disk.vhdx"
    if maker == "qemu":
        oracle.create(path, GIB, block_size=MIB)
        bat = 2 * MIB
    else:
        create_vhdx(path, GIB)
        bat = BAT
    # The second page of the table (blocks 512 and up) cannot be written; then QEMU dies.
    oracle.io(path, *commands, killed=True, failing_write=bat + SECTOR)
    with VhdxDisk.open(path) as disk:
        assert disk.info().log_dirty
        assert disk.info().replayed_entries >= 1
    blocks = assert_same_as_qemu(path, tmp_path)
    assert {
        number: block[0] for number, block in zip((0, *BLOCKS), blocks, strict=True) if block[0]
    } == expected


@pytest.mark.parametrize("delay_s", [0.02, 0.04, 0.06, 0.08])
def test_a_disk_of_a_killed_qemu_reads_as_qemu_replays_it(tmp_path: Path, delay_s: float) -> None:
    path = tmp_path / "disk.vhdx"
    create_vhdx(path, GIB)
    oracle.killed_while_writing(path, blocks=[*BLOCKS], delay_s=delay_s)
    assert_same_as_qemu(path, tmp_path)


def test_a_log_opened_and_never_written_reads_as_qemu_replays_it(tmp_path: Path) -> None:
    file = MemoryFile.of(emit_vhdx(DiskContent(GIB, ((0, b"x" * 4096),))))
    make_dirty(file, bytes(MIB))
    path = tmp_path / "disk.vhdx"
    write_content(path, file.content())
    with VhdxDisk.open(path) as disk:
        assert disk.info().log_dirty
        assert disk.info().replayed_entries == 0
        assert disk.read_at(0, 4096) == b"x" * 4096
    oracle.repair(path)
    assert read_blocks(path)[0] == b"x" * 4096


def test_a_log_of_ours_is_replayed_by_qemu_as_by_us(tmp_path: Path) -> None:
    """Power cuts behind a durable entry and before it was applied, and right after opening."""
    first = MemoryFile.of(emit_vhdx(DiskContent(GIB, ((0, b"x" * MIB), (505 * MIB, b"y" * MIB)))))
    file = CrashFile.starting_as(first)
    with VhdxDisk.load_writable(file) as disk:
        for number in range(1, 5):
            disk.write_at((FIRST_BLOCK + 4 * number) * MIB, bytes([0x40 + number]) * 4096)
            if number == 2:
                disk.trim(505 * MIB, MIB)
            disk.flush()
    flushes = [n for n, step in enumerate(file.steps) if step == Flush()]
    chance = random.Random(5)
    dirty = 0
    for cut in flushes:
        left = file.cut(cut + 1, chance)
        if not VhdxDisk.load(left).info().log_dirty:
            continue
        dirty += 1
        path = tmp_path / "disk.vhdx"
        write_content(path, left.content(), overwrite=True)
        assert_same_as_qemu(path, tmp_path)
        with VhdxDisk.open(path, writable=True):
            pass
        oracle.check(path)
    assert dirty >= 8


def test_a_log_of_ours_that_wrapped_is_replayed_by_qemu_as_by_us(tmp_path: Path) -> None:
    """The ring of 256 sectors is gone round once, a change of one sector taking two."""
    file = CrashFile.starting_as(MemoryFile.of(emit_vhdx(DiskContent(GIB, ()))))
    with VhdxDisk.load_writable(file) as disk:
        for number in range(200):
            disk.write_at((FIRST_BLOCK - 100 + number) * MIB, b"%d" % number)
            disk.flush()
    last = [n for n, step in enumerate(file.steps) if step == Flush()][-6]
    left = file.cut(last + 1, random.Random(0))
    assert VhdxDisk.load(left).info().replayed_entries == 1
    path = tmp_path / "disk.vhdx"
    write_content(path, left.content())
    blocks = assert_same_as_qemu(path, tmp_path)
    assert blocks[1].rstrip(b"\0") == b"100"

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.blockio import DiskContent
from snapshotter.errors import VhdxError
from snapshotter.units import GIB, KIB, MIB
from snapshotter.vhdx import (
    VhdxDisk,
    check_vhdx,
    create_vhdx,
    emit_vhdx,
    repair_vhdx,
    write_content,
)
from snapshotter.vhdx.check import MAX_FINDINGS
from snapshotter.vhdx.repair import repair

from . import dirtylog, oracle
from .memory import MemoryFile

CONTENT = DiskContent(GIB, ((0, b"A" * MIB), (5 * MIB, b"B" * 2 * MIB), (GIB - 512, b"C" * 512)))
METADATA = 2 * MIB
ITEMS = METADATA + 64 * KIB
BAT = 3 * MIB
Damage = Callable[[MemoryFile], None]


def sample() -> MemoryFile:
    return MemoryFile.of(emit_vhdx(CONTENT))


def put(offset: int, layout: str, *values: int | bytes) -> Damage:
    return lambda file: file.write_at(offset, struct.pack(layout, *values))


def opened_log(file: MemoryFile) -> None:
    dirtylog.make_dirty(file, bytes(MIB))


def dirty_log(file: MemoryFile) -> None:
    ring = bytearray(MIB)
    page = bytearray(file.read_at(BAT, 4096))
    struct.pack_into("<Q", page, 8 * 100, 9 << 20 | 6)
    entry = dirtylog.log_entry([(BAT, bytes(page))], sequence=5, tail=0, last=10 * MIB)
    dirtylog.place(ring, 0, entry)
    dirtylog.make_dirty(file, bytes(ring))


@pytest.mark.parametrize(
    "file",
    [
        sample(),
        MemoryFile.of(emit_vhdx(CONTENT, fixed=True)),
        MemoryFile.of(emit_vhdx(CONTENT, block_size=32 * MIB, logical_sector_size=4096)),
        MemoryFile.of(emit_vhdx(DiskContent(GIB, ()), parent_locator=b"l" * 20)),
    ],
    ids=["dynamic", "fixed", "large blocks", "child"],
)
def test_a_sound_file_has_no_findings(file: MemoryFile) -> None:
    assert check_vhdx(file) == []


@pytest.mark.parametrize(
    ("damage", "structure", "section"),
    [
        (put(64 * KIB, "<4s", b"HEAD"), "header signature", "2.2.2"),
        (put(64 * KIB + 20, "<I", 1), "header checksum", "2.2.2"),
        (put(192 * KIB, "<I", 0), "region table signature", "2.2.3.1"),
        (put(256 * KIB + 200, "<I", 1), "region table checksum", "2.2.3.1"),
        (opened_log, "log", "2.3.3"),
        (dirty_log, "log", "2.3.3"),
        (lambda file: file.truncate(file.size + 5 * MIB + 5), "file size", "2.2"),
        (lambda file: file.truncate(file.size - 512), None, None),
    ],
)
def test_what_is_repairable_is_repaired_and_the_disk_reads_as_before(
    damage: Damage, structure: str | None, section: str | None
) -> None:
    file = MemoryFile.of(emit_vhdx(DiskContent(GIB + 512, (*CONTENT.pieces, (GIB, b"D" * 512)))))
    damage(file)
    before = VhdxDisk.load(file).read_at(0, 110 * MIB)
    identity = VhdxDisk.load(file).info()
    findings = check_vhdx(file)
    assert [finding.repairable for finding in findings] == [True]
    if structure is not None:
        assert (findings[0].structure, findings[0].section) == (structure, section)
        assert findings[0].offset is not None
    outcome = repair(file)
    assert (outcome.repaired, outcome.left) == (tuple(findings), ())
    assert check_vhdx(file) == []
    after = VhdxDisk.load(file)
    assert after.read_at(0, 110 * MIB) == before
    assert after.info().file_write_guid != identity.file_write_guid
    assert after.info().data_write_guid == identity.data_write_guid
    for at in (64 * KIB, 192 * KIB):  # each copy is good by itself
        alone = MemoryFile(0)
        alone.become(file)
        alone.write_at(at, bytes(4096))
        assert VhdxDisk.load(alone).read_at(0, MIB) == before[:MIB]


@pytest.mark.parametrize(
    ("damage", "structure"),
    [
        (put(0, "<8s", b"conectix"), "file identifier"),
        (lambda file: file.truncate(100), "headers"),
        (lambda file: file.truncate(200 * KIB), "region table"),
        (lambda file: (put(64 * KIB, "<I", 0)(file), put(128 * KIB, "<I", 0)(file))[0], "headers"),
        (put(METADATA, "<8s", b"METADATA"), "metadata table signature"),
        (put(ITEMS, "<I", 5), "File Parameters"),
        (put(BAT, "<Q", 5), "BAT entry 0"),
        (put(BAT + 8, "<Q", 4 << 20 | 6), "BAT entry 1"),
        (put(BAT + 8 * 3, "<Q", 900 << 20 | 6), "BAT entry 3"),
    ],
)
def test_what_is_lost_is_named_and_left_alone(damage: Damage, structure: str) -> None:
    file = sample()
    damage(file)
    findings = check_vhdx(file)
    assert structure in [finding.structure for finding in findings]
    assert not all(finding.repairable for finding in findings)
    before = file.content()
    outcome = repair(file)
    assert outcome.repaired == ()
    assert outcome.left == tuple(findings)
    assert file.content() == before


def test_every_bad_entry_is_found_up_to_a_limit() -> None:
    file = sample()
    for number in range(10, 15):
        file.write_at(BAT + 8 * number, struct.pack("<Q", 5))
    assert [finding.structure for finding in check_vhdx(file)] == [
        f"BAT entry {number}" for number in range(10, 15)
    ]
    large = MemoryFile.of(emit_vhdx(DiskContent(8000 * GIB, ())))
    large.write_at(BAT, struct.pack("<Q", 4) * (8000 * 1024))
    assert len(check_vhdx(large)) == MAX_FINDINGS


@pytest.mark.parametrize("offset", [1 << 62, 1 << 63, (1 << 64) - MIB])
def test_a_log_outside_the_file_cannot_be_repaired(offset: int) -> None:
    file = sample()
    for at in (64 * KIB, 128 * KIB):
        file.write_at(at + 72, struct.pack("<Q", offset))
        file.reseal(at, 4096)
    findings = check_vhdx(file)
    assert [(finding.structure, finding.repairable) for finding in findings] == [("log", False)]
    with pytest.raises(VhdxError):
        VhdxDisk.load_writable(file)


structure_bytes = st.one_of(
    st.integers(0, 600),
    st.integers(64 * KIB, 64 * KIB + 90),
    st.integers(128 * KIB, 128 * KIB + 90),
    st.integers(192 * KIB, 192 * KIB + 90),
    st.integers(256 * KIB, 256 * KIB + 90),
    st.integers(MIB, MIB + 8300),
    st.integers(METADATA, METADATA + 200),
    st.integers(ITEMS, ITEMS + 50),
    st.integers(BAT, BAT + 8 * 1030),
)


@settings(max_examples=150, deadline=None)
@given(
    flips=st.lists(st.tuples(structure_bytes, st.integers(1, 255)), min_size=1, max_size=6),
    cut=st.none() | st.integers(0, 12 * MIB),
    dirty=st.booleans(),
)
def test_no_damage_makes_check_or_repair_fail(
    flips: list[tuple[int, int]], cut: int | None, dirty: bool
) -> None:
    file = sample()
    if dirty:
        dirty_log(file)
    for offset, change in flips:
        file.write_at(offset, bytes([file.read_at(offset, 1)[0] ^ change]))
    for at, length in ((64 * KIB, 4096), (128 * KIB, 4096), (192 * KIB, 65536), (MIB, 8192)):
        file.reseal(at, length)
    if cut is not None:
        file.truncate(cut)
    findings = check_vhdx(file)
    try:
        VhdxDisk.load(file)
    except VhdxError:
        assert not all(finding.repairable for finding in findings)
    outcome = repair(file)
    if not any(not finding.repairable for finding in findings):
        assert outcome.left == ()
        with VhdxDisk.load_writable(file) as disk:
            disk.write_at(0, b"x"[: disk.size])  # a disk of no bytes is a sound one
    else:
        try:
            with VhdxDisk.load_writable(file) as disk:
                disk.write_at(0, b"x"[: disk.size])
                disk.trim(0, disk.size)
        except VhdxError:
            pass


@oracle.needs_qemu
def test_what_qemu_makes_is_sound_and_what_it_leaves_when_killed_is_repaired(
    tmp_path: Path,
) -> None:
    path = tmp_path / "disk.vhdx"
    oracle.create(path, GIB, block_size=MIB)
    assert check_vhdx(path) == []
    oracle.io(path, "write -P 0x41 510M 4M")
    assert check_vhdx(path) == []
    # The second page of the table (at 2 MiB) cannot be written; then QEMU dies.
    oracle.io(path, "write -P 0x42 600M 1M", killed=True, failing_write=2 * MIB + 4096)
    assert "log" in {finding.structure for finding in check_vhdx(path)}
    outcome = repair_vhdx(path)
    assert outcome.left == ()
    assert check_vhdx(path) == []
    oracle.check(path)


@oracle.needs_qemu
def test_qemu_accepts_what_was_repaired(tmp_path: Path) -> None:
    for number, damage in enumerate((dirty_log, opened_log, put(192 * KIB, "<I", 0))):
        file = sample()
        damage(file)
        path = tmp_path / f"{number}.vhdx"
        write_content(path, file.content())
        repair_vhdx(path)
        oracle.check(path)
    create_vhdx(tmp_path / "sound.vhdx", GIB)
    before = (tmp_path / "sound.vhdx").read_bytes()
    assert repair_vhdx(tmp_path / "sound.vhdx").repaired == ()
    assert (tmp_path / "sound.vhdx").read_bytes() == before


def test_room_behind_the_last_block_is_no_finding_and_is_given_back() -> None:
    file = sample()
    size = file.size
    file.truncate(size + 100 * MIB)
    assert check_vhdx(file) == []
    assert repair(file).repaired == ()
    assert file.size == size
    assert VhdxDisk.load(file).read_at(5 * MIB, 1) == b"B"

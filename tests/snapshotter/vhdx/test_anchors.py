"""Blocks that are not present and still have their place: what Windows leaves of trimmed ones.

[MS-VHDX] 2.5.1: no two entries may name one place, whatever their states; and of an UNMAPPED block
another program may still read what is there.
"""

from __future__ import annotations

import struct

import numpy as np
import pytest

from snapshotter.blockio import DiskContent
from snapshotter.units import GIB, MIB
from snapshotter.vhdx import VhdxDisk, check_vhdx, emit_vhdx
from snapshotter.vhdx.bat import PayloadState
from snapshotter.vhdx.repair import repair
from snapshotter.vhdx.resize import resize

from .memory import MemoryFile

BAT = 3 * MIB
FIRST = 4 * MIB  # where the payload begins
KEPT = [PayloadState.UNDEFINED, PayloadState.UNMAPPED]
RESERVED = [PayloadState.NOT_PRESENT, PayloadState.ZERO]


def sample(state: int, *, blocks: int = 3, fixed: bool = False) -> MemoryFile:
    """Blocks 0, 1, ... at 4 MiB, 5 MiB, ...; block 1 and the last one are in `state`."""
    data = DiskContent(GIB if not fixed else blocks * MIB, ((0, b"old" * (blocks * MIB // 3)),))
    file = MemoryFile.of(emit_vhdx(data, fixed=fixed))
    for block in (1, blocks - 1):
        put(file, block, FIRST // MIB + block, state)
    return file


def put(file: MemoryFile, block: int, place_mib: int, state: int) -> None:
    file.write_at(BAT + 8 * block, struct.pack("<Q", place_mib << 20 | state))


def places(file: MemoryFile) -> dict[int, tuple[int, int]]:
    """Each entry of the table that names a place: block to (place in MiB, state)."""
    words = struct.unpack("<1024Q", file.read_at(BAT, 8 * 1024))
    return {block: (word >> 20, word & 7) for block, word in enumerate(words) if word >> 20}


@pytest.mark.parametrize("state", [*KEPT, *RESERVED])
def test_a_place_that_an_entry_keeps_is_given_to_no_other_block(state: int) -> None:
    file = sample(state)
    kept = {block: place for block, (place, _) in places(file).items()}
    with VhdxDisk.load_writable(file) as disk:
        for block in range(10, 20):
            disk.write_at(block * MIB, b"n" * MIB)
        disk.flush()
        disk.trim(10 * MIB, 5 * MIB)
        disk.flush()
        disk.write_at(30 * MIB, b"n" * MIB)
    found = places(file)
    assert {block: found[block][0] for block in kept} == kept
    assert len({place for place, _ in found.values()}) == len(found)
    assert file.read_at(FIRST + MIB, 3) != b"nnn"
    assert check_vhdx(file) == []


@pytest.mark.parametrize("state", [*KEPT, *RESERVED])
def test_the_file_is_not_cut_off_before_a_place_that_an_entry_keeps(state: int) -> None:
    file = sample(state)
    size = file.size
    with VhdxDisk.load_writable(file) as disk:
        disk.write_at(9 * MIB, b"x")
        disk.flush()
        disk.trim(9 * MIB, MIB)
    assert file.size >= size
    repair(file)
    assert file.size >= size


@pytest.mark.parametrize("state", KEPT)
def test_writing_to_such_a_block_shows_nothing_old(state: int) -> None:
    file = sample(state)
    with VhdxDisk.load_writable(file) as disk:
        assert disk.read_at(MIB, 3 * MIB) == bytes(3 * MIB)
        disk.write_at(MIB + 100, b"new")
        assert disk.read_at(MIB, MIB) == bytes(100) + b"new" + bytes(MIB - 103)
    assert VhdxDisk.load(file).read_at(MIB, MIB) == bytes(100) + b"new" + bytes(MIB - 103)
    found = places(file)
    assert len({place for place, _ in found.values()}) == len(found)


@pytest.mark.parametrize("length", [MIB, 4096])
@pytest.mark.parametrize("state", KEPT)
def test_what_is_trimmed_reads_as_zeros_to_others_too(state: int, length: int) -> None:
    """Of an UNMAPPED block they may read what it was; of a ZERO one they may not."""
    file = sample(state)
    with VhdxDisk.load_writable(file) as disk:
        disk.trim(MIB, length)
    assert file.read_at(BAT + 8, 8) == struct.pack("<Q", PayloadState.ZERO)
    size = file.size
    with VhdxDisk.load_writable(file) as disk:  # and its room is free from the next session on
        disk.write_at(9 * MIB, b"n" * MIB)
    assert file.size == size


@pytest.mark.parametrize("state", KEPT)
def test_a_fixed_disk_gets_its_blocks_back_as_zeros(state: int) -> None:
    file = sample(state, fixed=True)
    with VhdxDisk.load_writable(file) as disk:
        disk.trim(MIB, MIB)
    disk = VhdxDisk.load(file)
    assert disk.info().blocks[PayloadState.FULLY_PRESENT] == 2
    assert disk.read_at(MIB, MIB) == bytes(MIB)


def test_a_larger_table_and_a_smaller_disk_spare_such_places_too() -> None:
    file = sample(PayloadState.UNMAPPED)
    kept = places(file)
    resize(file, 200 * GIB)  # the table moves
    assert check_vhdx(file) == []
    with VhdxDisk.load_writable(file) as disk:
        disk.write_at(100 * GIB, b"far")
    bat = next(
        at
        for at in range(0, file.size, MIB)
        if file.read_at(at, 8) == struct.pack("<Q", 4 << 20 | 6)
    )
    words = struct.unpack("<3Q", file.read_at(bat, 24))
    assert {block: (word >> 20, word & 7) for block, word in enumerate(words)} == kept
    assert file.read_at(FIRST + MIB, 3) == b"old"[1:] + b"o"  # MIB % 3 == 1
    resize(file, 2 * MIB, shrink=True)
    assert check_vhdx(file) == []
    assert VhdxDisk.load(file).read_at(0, 3) == b"old"


@pytest.mark.parametrize("place_mib", [1, 3, 4, 5000, (1 << 44) - 1])
def test_a_place_that_cannot_be_keeps_nobody_from_reading_and_writing(place_mib: int) -> None:
    file = sample(PayloadState.FULLY_PRESENT)
    put(file, 7, place_mib, PayloadState.UNMAPPED)
    assert VhdxDisk.load(file).read_at(7 * MIB, 4) == bytes(4)
    with VhdxDisk.load_writable(file) as disk:
        disk.write_at(7 * MIB, b"x")
        disk.write_at(20 * MIB, b"y")
    assert file.size <= 10 * MIB
    assert VhdxDisk.load(file).read_at(0, 3) == b"old"


def test_very_many_such_places_take_no_time_and_no_memory() -> None:
    """More than the file has room for: nothing of it is used again, and it can still grow."""
    file = MemoryFile.of(emit_vhdx(DiskContent(8000 * GIB, ((0, b"x"),))))
    words = np.arange(8000 * 1024, dtype="<u8") % np.uint64(file.size // MIB) << np.uint64(20)
    words |= np.uint64(PayloadState.UNMAPPED)
    words[4096::4097] = 0  # sector bitmaps
    file.write_at(BAT + 8, words[1:].tobytes())
    size = file.size
    with VhdxDisk.load_writable(file) as disk:
        disk.write_at(0, b"y" * MIB)
        disk.write_at(MIB, b"z" * MIB)
    assert file.size == size + MIB
    assert VhdxDisk.load(file).read_at(MIB, MIB) == b"z" * MIB

"""Differencing disks as other programs read them: libvhdi and dissect.hypervisor (QEMU cannot).

Each has a gap that the other fills. libvhdi shows the parent through blocks in state ZERO, where
[MS-VHDX] 2.5.1.1 asks for zeros; dissect.hypervisor takes the wrong sectors of a parent whose
blocks have another size than the child's.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from snapshotter.blockio import DiskContent
from snapshotter.units import MIB
from snapshotter.vhdx import create_child, emit_vhdx, open_chain, write_content

SIZE = 24 * MIB + 512
SECTOR = 512


@pytest.fixture
def chance() -> random.Random:
    return random.Random(11)


@pytest.fixture
def base(tmp_path: Path, chance: random.Random) -> Path:
    pieces = ((0, chance.randbytes(3 * MIB + 100)), (20 * MIB + 700, chance.randbytes(2 * MIB)))
    write_content(tmp_path / "base.vhdx", emit_vhdx(DiskContent(SIZE, pieces)), durable=False)
    return tmp_path / "base.vhdx"


def child_of(parent: Path, name: str, chance: random.Random, *, block_size: int = MIB) -> Path:
    """A child with blocks, parts of blocks, sectors and parts of sectors of its own."""
    path = parent.with_name(name)
    create_child(path, parent, block_size=block_size)
    with open_chain(path, writable=True) as chain:
        for _ in range(12):
            start = chance.randrange(SIZE)
            length = min(chance.choice((3, SECTOR, 5000, MIB, 2 * MIB + 1)), SIZE - start)
            if chance.random() < 0.5:
                start -= start % SECTOR
            chain.top.write_at(start, chance.randbytes(length))
    return path


def our_reading(path: Path) -> bytes:
    with open_chain(path) as chain:
        return chain.read_at(0, chain.size)


def test_libvhdi_reads_a_chain_as_we_do(base: Path, chance: random.Random) -> None:
    pyvhdi = pytest.importorskip("pyvhdi", reason="libvhdi is not here: ./dev bench installs it")
    middle = child_of(base, "middle.vhdx", chance)
    top = child_of(middle, "top.vhdx", chance, block_size=2 * MIB)
    parent = None
    for path in (base, middle, top):
        disk = pyvhdi.file()
        disk.open(str(path))
        if parent is not None:
            assert disk.parent_identifier == parent.identifier
            disk.set_parent(parent)
        assert disk.media_size == SIZE
        assert disk.read_buffer_at_offset(SIZE, 0) == our_reading(path)
        parent = disk


def test_dissect_reads_a_child_as_we_do_zeroed_blocks_included(
    base: Path, chance: random.Random
) -> None:
    dissect = pytest.importorskip(
        "dissect.hypervisor.disk.vhdx", reason="dissect is not here: ./dev bench installs it"
    )
    child = child_of(base, "child.vhdx", chance)
    with open_chain(child, writable=True) as chain:
        chain.top.trim(MIB, MIB)
        chain.top.trim(21 * MIB - 100, MIB)
    assert not any(our_reading(child)[MIB : 2 * MIB])
    disk = dissect.VHDX(child)
    with disk.fh, disk.parent.fh:
        assert disk.read(SIZE) == our_reading(child)

"""Hostile VHDX files that are written to, repaired, and looked for in chains.

Beyond typed errors each target knows what must come out: the disk reads as a model of what was
written, a repair loses nothing, and a merge makes the parent read as the child did.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

from snapshotter.blockio import BlockReader, DiskContent
from snapshotter.errors import SnapshotterError
from snapshotter.units import GIB, KIB, MIB, TIB
from snapshotter.vhdx import (
    VhdxDisk,
    check_vhdx,
    emit_vhdx,
    merge_child,
    open_chain,
    resolve_chain,
    write_content,
)
from snapshotter.vhdx.bat import PayloadState
from snapshotter.vhdx.locator import ParentLinks, ParentLocator
from snapshotter.vhdx.parentpath import places_to_try
from snapshotter.vhdx.repair import repair
from snapshotter.vhdx.resize import resize
from snapshotter.vhdx.structures import read_structures
from tests.fuzz.mutation import mutate
from tests.fuzz.targets import Target
from tests.snapshotter.vhdx.dirtylog import log_entry, make_dirty, place
from tests.snapshotter.vhdx.memory import MemoryFile

_SIZE = 24 * MIB
_WINDOW = MIB + 64 * KIB  # more than a block
_BAT = 3 * MIB
# Checksummed structures, [MS-VHDX] 2.2: (offset, length).
_CHECKED = ((64 * KIB, 4 * KIB), (128 * KIB, 4 * KIB), (192 * KIB, 64 * KIB), (256 * KIB, 64 * KIB))
# Where fields are dense: (offset, length).
_FIELDS = (
    (64 * KIB, 80),
    (128 * KIB, 80),
    (192 * KIB, 80),
    (256 * KIB, 80),
    (MIB, 160),
    (2 * MIB, 256),
    (2 * MIB + 64 * KIB, 320),
    (_BAT, 26 * 8),
)


class _Pattern:
    """A parent disk that never reads as zeros."""

    size = _SIZE
    _period = bytes(range(1, 252))

    def read_at(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size - offset))
        start = offset % len(self._period)
        return (self._period * (length // len(self._period) + 2))[start : start + length]


_PARENT = _Pattern()
_LINKS = ParentLinks(UUID(int=7), {"relative_path": ".\\parent.vhdx"})
_PIECES = ((0, b"a" * 4096), (6 * MIB - 3584, b"b" * 8 * KIB), (_SIZE - 4096, b"c" * 4096))


def _plain() -> MemoryFile:
    return MemoryFile.of(emit_vhdx(DiskContent(_SIZE, _PIECES, ((9 * MIB, 2 * MIB),))))


def _dirty() -> MemoryFile:
    """A file whose log, when replayed, gives the disk one more block."""
    file = _plain()
    end = file.size
    file.truncate(end + MIB)
    page = bytearray(file.read_at(_BAT, 4096))
    page[15 * 8 : 16 * 8] = struct.pack("<Q", end | PayloadState.FULLY_PRESENT)
    entry = log_entry(
        [(_BAT, bytes(page)), (_BAT + 4096, 4096)], sequence=9, tail=0, flushed=end, last=end + MIB
    )
    ring = bytearray(MIB)
    place(ring, 0, entry)
    make_dirty(file, bytes(ring))
    return file


def _child() -> MemoryFile:
    """A differencing disk with blocks of every state."""
    content = DiskContent(_SIZE, ((2 * MIB, b"d" * MIB),), ((7 * MIB, MIB),))
    file = MemoryFile.of(emit_vhdx(content, parent_locator=_LINKS.locator().pack()))
    with VhdxDisk.load_writable(file, parent=_PARENT) as disk:
        disk.write_at(12 * MIB + 1024, b"e" * 2048)
    return file


def _parent_of(file: MemoryFile) -> _Pattern | None:
    return _PARENT if read_structures(file).parameters.has_parent else None


def _seeds() -> tuple[MemoryFile, ...]:
    return _plain(), _dirty(), _child()


def _copy(file: MemoryFile) -> MemoryFile:
    copy = MemoryFile()
    copy.become(file)
    return copy


def _damaged(seed: MemoryFile, rng: random.Random) -> MemoryFile:
    """Break fields, mostly so that their checksums match again."""
    file = _copy(seed)
    for _ in range(rng.randint(0, 4)):
        start, length = rng.choice(_FIELDS)
        at = start + rng.randrange(length) // 8 * 8
        if start == _BAT and rng.random() < 0.7:  # an entry that may be legal
            word = rng.choice((0, 1, 2, 3, 6, 7)) | rng.randrange(0, file.size // MIB + 4) << 20
            file.write_at(at, struct.pack("<Q", word))
        else:
            file.write_at(at, mutate(file.read_at(at, 32), rng)[:32])
    if rng.random() < 0.9:
        for offset, length in _CHECKED:
            file.reseal(offset, length)
    if rng.random() < 0.05:
        file.truncate(rng.randrange(file.size))
    return file


@dataclass(frozen=True)
class _Step:
    """Something done to the disk, at a place within the window."""

    verb: str
    at: int
    length: int
    byte: int


@dataclass(frozen=True)
class _Session:
    """A file, where on its disk (in thousandths), and what is done there."""

    file: MemoryFile
    where: int
    steps: tuple[_Step, ...]


def _step(rng: random.Random) -> _Step:
    at = rng.randrange(_WINDOW) // rng.choice((1, 512, 4096, 64 * KIB)) % _WINDOW
    length = rng.randrange(rng.choice((1, 2000, 8 * KIB, _WINDOW)) + 1)
    return _Step(rng.choice(("write", "write", "trim", "flush", "reopen")), at, length, 0x51)


def _write(_: Path) -> Target:
    """Whatever a file that opens says, its disk reads as what was written to it."""
    seeds = _seeds()

    def make(rng: random.Random) -> _Session:
        file = _damaged(rng.choice(seeds), rng)
        return _Session(
            file, rng.randrange(1000), tuple(_step(rng) for _ in range(rng.randint(1, 5)))
        )

    def run(session: _Session) -> None:
        file = session.file
        parent = _parent_of(file)
        disk = VhdxDisk.load_writable(file, parent=parent)
        start = max(0, disk.size - _WINDOW) * session.where // 1000
        model = bytearray(disk.read_at(start, _WINDOW))
        for step in session.steps:
            at = min(step.at, len(model))
            end = min(at + step.length, len(model))
            if step.verb == "write":
                model[at:end] = bytes([step.byte]) * (end - at)
                disk.write_at(start + at, model[at:end])
            elif step.verb == "trim" and not disk.info().leave_blocks_allocated:
                model[at:end] = bytes(end - at)
                disk.trim(start + at, end - at)
            elif step.verb == "flush":
                disk.flush()
            elif step.verb == "reopen":
                disk.close()
                disk = VhdxDisk.load_writable(file, parent=parent)
            assert disk.read_at(start, _WINDOW) == model, f"after {step}"
        disk.close()
        assert VhdxDisk.load(file, parent=parent).read_at(start, _WINDOW) == model, "reopened"

    return Target(make, run)


def _repair(_: Path) -> Target:
    """A check never fails, and a repair changes nothing that could be read before."""
    seeds = _seeds()

    def run(file: MemoryFile) -> None:
        before = _reading(file)
        found = check_vhdx(file)
        done = repair(file)
        assert bool(found) >= bool(done.left), "a repair that broke something"
        if before is not None:
            assert _reading(file) == before, "a repair that changed the disk"
        if not done.left and found:
            assert not check_vhdx(file)

    return Target(lambda rng: _damaged(rng.choice(seeds), rng), run)


def _reading(file: MemoryFile) -> bytes | None:
    """Return a sample of every block of the disk; None for one that is refused."""
    try:
        return _sample(VhdxDisk.load(file, parent=_parent_of(file)))
    except SnapshotterError:
        return None


def _sample(disk: BlockReader) -> bytes:
    starts = [*range(0, min(disk.size, _SIZE + 4 * MIB), MIB), max(0, disk.size - MIB)]
    return b"".join(disk.read_at(start, 4 * KIB) for start in starts)


def _resize(_: Path) -> Target:
    """Another size keeps what both sizes have, and what is new reads as zeros."""
    seeds = _seeds()
    sizes = (512, MIB, 23 * MIB + 512, 24 * MIB, 25 * MIB, 4 * GIB, TIB, 65 * TIB)

    def make(rng: random.Random) -> tuple[MemoryFile, list[int]]:
        near = [rng.randrange(0, 2 * _SIZE, 512) for _ in range(5)]
        file = _damaged(rng.choice(seeds), rng)
        return file, rng.choices((*sizes, *near), k=rng.randint(1, 3))

    def run(request: tuple[MemoryFile, list[int]]) -> None:
        file, wanted = request
        disk = VhdxDisk.load(file, parent=_parent_of(file))
        least = disk.size
        # The start of every block, and what lies around each end that the disk ever has.
        places = {*range(0, 2 * _SIZE, MIB), *(max(0, end - 4 * KIB) for end in (least, *wanted))}
        content = {place: disk.read_at(place, 8 * KIB) for place in places}
        for size in wanted:
            resize(file, size, shrink=True)
            least = min(least, size)
            disk = VhdxDisk.load(file, parent=_parent_of(file))
            assert disk.size == size
            for at, before in content.items():
                kept = before[: max(0, least - at)]
                expected = kept.ljust(max(0, min(8 * KIB, size - at)), b"\0")
                assert disk.read_at(at, 8 * KIB) == expected, f"{size} bytes: at {at}"

    return Target(make, run)


@dataclass(frozen=True)
class _Family:
    """A child with its locator as bytes, and its parent."""

    locator: bytes
    child: MemoryFile
    parent: MemoryFile


def _chain(directory: Path) -> Target:
    """Locators lead to the right parent or to a typed error; a merge gives what the child read."""
    parent = _plain()
    guid = VhdxDisk.load(parent).info().data_write_guid
    links = ParentLinks(
        guid,
        {
            "relative_path": ".\\parent.vhdx",
            "volume_path": "\\\\?\\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\\parent.vhdx",
            "absolute_win32_path": "\\\\?\\c:\\disks\\parent.vhdx",
        },
        UUID(int=9),
    )
    content = DiskContent(_SIZE, ((2 * MIB, b"d" * MIB),), ((7 * MIB, MIB),))
    names = tuple(directory / name for name in ("child.vhdx", "parent.vhdx", "other.vhdx"))

    def make(rng: random.Random) -> _Family:
        locator = links.locator().pack()
        for _ in range(rng.randint(0, 3)):
            locator = mutate(locator, rng)[:2000]
        child = MemoryFile.of(emit_vhdx(content, parent_locator=locator))
        return _Family(
            locator,
            _damaged(child, rng) if rng.random() < 0.3 else child,
            _damaged(parent, rng) if rng.random() < 0.3 else parent,
        )

    def run(family: _Family) -> None:
        child, below, _ = names
        _store(child, family.child)
        _store(below, family.parent)
        with open_chain(child) as chain:
            before = _sample(chain)
        assert len(resolve_chain(child)) <= len(names)
        merged = merge_child(child)
        with open_chain(merged) as chain:
            assert _sample(chain) == before, "a merge that changed the disk"

    return Target(make, run)


def _store(path: Path, file: MemoryFile) -> None:
    write_content(path, file.content(), durable=False, overwrite=True)


def _locator(_: Path) -> Target:
    """What can be read of a locator can be written again, and names places on either system."""
    seeds = [
        links.locator().pack()
        for links in (
            _LINKS,
            replace(_LINKS, linkage2=UUID(int=3)),
            ParentLinks(UUID(int=1), {"absolute_win32_path": "\\\\server\\share\\a\\..\\b.vhdx"}),
        )
    ]

    def run(raw: bytes) -> None:
        links = ParentLinks.of(ParentLocator.unpack(raw, at=0), at=0)
        for windows in (False, True):
            assert len(list(places_to_try(links, Path("/disks/child.vhdx"), windows=windows))) < 10
        again = links.locator().pack()
        assert ParentLinks.of(ParentLocator.unpack(again, at=0), at=0) == links

    return Target(lambda rng: mutate(rng.choice(seeds), rng), run)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "vhdx_write": _write,
    "vhdx_repair": _repair,
    "vhdx_resize": _resize,
    "vhdx_locator": _locator,
    "vhdx_chain": _chain,
}

from __future__ import annotations

import contextlib
import random
import shutil
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.blockio import DiskContent, LocalBlockFile
from snapshotter.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
    VhdxParentError,
    VhdxUnsupportedError,
)
from snapshotter.units import KIB, MIB
from snapshotter.vhdx import (
    VhdxDisk,
    create_child,
    create_vhdx,
    emit_vhdx,
    merge_child,
    open_chain,
    resolve_chain,
    write_content,
)
from snapshotter.vhdx.locator import ParentLinks
from snapshotter.vhdx.merge import merge_file
from snapshotter.vhdx.metadata import TABLE_SIZE, MetadataEntry, MetadataTable
from snapshotter.vhdx.parent import parent_links
from snapshotter.vhdx.relink import relink
from snapshotter.vhdx.structures import read_structures

from . import oracle
from .crash import CrashFile
from .memory import MemoryFile

SIZE = 6 * MIB


def pair(folder: Path) -> tuple[Path, Path]:
    """A base with data in four blocks, and a child that changed, filled and trimmed some."""
    base, child = folder / "base.vhdx", folder / "child.vhdx"
    pieces = tuple((block * MIB, bytes([block + 1]) * MIB) for block in range(4))
    write_content(base, emit_vhdx(DiskContent(SIZE, pieces)), durable=False)
    create_child(child, base)
    with open_chain(child, writable=True) as chain:
        chain.top.write_at(MIB - 700, b"x" * 1500)
        chain.top.trim(2 * MIB, MIB)
        chain.top.write_at(5 * MIB, b"y" * MIB)
    return base, child


def content(path: Path) -> bytes:
    with open_chain(path) as chain:
        return chain.read_at(0, chain.size)


def test_the_parent_reads_as_the_child_did_and_the_child_still_does(tmp_path: Path) -> None:
    base, child = pair(tmp_path)
    expected = content(child)
    steps: list[tuple[int, int]] = []
    assert merge_child(child, progress=lambda *step: steps.append(step)) == str(base)
    assert content(base) == expected
    assert content(child) == expected
    assert steps == sorted(steps)
    assert steps[-1] == (SIZE, SIZE)
    assert not VhdxDisk.open(base).info().log_dirty


@oracle.needs_qemu
def test_qemu_accepts_the_merged_parent_and_reads_the_same(tmp_path: Path) -> None:
    base, child = pair(tmp_path)
    expected = content(child)
    merge_child(child)
    oracle.check(base)
    assert oracle.to_raw(base, tmp_path / "base.raw").read_bytes() == expected


def test_a_block_that_the_child_trimmed_gives_its_room_back(tmp_path: Path) -> None:
    base, child = pair(tmp_path)
    merge_child(child)
    with VhdxDisk.open(base) as disk:
        assert (2 * MIB, MIB) not in list(disk.allocated_ranges())
        assert disk.read_at(2 * MIB, MIB) == bytes(MIB)


writes = st.lists(
    st.tuples(st.integers(0, SIZE // 512 - 1), st.integers(1, 2 * MIB // 512), st.integers(0, 255)),
    max_size=3,
)


@settings(max_examples=12)
@given(levels=st.lists(writes, min_size=3, max_size=3))
def test_a_chain_merged_from_the_top_is_one_disk_with_all_writes(
    tmp_path_factory: pytest.TempPathFactory, levels: list[list[tuple[int, int, int]]]
) -> None:
    folder = tmp_path_factory.mktemp("merge")
    model = bytearray(SIZE)
    create_vhdx(folder / "0.vhdx", SIZE)
    for level, operations in enumerate(levels):
        path = folder / f"{level}.vhdx"
        if level:
            create_child(path, folder / f"{level - 1}.vhdx", block_size=MIB << level)
        with open_chain(path, writable=True) as chain:
            for start, length, value in operations:
                start, length = start * 512, min(length * 512, SIZE - start * 512)
                if value:
                    chain.top.write_at(start, bytes([value]) * length)
                else:
                    chain.top.trim(start, length)
                model[start : start + length] = bytes([value]) * length
    merge_child(folder / "2.vhdx")
    assert content(folder / "1.vhdx") == model
    merge_child(folder / "1.vhdx")
    assert content(folder / "0.vhdx") == model
    shutil.rmtree(folder)


def test_a_disk_without_a_parent_has_nothing_to_merge_into(tmp_path: Path) -> None:
    base, _ = pair(tmp_path)
    with pytest.raises(InvalidArgumentError, match="no parent"):
        merge_child(base)


def test_a_sibling_is_refused_after_the_merge(tmp_path: Path) -> None:
    base, child = pair(tmp_path)
    create_child(tmp_path / "sibling.vhdx", base)
    merge_child(child)
    with pytest.raises(VhdxParentError, match="changed"):
        open_chain(tmp_path / "sibling.vhdx")


@pytest.mark.parametrize("held", ["base.vhdx", "child.vhdx"])
def test_files_in_use_are_not_merged(tmp_path: Path, held: str) -> None:
    base, child = pair(tmp_path)
    before = base.read_bytes(), child.read_bytes()
    with (
        LocalBlockFile.open(tmp_path / held, writable=True),
        pytest.raises(FailedPreconditionError),
    ):
        merge_child(child)
    assert (base.read_bytes(), child.read_bytes()) == before


def test_a_disk_that_is_not_the_parent_is_left_alone(tmp_path: Path) -> None:
    _, child = pair(tmp_path)
    create_vhdx(tmp_path / "other.vhdx", SIZE)
    before = (tmp_path / "other.vhdx").read_bytes()
    with (
        LocalBlockFile.open(child, writable=True) as file,
        VhdxDisk.open(tmp_path / "other.vhdx", writable=True) as other,
        pytest.raises(VhdxParentError, match="not its parent"),
    ):
        merge_file(file, other, name=str(child))
    assert (tmp_path / "other.vhdx").read_bytes() == before


class Timeline:
    """Two files whose steps are counted together, so that a power cut hits both at one moment."""

    def __init__(self, base: MemoryFile, child: MemoryFile) -> None:
        self.base = _Timed(self)
        self.child = _Timed(self)
        for mine, given_file in ((self.base, base), (self.child, child)):
            started = CrashFile.starting_as(given_file)
            mine.__dict__.update(started.__dict__)
        self.moments: list[tuple[int, int]] = [(0, 0)]

    def tick(self) -> None:
        self.moments.append((len(self.base.steps), len(self.child.steps)))

    def cut(self, moment: int, chance: random.Random) -> tuple[MemoryFile, MemoryFile]:
        base, child = self.moments[moment]
        return self.base.cut(base, chance), self.child.cut(child, chance)


class _Timed(CrashFile):
    def __init__(self, timeline: Timeline) -> None:
        super().__init__(0)
        self._tick = timeline.tick

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        super().write_at(offset, data)
        self._tick()

    def write_zeros(self, offset: int, length: int) -> None:
        super().write_zeros(offset, length)
        self._tick()

    def truncate(self, size: int) -> None:
        super().truncate(size)
        self._tick()

    def flush(self) -> None:
        super().flush()
        self._tick()


def in_memory(path: Path) -> MemoryFile:
    raw = path.read_bytes()
    file = MemoryFile(len(raw))
    for start in range(0, len(raw), 64 * KIB):
        if any(part := raw[start : start + 64 * KIB]):
            file.write_at(start, part)
    return file


def read_both(base: MemoryFile, child: MemoryFile) -> bytes:
    """The child's content, as `open_chain` would read it."""
    below = VhdxDisk.load(base)
    links = parent_links(read_structures(child))
    assert links is not None
    assert links.accepts(below.info().data_write_guid)
    return VhdxDisk.load(child, parent=below).read_at(0, SIZE)


def test_a_power_cut_at_any_moment_of_a_merge_leaves_the_child_whole(tmp_path: Path) -> None:
    base, child = pair(tmp_path)
    expected = content(child)
    timeline = Timeline(in_memory(base), in_memory(child))
    with VhdxDisk.load_writable(timeline.base) as parent:
        merge_file(timeline.child, parent, name="child")
    chance = random.Random(4)
    assert len(timeline.moments) > 20
    for moment in range(len(timeline.moments)):
        for _ in range(2):
            assert read_both(*timeline.cut(moment, chance)) == expected, moment
    assert VhdxDisk.load(timeline.base).read_at(0, SIZE) == expected


def test_a_merge_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    base, child = pair(tmp_path)
    expected = content(child)
    timeline = Timeline(in_memory(base), in_memory(child))
    with VhdxDisk.load_writable(timeline.base) as parent:
        merge_file(timeline.child, parent, name="child")
    chance = random.Random(5)
    for moment in range(0, len(timeline.moments), 3):
        below, above = timeline.cut(moment, chance)
        with VhdxDisk.load_writable(below) as parent:
            merge_file(above, parent, name="child")
        assert VhdxDisk.load(below).read_at(0, SIZE) == expected, moment
        assert read_both(below, above) == expected, moment


def test_a_merge_may_be_cut_off_twice(tmp_path: Path) -> None:
    base, child = pair(tmp_path)
    expected = content(child)
    first = Timeline(in_memory(base), in_memory(child))
    with VhdxDisk.load_writable(first.base) as parent:
        merge_file(first.child, parent, name="child")
    chance = random.Random(7)
    second = Timeline(*first.cut(len(first.moments) - 4, chance))
    with VhdxDisk.load_writable(second.base) as parent:
        merge_file(second.child, parent, name="child")
    for moment in range(len(second.moments)):
        assert read_both(*second.cut(moment, chance)) == expected, moment


class FullFile(MemoryFile):
    """A file on a disk without room for more than `limit` bytes."""

    limit = 0

    def truncate(self, size: int) -> None:
        if size > self.limit:
            raise UnavailableError("cannot resize it: No space left on device")
        super().truncate(size)


def test_a_merge_without_room_is_made_again_when_there_is_some(tmp_path: Path) -> None:
    base, child = pair(tmp_path)
    expected = content(child)
    below, above = FullFile(), in_memory(child)
    below.become(in_memory(base))
    below.limit = below.size  # the child's new block does not fit
    parent = VhdxDisk.load_writable(below)
    with pytest.raises(UnavailableError, match="No space left"):
        merge_file(above, parent, name="child")
    with contextlib.suppress(UnavailableError):
        parent.close()
    assert read_both(below, above) == expected
    below.limit = 100 * MIB
    with VhdxDisk.load_writable(below) as parent:
        merge_file(above, parent, name="child")
    assert VhdxDisk.load(below).read_at(0, SIZE) == expected


def linked(folder: Path) -> tuple[Path, ParentLinks]:
    _, child = pair(folder)
    links = resolve_chain(child)[0].links
    assert links is not None
    return child, links


def test_a_longer_locator_moves_and_a_shorter_one_stays(tmp_path: Path) -> None:
    child, links = linked(tmp_path)
    expected = content(child)
    long = ParentLinks(links.linkage, {**links.paths, "volume_path": "v" * 3000}, UUID(int=9))
    for wanted in (long, links, long):
        with LocalBlockFile.open(child, writable=True) as file:
            relink(file, wanted)
            assert parent_links(read_structures(file)) == wanted
        assert content(child) == expected


def test_relinking_leaves_the_state_of_the_data_alone(tmp_path: Path) -> None:
    child, links = linked(tmp_path)
    before = resolve_chain(child)[0].structures.header
    with LocalBlockFile.open(child, writable=True) as file:
        relink(file, ParentLinks(links.linkage, links.paths, uuid4()))
    after = resolve_chain(child)[0].structures.header
    assert after.data_write_guid == before.data_write_guid
    assert after.file_write_guid != before.file_write_guid


def test_a_locator_without_room_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    child, links = linked(tmp_path)
    longer = ParentLinks(links.linkage, links.paths, uuid4())
    with LocalBlockFile.open(child, writable=True) as file:
        table = MetadataTable.unpack(
            file.read_at(2 * MIB, TABLE_SIZE), at=2 * MIB, region_length=MIB
        )
        last = MetadataEntry(UUID(int=5), MIB - 16, 16, flags=1)  # a user's item at the very end
        file.write_at(2 * MIB, MetadataTable((*table.entries, last)).pack())
    before = child.read_bytes()
    with (
        LocalBlockFile.open(child, writable=True) as file,
        pytest.raises(VhdxUnsupportedError, match="no room"),
    ):
        relink(file, longer)
    assert child.read_bytes() == before


def test_a_disk_without_a_parent_is_not_linked(tmp_path: Path) -> None:
    child, links = linked(tmp_path)
    with (
        LocalBlockFile.open(child.with_name("base.vhdx"), writable=True) as file,
        pytest.raises(VhdxUnsupportedError, match="without a parent"),
    ):
        relink(file, links)


def test_a_power_cut_while_relinking_leaves_the_old_links_or_the_new(tmp_path: Path) -> None:
    child, links = linked(tmp_path)
    wanted = ParentLinks(links.linkage, {**links.paths, "volume_path": "v" * 9000}, uuid4())
    file = CrashFile.starting_as(in_memory(child))
    relink(file, wanted)
    chance = random.Random(6)
    seen = set()
    for after in range(len(file.steps) + 1):
        for _ in range(4):
            found = parent_links(read_structures(file.cut(after, chance)))
            assert found in (links, wanted), after
            seen.add(found == wanted)
    assert seen == {False, True}

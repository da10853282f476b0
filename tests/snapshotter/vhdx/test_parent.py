from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.blockio import DiskContent, LocalBlockFile
from snapshotter.errors import (
    InvalidArgumentError,
    UnavailableError,
    VhdxCorruptError,
    VhdxError,
    VhdxParentError,
    VhdxUnsupportedError,
)
from snapshotter.units import KIB, MIB
from snapshotter.vhdx import (
    VhdxDisk,
    VhdxIdentity,
    create_child,
    create_vhdx,
    emit_vhdx,
    open_chain,
    resolve_chain,
    write_content,
)
from snapshotter.vhdx.locator import ParentLinks
from snapshotter.vhdx.parent import MAX_DEPTH

SIZE = 8 * MIB


def base(path: Path, *pieces: tuple[int, bytes], size: int = SIZE, sector: int = 512) -> Path:
    content = emit_vhdx(DiskContent(size, pieces), logical_sector_size=sector)
    write_content(path, content, durable=False)
    return path


def data_guid(path: Path) -> UUID:
    with VhdxDisk.open(path) as disk:
        return disk.info().data_write_guid


def child_of(
    path: Path,
    *,
    linkage: UUID,
    linkage2: UUID | None = None,
    size: int = SIZE,
    sector: int = 512,
    guid: UUID | None = None,
    paths: dict[str, str],
) -> Path:
    """A child whose locator says what the test wants it to say."""
    locator = ParentLinks(linkage, paths, linkage2).locator().pack()
    content = emit_vhdx(
        DiskContent(size, ()),
        logical_sector_size=sector,
        parent_locator=locator,
        identity=VhdxIdentity(uuid4(), guid or uuid4(), uuid4()),
    )
    write_content(path, content, durable=False)
    return path


def test_a_fresh_child_is_4_mib_and_reads_as_its_parent(tmp_path: Path) -> None:
    parent = base(tmp_path / "base.vhdx", (MIB, b"A" * MIB), (5 * MIB + 7, b"B"))
    create_child(tmp_path / "child.vhdx", parent)
    assert (tmp_path / "child.vhdx").stat().st_size == 4 * MIB
    with open_chain(tmp_path / "child.vhdx") as chain, VhdxDisk.open(parent) as below:
        assert chain.read_at(0, SIZE) == below.read_at(0, SIZE)
        assert chain.size == SIZE
        assert chain.paths == (tmp_path / "child.vhdx", parent)
        mine, theirs = chain.top.info(), below.info()
        assert mine.has_parent
        assert (mine.disk_id, mine.block_size) == (theirs.disk_id, theirs.block_size)
        assert mine.data_write_guid != theirs.data_write_guid


def test_a_child_may_have_other_blocks_than_its_parent(tmp_path: Path) -> None:
    parent = base(tmp_path / "base.vhdx", (MIB, b"A" * MIB))
    create_child(tmp_path / "child.vhdx", parent, block_size=4 * MIB)
    with open_chain(tmp_path / "child.vhdx", writable=True) as chain:
        chain.top.write_at(2 * MIB - 100, b"x" * 200)
    with open_chain(tmp_path / "child.vhdx") as chain:
        assert chain.top.block_size == 4 * MIB
        expected = b"A" * (MIB - 100) + b"x" * 200 + bytes(MIB - 100)
        assert chain.read_at(MIB, 2 * MIB) == expected


def test_writing_to_a_child_leaves_its_parent_alone(tmp_path: Path) -> None:
    parent = base(tmp_path / "base.vhdx", (0, b"A" * MIB))
    before = parent.read_bytes()
    create_child(tmp_path / "child.vhdx", parent)
    with open_chain(tmp_path / "child.vhdx", writable=True) as chain:
        chain.top.write_at(100, b"new")
    assert parent.read_bytes() == before
    with open_chain(tmp_path / "child.vhdx") as chain:
        assert chain.read_at(99, 5) == b"AnewA"


def test_the_child_of_a_chain_reads_through_all_of_it(tmp_path: Path) -> None:
    base(tmp_path / "0.vhdx", *((block * MIB, b"base") for block in range(8)))
    for level in range(1, 6):
        create_child(tmp_path / f"{level}.vhdx", tmp_path / f"{level - 1}.vhdx")
        with open_chain(tmp_path / f"{level}.vhdx", writable=True) as chain:
            chain.top.write_at(level * MIB, b"%d" % level)
    with open_chain(tmp_path / "5.vhdx") as chain:
        starts = [chain.read_at(block * MIB, 4) for block in range(7)]
    assert starts == [b"base", b"1ase", b"2ase", b"3ase", b"4ase", b"5ase", b"base"]


writes = st.lists(
    st.tuples(
        st.integers(0, 6 * MIB // 512 - 1),
        st.integers(1, 3 * MIB // 512),
        st.sampled_from(["write", "trim"]),
        st.integers(1, 255),
    ),
    max_size=4,
)


@settings(max_examples=15)
@given(levels=st.lists(writes, min_size=1, max_size=4), sector=st.sampled_from([512, 4096]))
def test_a_chain_reads_as_a_model_of_all_its_writes(
    tmp_path_factory: pytest.TempPathFactory,
    levels: list[list[tuple[int, int, str, int]]],
    sector: int,
) -> None:
    folder = tmp_path_factory.mktemp("chain")
    size = 6 * MIB
    model = bytearray(size)
    create_vhdx(folder / "0.vhdx", size, logical_sector_size=sector)
    for level, operations in enumerate(levels):
        path = folder / f"{level}.vhdx"
        if level:
            create_child(path, folder / f"{level - 1}.vhdx", block_size=MIB << level)
        with open_chain(path, writable=True) as chain:
            for start, length, kind, value in operations:
                start, length = start * 512, min(length * 512, size - start * 512)
                if kind == "trim":
                    chain.top.trim(start, length)
                    model[start : start + length] = bytes(length)
                else:
                    chain.top.write_at(start, bytes([value]) * length)
                    model[start : start + length] = bytes([value]) * length
    with open_chain(path) as chain:
        assert chain.read_at(0, size) == model
        known = bytearray(size)
        end = 0
        for offset, length in chain.allocated_ranges():
            assert offset > end or end == 0
            known[offset : offset + length] = model[offset : offset + length]
            end = offset + length
        assert known == model
        assert end <= size
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "paths",
    [
        {"relative_path": ".\\base.vhdx"},
        {"relative_path": "base.vhdx"},
        {"relative_path": "..\\vm\\base.vhdx"},
        {"relative_path": "gone.vhdx", "absolute_win32_path": "C:\\disks\\base.vhdx"},
        {"absolute_win32_path": "\\\\?\\C:\\disks\\base.vhdx"},
        {"absolute_win32_path": "\\\\server\\share\\base.vhdx"},
        {"volume_path": "\\\\?\\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\\vm\\base.vhdx"},
        {"relative_path": "other.vhdx", "volume_path": "x\\base.vhdx"},
    ],
)
def test_a_parent_is_found_by_each_kind_of_path(tmp_path: Path, paths: dict[str, str]) -> None:
    folder = tmp_path / "vm"
    folder.mkdir()
    parent = base(folder / "base.vhdx", (0, b"found"))
    base(folder / "other.vhdx", (0, b"wrong"))
    child = child_of(folder / "child.vhdx", linkage=data_guid(parent), paths=paths)
    with open_chain(child) as chain:
        assert chain.read_at(0, 5) == b"found"


def test_a_child_reached_by_a_link_finds_its_parent_where_the_file_is(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    parent = base(tmp_path / "real" / "base.vhdx", (0, b"found"))
    create_child(tmp_path / "real" / "child.vhdx", parent)
    (tmp_path / "child.vhdx").symlink_to(tmp_path / "real" / "child.vhdx")
    with open_chain(tmp_path / "child.vhdx") as chain:
        assert chain.read_at(0, 5) == b"found"


def test_a_chain_may_be_moved_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "a" / "bases").mkdir(parents=True)
    parent = base(tmp_path / "a" / "bases" / "base.vhdx", (0, b"found"))
    create_child(tmp_path / "a" / "child.vhdx", parent)
    (tmp_path / "a").rename(tmp_path / "b")
    with open_chain(tmp_path / "b" / "child.vhdx") as chain:
        assert chain.read_at(0, 5) == b"found"


def test_a_missing_parent_is_refused_with_the_places_tried(tmp_path: Path) -> None:
    child = child_of(
        tmp_path / "child.vhdx",
        linkage=uuid4(),
        paths={"relative_path": "x\\base.vhdx", "absolute_win32_path": "D:\\y\\far.vhdx"},
    )
    with pytest.raises(VhdxParentError) as caught:
        open_chain(child)
    places = [place for place, _ in caught.value.tried]
    assert places == [
        str(tmp_path / "x" / "base.vhdx"),
        "/mnt/d/y/far.vhdx",
        str(tmp_path / "far.vhdx"),
    ]
    for place in (str(child), *places):
        assert place in str(caught.value)


def test_a_parent_that_was_written_to_is_refused(tmp_path: Path) -> None:
    parent = base(tmp_path / "base.vhdx", (0, b"old"))
    create_child(tmp_path / "child.vhdx", parent)
    with VhdxDisk.open(parent, writable=True) as disk:
        disk.write_at(0, b"new")
    with pytest.raises(VhdxParentError, match="DataWriteGuid"):
        open_chain(tmp_path / "child.vhdx")


def test_a_parent_in_the_middle_of_a_merge_is_accepted(tmp_path: Path) -> None:
    parent = base(tmp_path / "base.vhdx", (0, b"found"))
    child = child_of(
        tmp_path / "child.vhdx",
        linkage=uuid4(),
        linkage2=data_guid(parent),
        paths={"relative_path": "base.vhdx"},
    )
    with open_chain(child) as chain:
        assert chain.read_at(0, 5) == b"found"


@pytest.mark.parametrize(
    ("size", "sector", "what"), [(SIZE + MIB, 512, "size"), (SIZE, 4096, "logical sector size")]
)
def test_a_parent_that_does_not_fit_is_refused(
    tmp_path: Path, size: int, sector: int, what: str
) -> None:
    parent = base(tmp_path / "base.vhdx", size=size, sector=sector)
    child = child_of(
        tmp_path / "child.vhdx", linkage=data_guid(parent), paths={"relative_path": "base.vhdx"}
    )
    with pytest.raises(VhdxParentError, match=f"its {what} is"):
        open_chain(child)


def test_a_disk_that_is_its_own_parent_is_refused(tmp_path: Path) -> None:
    guid = uuid4()
    child = child_of(
        tmp_path / "a.vhdx", linkage=guid, guid=guid, paths={"relative_path": "a.vhdx"}
    )
    with pytest.raises(VhdxParentError, match="cycle"):
        open_chain(child)


def test_a_cycle_is_refused_under_other_names_too(tmp_path: Path) -> None:
    first, second = uuid4(), uuid4()
    child_of(tmp_path / "a.vhdx", linkage=second, guid=first, paths={"relative_path": "b.vhdx"})
    child_of(tmp_path / "b.vhdx", linkage=first, guid=second, paths={"relative_path": "c.vhdx"})
    os.link(tmp_path / "a.vhdx", tmp_path / "c.vhdx")
    with pytest.raises(VhdxParentError, match="cycle") as caught:
        open_chain(tmp_path / "a.vhdx")
    places = str(tmp_path / "c.vhdx"), f"the same file as {tmp_path / 'a.vhdx'}"
    assert caught.value.tried == (places,)


def test_a_chain_that_is_too_deep_is_refused_and_the_deepest_is_read(tmp_path: Path) -> None:
    base(tmp_path / "0.vhdx", (0, b"bottom"))
    for level in range(1, MAX_DEPTH + 1):
        child_of(
            tmp_path / f"{level}.vhdx",
            linkage=data_guid(tmp_path / "0.vhdx") if level == 1 else UUID(int=level - 1),
            guid=UUID(int=level),
            paths={"relative_path": f"{level - 1}.vhdx"},
        )
    with open_chain(tmp_path / f"{MAX_DEPTH - 1}.vhdx") as chain:
        assert chain.read_at(0, 6) == b"bottom"
    with pytest.raises(VhdxParentError, match="more than 64"):
        open_chain(tmp_path / f"{MAX_DEPTH}.vhdx")


@pytest.mark.parametrize("kind", ["pipe", "folder", "text", "dangling"])
def test_what_is_no_disk_is_refused_as_a_parent_without_waiting(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "base.vhdx"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    elif kind == "text":
        place.write_text("no disk")
    else:
        place.symlink_to(tmp_path / "nowhere")
    child = child_of(tmp_path / "child.vhdx", linkage=uuid4(), paths={"relative_path": "base.vhdx"})
    with pytest.raises(VhdxParentError) as caught:
        open_chain(child)
    assert caught.value.tried[0][0] == str(place)


def test_an_over_long_path_is_refused_like_any_other(tmp_path: Path) -> None:
    child = child_of(tmp_path / "child.vhdx", linkage=uuid4(), paths={"relative_path": "x" * 5000})
    with pytest.raises(VhdxParentError, match="too long"):
        open_chain(child)


def test_a_failed_open_leaves_no_file_open(tmp_path: Path) -> None:
    parent = base(tmp_path / "base.vhdx")
    create_child(tmp_path / "child.vhdx", parent)
    damaged = bytearray((tmp_path / "child.vhdx").read_bytes())
    damaged[3 * MIB] = 5  # a state that there is none of
    (tmp_path / "child.vhdx").write_bytes(damaged)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(VhdxCorruptError):
            open_chain(tmp_path / "child.vhdx")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_child_is_not_read_without_its_parent(tmp_path: Path) -> None:
    create_child(tmp_path / "child.vhdx", base(tmp_path / "base.vhdx"))
    with pytest.raises(VhdxUnsupportedError, match="parent"):
        VhdxDisk.open(tmp_path / "child.vhdx")


def test_no_child_is_left_of_a_refused_parent(tmp_path: Path) -> None:
    parent = base(tmp_path / "base.vhdx")
    for block_size in (3 * MIB, 512 * MIB):
        with pytest.raises(InvalidArgumentError):
            create_child(tmp_path / "child.vhdx", parent, block_size=block_size)
    with pytest.raises(FileNotFoundError):
        create_child(tmp_path / "child.vhdx", tmp_path / "none.vhdx")
    (tmp_path / "back\\slash.vhdx").write_bytes(parent.read_bytes())
    with pytest.raises(InvalidArgumentError, match="backslash"):
        create_child(tmp_path / "child.vhdx", tmp_path / "back\\slash.vhdx")
    with pytest.raises(UnavailableError):
        create_child(tmp_path / "no" / "child.vhdx", parent)
    assert sorted(os.listdir(tmp_path)) == ["back\\slash.vhdx", "base.vhdx"]


@settings(max_examples=40)
@given(flips=st.lists(st.tuples(st.integers(0, 420), st.integers(1, 255)), min_size=1, max_size=5))
def test_a_damaged_locator_gives_a_chain_or_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("locator")
    parent = base(folder / "base.vhdx", (0, b"found"))
    create_child(folder / "child.vhdx", parent)
    with LocalBlockFile.open(folder / "child.vhdx", writable=True) as file:
        for at, change in flips:
            place = 2 * MIB + (64 * KIB + at if at < 300 else 32 + at - 300)
            file.write_at(place, bytes([file.read_at(place, 1)[0] ^ change]))
    with contextlib.suppress(VhdxError), open_chain(folder / "child.vhdx") as chain:
        chain.read_at(0, MIB)
    shutil.rmtree(folder)


def test_resolving_opens_nothing_for_good(tmp_path: Path) -> None:
    parent = base(tmp_path / "base.vhdx")
    create_child(tmp_path / "child.vhdx", parent)
    before = len(os.listdir("/proc/self/fd"))
    files = resolve_chain(tmp_path / "child.vhdx")
    assert [file.path for file in files] == [tmp_path / "child.vhdx", parent]
    assert files[0].links is not None
    assert files[0].links.paths == {"relative_path": ".\\base.vhdx"}
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_disk_without_a_parent_is_given_none(tmp_path: Path) -> None:
    path, other = base(tmp_path / "a.vhdx", (0, b"a")), base(tmp_path / "b.vhdx", (0, b"b"))
    with (
        VhdxDisk.open(other) as parent,
        pytest.raises(InvalidArgumentError, match="has no parent"),
    ):
        VhdxDisk.open(path, parent=parent)

"""Whatever is wrong with a disk, reading it ends soon, and in an error of ours."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.errors import Ext4CorruptError, Ext4Error, InvalidArgumentError, NotFoundError
from snapshotter.ext4.format import BLOCK_SIZE, SUPERBLOCK_OFFSET
from snapshotter.ext4.reader import Ext4
from tests.snapshotter.ext4.layers import DIR, SYM, convert, member, tar
from tests.snapshotter.ext4.oracles import MemoryDisk


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    target = tmp_path_factory.mktemp("disk") / "layer.vhd"
    xattrs = {"user.small": "1", "user.large": "x" * 500}
    members = [
        member("d", kind=DIR, xattrs=xattrs),
        member("d/file", b"x" * 9000, xattrs=xattrs),
        member("d/slow", kind=SYM, link="t" * 100),
        member("d/fast", kind=SYM, link="t"),
    ]
    convert(tar(*members), target)
    return target.read_bytes()[:-512]


def read_all(data: bytes | bytearray) -> None:
    files = Ext4.open(MemoryDisk(data))
    for path, info in files.walk():
        files.xattrs(path)
        if info.is_file:
            for part in files.read_parts(path, length=1 << 20):
                assert part
        elif info.is_symlink:
            files.readlink(path)


@settings(max_examples=400, deadline=None)
@given(
    data=st.data(),
    value=st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, bytes(4)])),
)
def test_damage_anywhere_ends_in_an_error_of_ours_or_is_harmless(
    disk: bytes, data: st.DataObject, value: bytes
) -> None:
    used = [at for at in range(0, len(disk), 16) if disk[at : at + 16].strip(b"\0x")]
    place = data.draw(st.sampled_from(used)) + data.draw(st.integers(0, 15))
    damaged = bytearray(disk)
    damaged[place : place + len(value)] = value
    with contextlib.suppress(Ext4Error, NotFoundError, InvalidArgumentError):
        read_all(damaged[: len(disk)])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_disk_cut_short_is_damaged(disk: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(disk) - 1))
    with pytest.raises(Ext4CorruptError):
        read_all(disk[:cut])


def inode_place(disk: bytes, path: str) -> int:
    files = Ext4.open(MemoryDisk(disk))
    (table,) = struct.unpack_from("<I", disk, BLOCK_SIZE + 8)
    return int(table) * BLOCK_SIZE + (files.stat(path).inode - 1) * 256


def patched(disk: bytes, path: str, offset: int, layout: str, *values: int) -> bytes:
    data = bytearray(disk)
    struct.pack_into("<" + layout, data, inode_place(disk, path) + offset, *values)
    return bytes(data)


TREE = 0x28  # i_block: header (magic, entries, limit, depth, generation), then entries


@pytest.mark.parametrize(
    ("offset", "layout", "values", "message"),
    [
        pytest.param(TREE, "H", (0xF30B,), "magic", id="magic"),
        pytest.param(TREE + 2, "HH", (5, 5), "5 entries", id="too many entries"),
        pytest.param(TREE + 2, "H", (60000,), "entries", id="more entries than allowed"),
        pytest.param(TREE + 6, "H", (6,), "depth 6", id="too deep"),
        pytest.param(TREE + 16, "H", (0,), "of no blocks", id="empty extent"),
        pytest.param(TREE + 20, "I", (0xFFFF_FFFF,), "beyond", id="beyond the disk"),
        pytest.param(TREE + 20, "I", (0,), "beyond", id="the boot block"),
        pytest.param(
            TREE,
            "HHHHIIHHIIHHI",
            (0xF30A, 2, 4, 0, 0, 1, 1, 0, 9, 0, 1, 0, 9),
            "order",
            id="backwards",
        ),
    ],
)
def test_damaged_extent_trees_are_told_apart(
    disk: bytes, offset: int, layout: str, values: tuple[int, ...], message: str
) -> None:
    files = Ext4.open(MemoryDisk(patched(disk, "d/file", offset, layout, *values)))
    with pytest.raises(Ext4CorruptError, match=message):
        files.read("d/file")


def test_an_extent_tree_that_meets_itself_ends(disk: bytes) -> None:
    data = bytearray(patched(disk, "d/file", TREE, "HHHHIIII", 0xF30A, 1, 4, 2, 0, 0, 12, 0))
    struct.pack_into("<HHHHIIII", data, 12 * BLOCK_SIZE, 0xF30A, 1, 340, 1, 0, 0, 12, 0)
    with pytest.raises(Ext4CorruptError, match=r"meets itself|depth"):
        Ext4.open(MemoryDisk(data)).read("d/file")


def test_a_file_of_exabytes_is_read_in_parts_only(disk: bytes) -> None:
    files = Ext4.open(MemoryDisk(patched(disk, "d/file", 0x6C, "I", 0x1000_0000)))
    assert files.stat("d/file").size > 1 << 59
    with pytest.raises(InvalidArgumentError, match="in parts"):
        files.read("d/file")
    assert files.read("d/file", offset=1 << 50, length=10) == bytes(10)


def test_a_directory_that_maps_one_block_many_times_ends(disk: bytes) -> None:
    block = struct.unpack_from("<I", disk, inode_place(disk, "d") + TREE + 20)[0]
    raw = patched(disk, "d", 4, "I", 4 * BLOCK_SIZE)
    entries = [value for at in range(4) for value in (at, 1, 0, block)]
    raw = patched(raw, "d", TREE, "HHHHI" + "IHHI" * 4, 0xF30A, 4, 4, 0, 0, *entries)
    with pytest.raises(Ext4CorruptError, match="twice"):
        Ext4.open(MemoryDisk(raw)).listdir("d")


def test_a_directory_that_holds_its_parent_does_not_walk_for_ever(disk: bytes) -> None:
    files = Ext4.open(MemoryDisk(disk))
    raw = bytearray(disk)
    block = struct.unpack_from("<I", disk, inode_place(disk, "d") + TREE + 20)[0]
    place = raw.index(b"file", block * BLOCK_SIZE) - 8
    struct.pack_into("<I", raw, place, files.stat("/").inode)
    with pytest.raises(Ext4CorruptError, match="two names"):
        list(Ext4.open(MemoryDisk(raw)).walk())


SUPERBLOCK: list[tuple[str, Callable[[bytearray], None]]] = [
    ("magic", lambda raw: struct.pack_into("<H", raw, 0x38, 0)),
    ("block size", lambda raw: struct.pack_into("<I", raw, 0x18, 40)),
    ("blocks per group", lambda raw: struct.pack_into("<I", raw, 0x20, 0)),
    ("inodes per group", lambda raw: struct.pack_into("<I", raw, 0x28, 0)),
    ("inode size", lambda raw: struct.pack_into("<H", raw, 0x58, 100)),
    ("inode count", lambda raw: struct.pack_into("<I", raw, 0x00, 1)),
    ("size", lambda raw: struct.pack_into("<I", raw, 0x04, 0x7FFF_FFFF)),
    ("first data block", lambda raw: struct.pack_into("<I", raw, 0x14, 1)),
]


@pytest.mark.parametrize("what", [name for name, _ in SUPERBLOCK])
def test_impossible_superblocks_are_named(disk: bytes, what: str) -> None:
    raw = bytearray(disk[SUPERBLOCK_OFFSET : SUPERBLOCK_OFFSET + 1024])
    dict(SUPERBLOCK)[what](raw)
    data = disk[:SUPERBLOCK_OFFSET] + raw + disk[SUPERBLOCK_OFFSET + 1024 :]
    with pytest.raises(Ext4CorruptError, match=what):
        Ext4.open(MemoryDisk(data))

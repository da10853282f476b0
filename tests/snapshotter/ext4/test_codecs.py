"""Each structure of ext4 comes back as it was written, and nonsense is refused."""

from __future__ import annotations

import datetime
import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.errors import Ext4CorruptError, Ext4UnsupportedError
from snapshotter.ext4.acl import acl_after_chmod, acl_from_disk, acl_to_disk
from snapshotter.ext4.directory import pack_directory, unpack_directory_block
from snapshotter.ext4.extent import (
    MAX_EXTENT_BLOCKS,
    Extent,
    pack_extents,
    split_run,
    unpack_node,
)
from snapshotter.ext4.format import BLOCK_SIZE, Incompat, RoCompat, Superblock
from snapshotter.ext4.groups import prefix_bitmap
from snapshotter.ext4.inode import (
    INODE_DTYPE,
    MAX_TIME,
    MIN_TIME,
    Inode,
    decode_device,
    decode_time,
    encode_device,
    encode_time,
    seal_inode,
)
from snapshotter.ext4.layout import LayerLayout
from snapshotter.ext4.xattr import is_supported_name, pack_xattrs, unpack_block, unpack_tail

U16, U32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFF_FFFF)


@settings(deadline=None)
@given(blocks=U32, high=U32, checksums=st.booleans(), uuid=st.binary(min_size=16, max_size=16))
def test_superblocks_come_back(blocks: int, high: int, checksums: bool, uuid: bytes) -> None:
    written = Superblock(
        blocks_count_lo=blocks,
        blocks_count_hi=high,
        incompat=int(Incompat.BIT64),
        ro_compat=int(RoCompat.METADATA_CSUM) if checksums else 0,
        uuid=uuid,
    )
    read = Superblock.unpack(written.pack())
    assert replace(read, checksum=0, label=b"") == replace(written, label=b"")
    assert read.blocks_count == high << 32 | blocks


def test_a_superblock_whose_checksum_is_wrong_is_damaged() -> None:
    raw = bytearray(Superblock(ro_compat=int(RoCompat.METADATA_CSUM)).pack())
    raw[0] ^= 1
    with pytest.raises(Ext4CorruptError, match="checksum"):
        Superblock.unpack(bytes(raw))


@settings(deadline=None)
@given(mode=U16, size=U32, links=U16, block=st.binary(min_size=60, max_size=60), extra=U32)
def test_inodes_come_back_and_numpy_sees_the_same_fields(
    mode: int, size: int, links: int, block: bytes, extra: int
) -> None:
    inode = Inode(
        mode=mode, size_lo=size, links=links, block=block, extra_isize=32, crtime_extra=extra
    )
    raw = inode.pack(12, seed=None)
    assert Inode.unpack(raw) == inode
    row = np.frombuffer(raw, INODE_DTYPE)[0]
    assert (row["mode"], row["size_lo"], row["links"]) == (mode, size, links)
    assert (row["block"].tobytes(), row["crtime_extra"]) == (block, extra)


def test_the_checksum_of_an_inode_covers_its_number() -> None:
    inode = Inode(mode=0o100644, extra_isize=32)
    raw = bytearray(inode.pack(12, seed=1))
    assert raw != inode.pack(13, seed=1)
    again = bytearray(raw)
    seal_inode(again, 12, seed=1)
    assert again == raw


@settings(deadline=None)
@given(seconds=st.integers(MIN_TIME, MAX_TIME), nanoseconds=st.integers(0, 999_999_999))
def test_times_come_back(seconds: int, nanoseconds: int) -> None:
    expected = seconds * 10**9 + nanoseconds
    assert decode_time(*encode_time(seconds, nanoseconds)) == expected


@pytest.mark.parametrize(
    ("when", "encoded"),
    [  # the table of Documentation/filesystems/ext4/inodes.rst, Inode Timestamps
        ("1901-12-13T20:45:52", (0x8000_0000, 0)),
        ("1969-12-31T23:59:59", (0xFFFF_FFFF, 0)),
        ("1970-01-01T00:00:00", (0, 0)),
        ("2038-01-19T03:14:07", (0x7FFF_FFFF, 0)),
        ("2038-01-19T03:14:08", (0x8000_0000, 1)),
        ("2106-02-07T06:28:16", (0, 1)),
        ("2446-05-10T22:38:55", (0x7FFF_FFFF, 3)),
    ],
)
def test_times_are_encoded_as_the_kernel_documents(when: str, encoded: tuple[int, int]) -> None:
    moment = datetime.datetime.fromisoformat(when).replace(tzinfo=datetime.UTC)
    seconds = (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)).total_seconds()
    assert encode_time(int(seconds)) == encoded


@settings(deadline=None)
@given(major=st.integers(0, 0xFFF), minor=st.integers(0, 0xFFFFF))
def test_device_numbers_come_back(major: int, minor: int) -> None:
    block = struct.pack("<II", 0, encode_device(major, minor))
    assert decode_device(block) == (major, minor)


def test_old_device_numbers_are_read() -> None:
    assert decode_device(struct.pack("<II", 5 << 8 | 1, 0)) == (5, 1)


@settings(max_examples=50, deadline=None)
@given(
    first=st.integers(1, (1 << 48) - (1 << 30)), count=st.integers(0, 170 * 8 * MAX_EXTENT_BLOCKS)
)
def test_runs_of_blocks_come_back_from_extent_trees(first: int, count: int) -> None:
    extents = split_run(first, count)
    root, leaves = pack_extents(extents, leaf_block=77)
    assert len(leaves) == (0 if len(extents) <= 4 else -(-len(extents) // 340))
    node = unpack_node(root)
    read = list(node.extents)
    for number, child in enumerate(node.children):
        assert child == 77 + number
        read += unpack_node(leaves[number]).extents
    assert read == extents
    assert sum(extent.count for extent in read) == count


def test_unwritten_extents_are_told_apart() -> None:
    root = struct.pack("<HHHHIIHHI", 0xF30A, 1, 4, 0, 0, 0, 32768 + 5, 0, 9).ljust(60, b"\0")
    assert unpack_node(root).extents == (Extent(0, 9, 5, written=False),)


@settings(max_examples=30, deadline=None)
@given(
    names=st.lists(
        st.binary(min_size=1, max_size=255).filter(
            lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
        ),
        max_size=100,
        unique=True,
    ),
    seed=st.none() | U32,
)
def test_directories_come_back(names: list[bytes], seed: int | None) -> None:
    written = [(number + 12, name, 1) for number, name in enumerate(names)]
    raw = pack_directory(11, 2, written, seed=seed)
    assert len(raw) % BLOCK_SIZE == 0
    read = [
        tuple(entry)
        for at in range(0, len(raw), BLOCK_SIZE)
        for entry in unpack_directory_block(raw[at : at + BLOCK_SIZE], at=at)
    ]
    assert read == [(11, b".", 2), (2, b"..", 2), *written]


@pytest.mark.parametrize("raw", [bytes(12), b"\1\0\0\0\7\0\1\1", struct.pack("<IHBB", 5, 8, 9, 1)])
def test_damaged_directories_are_refused(raw: bytes) -> None:
    with pytest.raises(Ext4CorruptError, match="directory entry"):
        list(unpack_directory_block(raw, at=0))


XATTR_NAMES = st.builds(
    lambda prefix, rest: prefix + rest,
    st.sampled_from([b"user.", b"trusted.", b"security."]),
    st.binary(min_size=1, max_size=40),
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(XATTR_NAMES, st.binary(max_size=100), max_size=12))
def test_xattrs_come_back(attributes: dict[bytes, bytes]) -> None:
    packed = pack_xattrs(attributes)
    read = unpack_tail(packed.tail, at=0)
    if packed.block is not None:
        read |= unpack_block(packed.block, 0)
    assert read == attributes


def test_xattrs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(Ext4UnsupportedError, match=r"user\.c of 2000"):
        pack_xattrs({b"user.a": bytes(2000), b"user.b": bytes(2000), b"user.c": bytes(2000)})


@pytest.mark.parametrize(
    ("name", "supported"),
    [
        (b"user.x", True),
        (b"security.selinux", True),
        (b"system.posix_acl_default", True),
        (b"user.", False),
        (b"user", False),
        (b"system.data", False),
        (b"system.posix_acl_accessory", False),
        (b"user." + b"n" * 256, False),
        (b"com.apple.provenance", False),
    ],
)
def test_namespaces_are_those_that_linux_lets_one_set(name: bytes, supported: bool) -> None:
    assert is_supported_name(name) is supported


ACL_ENTRIES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([2, 8]), st.integers(0, 7), U32),
        st.tuples(st.sampled_from([1, 4, 16, 32]), st.integers(0, 7), st.just(0xFFFF_FFFF)),
    ),
    max_size=8,
)


@settings(deadline=None)
@given(ACL_ENTRIES)
def test_acls_come_back(entries: list[tuple[int, int, int]]) -> None:
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    assert acl_from_disk(acl_to_disk(value)) == value


@pytest.mark.parametrize("value", [b"", b"\2\0\0\0\1", b"\3\0\0\0", b"\2\0\0\0" + bytes(8)])
def test_values_that_are_no_acl_are_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="ACL"):
        acl_to_disk(value)


@pytest.mark.parametrize("value", [b"", b"\2\0\0\0\1"])
def test_a_change_of_mode_leaves_alone_what_is_no_acl(value: bytes) -> None:
    assert acl_after_chmod(value, 0o700) == value


@pytest.mark.parametrize("mode", [0o000, 0o700, 0o754, 0o1777, 0o642])
@pytest.mark.parametrize("masked", [True, False])
def test_acls_follow_a_change_of_mode_as_the_kernels_do(
    tmp_path: Path, mode: int, masked: bool
) -> None:
    entries = [(1, 7, 0xFFFF_FFFF), (4, 5, 0xFFFF_FFFF), (32, 4, 0xFFFF_FFFF)]
    if masked:
        entries[1:1] = [(2, 6, 1000)]
        entries[3:3] = [(16, 7, 0xFFFF_FFFF)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(tmp_path, "system.posix_acl_access", value)
    except OSError as error:
        pytest.skip(f"no ACLs here: {error}")
    tmp_path.chmod(mode)
    try:
        expected = os.getxattr(tmp_path, "system.posix_acl_access")
    except OSError:  # Linux keeps no ACL that says what the mode says
        assert not masked
        assert [
            bits for _, bits, _ in struct.iter_unpack("<HHI", acl_after_chmod(value, mode)[4:])
        ] == [
            mode >> 6 & 7,
            mode >> 3 & 7,
            mode & 7,
        ]
    else:
        assert acl_after_chmod(value, mode) == expected
    tmp_path.chmod(0o700)


@settings(deadline=None)
@given(used=st.integers(0, 32768), valid=st.integers(0, 32768))
def test_bitmaps_mark_what_is_used_and_what_does_not_exist(used: int, valid: int) -> None:
    used = min(used, valid)
    bits = np.unpackbits(np.frombuffer(prefix_bitmap(used, valid), np.uint8), bitorder="little")
    assert bits[:used].all()
    assert not bits[used:valid].any()
    assert bits[valid:].all()


@settings(deadline=None)
@given(content_end=st.integers(9, 33_000_000), files=st.integers(0, 1_000_000))
def test_layer_layouts_hold_what_they_have_to(content_end: int, files: int) -> None:
    layout = LayerLayout.plan(content_end=content_end, files=files)
    assert layout.groups * layout.inodes_per_group >= files + 11
    assert layout.inodes_per_group % 16 == 0
    assert layout.inodes_per_group <= 32768
    assert layout.used_end == content_end + layout.groups * (layout.table_blocks + 2)
    assert (layout.groups - 1) * 32768 < layout.blocks <= layout.groups * 32768
    assert layout.used_end <= layout.blocks

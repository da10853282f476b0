"""The scanner finds the same in a tar however the stream is cut."""

from __future__ import annotations

import tarfile
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.ext4.tarheader import RawMembers, decode_members, parse_number
from snapshotter.ext4.tarscan import TarScanner
from snapshotter.units import GIB, MIB
from tests.snapshotter.ext4.layers import DIR, LNK, SYM, member, tar

SAMPLE = tar(
    member("d", kind=DIR),
    member("d/" + "long" * 40, b"a" * 700, xattrs={"user.a": "b"}, mtime=1.5),
    member("s", kind=SYM, link="t" * 120),
    member("f", b"b" * 9000),
    member("empty"),
    member("full", b"c" * 4096),
    member("h", kind=LNK, link="f"),
)
DATA = b"".join(data + bytes(-len(data) % 4096) for data in (b"a" * 700, b"b" * 9000, b"c" * 4096))


def scan(cuts: list[int]) -> tuple[bytes, RawMembers, int]:
    scanner = TarScanner(first_block=9, end_block=1000, max_file=MIB, max_metadata=MIB)
    data = b""
    for start, end in zip([0, *cuts], [*cuts, len(SAMPLE)], strict=True):
        data += b"".join(scanner.feed(memoryview(SAMPLE)[start:end]))
    scanner.finish()
    assert scanner.ended
    assert scanner.next_block == 9 + len(DATA) // 4096
    return data, scanner.take(), scanner.next_block


WHOLE = scan([])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, len(SAMPLE)), max_size=12).map(sorted))
def test_any_split_of_the_stream_gives_the_same(cuts: list[int]) -> None:
    assert scan(cuts) == WHOLE


def test_single_bytes_give_the_same() -> None:
    assert scan(list(range(1, len(SAMPLE)))) == WHOLE


def test_members_are_decoded_by_columns() -> None:
    data, raw, _ = WHOLE
    assert data == DATA
    members = decode_members(raw)
    assert members.names == [b"d/", b"d/" + b"long" * 40, b"s", b"f", b"empty", b"full", b"h"]
    assert members.links[2] == b"t" * 120
    assert members.size.tolist() == [0, 700, 0, 9000, 0, 4096, 0]
    assert members.block.tolist() == [9, 9, 10, 10, 13, 13, 14]
    assert (members.mtime[1], members.mtime_ns[1]) == (1, 500_000_000)
    assert members.xattrs == {1: {b"user.a": b"b"}}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["PAX", "GNU"])
def test_sizes_that_octal_cannot_hold_are_read(form: Literal[1, 2]) -> None:
    """The data is not there: what counts is where the next file goes, and that more is wanted."""
    size = 9 * GIB + 1
    info = tarfile.TarInfo("large")
    info.size = size
    scanner = TarScanner(first_block=9, end_block=1 << 24, max_file=16 * GIB, max_metadata=MIB)
    assert scanner.feed(memoryview(info.tobuf(form))) == []
    assert scanner.next_block == 9 + 9 * GIB // 4096 + 1
    chunk = memoryview(bytes(16 * MIB))
    for _ in range(9 * 64):
        assert [len(part) for part in scanner.feed(chunk)] == [len(chunk)]
    assert [len(part) for part in scanner.feed(chunk[:600])] == [1, 4095]
    members = decode_members(scanner.take())
    assert members.names == [b"large"]
    assert members.size.tolist() == [size]


def test_a_batch_without_members_is_empty() -> None:
    assert len(decode_members(RawMembers())) == 0


@settings(deadline=None)
@given(st.integers(0, (1 << 63) - 1), st.sampled_from([8, 12]))
def test_numbers_come_back_in_base_256_and_octal(value: int, width: int) -> None:
    value %= 1 << (8 * width - 2)
    assert parse_number((1 << 8 * width - 1 | value).to_bytes(width, "big")) == value
    octal = value % (1 << 3 * (width - 1))
    assert parse_number(b"%0*o\0" % (width - 1, octal)) == octal
    assert parse_number(b"%*o " % (width - 1, octal)) == octal
    assert parse_number((-1 - octal).to_bytes(width, "big", signed=True)) == -1 - octal

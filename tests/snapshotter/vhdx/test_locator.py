from __future__ import annotations

import contextlib
import struct
import tracemalloc
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from snapshotter.errors import InvalidArgumentError, VhdxCorruptError, VhdxUnsupportedError
from snapshotter.vhdx.locator import PATH_KEYS, ParentLinks, ParentLocator

GUID = UUID("83ed0ec1-24c8-49a6-a959-5e4bd1288985")
AT = 0x21_0038

# The item as [MS-VHDX] 2.6.2.6 lays it out, built by hand: an oracle beside our own writer.
GOLDEN = (
    UUID("B04AEFB7-D19E-4A81-B789-25B8E9445913").bytes_le
    + struct.pack("<HH", 0, 2)
    + struct.pack("<IIHH", 44, 72, 28, 76)
    + struct.pack("<IIHH", 148, 174, 26, 20)
    + "parent_linkage".encode("utf-16-le")
    + "{83ed0ec1-24c8-49a6-a959-5e4bd1288985}".encode("utf-16-le")
    + "relative_path".encode("utf-16-le")
    + ".\\base.vhd".encode("utf-16-le")
)

texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40
)


def test_the_golden_bytes_are_read_and_written() -> None:
    links = ParentLinks(GUID, {"relative_path": ".\\base.vhd"})
    assert links.locator().pack() == GOLDEN
    assert ParentLinks.of(ParentLocator.unpack(GOLDEN, at=AT), at=AT) == links


@given(values=st.dictionaries(texts, texts, max_size=8))
@example(values={"k": "\U0001f600"})
def test_keys_and_values_survive_the_round_trip(values: dict[str, str]) -> None:
    assert ParentLocator.unpack(ParentLocator(values).pack(), at=AT).values == values


@given(
    linkage=st.uuids(),
    linkage2=st.none() | st.uuids(),
    paths=st.dictionaries(st.sampled_from(PATH_KEYS), texts, min_size=1),
)
def test_links_survive_the_round_trip(
    linkage: UUID, linkage2: UUID | None, paths: dict[str, str]
) -> None:
    links = ParentLinks(linkage, paths, linkage2)
    read = ParentLinks.of(ParentLocator.unpack(links.locator().pack(), at=AT), at=AT)
    assert read == links
    assert [key for key, _ in read.tried()] == [key for key in PATH_KEYS if key in paths]
    assert read.accepts(linkage)
    assert linkage2 is None or read.accepts(linkage2)


def test_a_parent_in_another_state_is_not_accepted() -> None:
    links = ParentLinks(GUID, {"relative_path": "x"})
    assert not links.accepts(UUID(int=5))


@given(raw=st.binary(max_size=300))
def test_any_bytes_give_a_locator_or_a_typed_error(raw: bytes) -> None:
    item = GOLDEN[:16] + raw
    with contextlib.suppress(VhdxCorruptError, VhdxUnsupportedError):
        ParentLinks.of(ParentLocator.unpack(item, at=AT), at=AT)


@given(at=st.integers(16, len(GOLDEN) - 1), value=st.integers(0, 255))
def test_one_damaged_byte_gives_a_locator_or_a_typed_error(at: int, value: int) -> None:
    item = bytearray(GOLDEN)
    item[at] = value
    with contextlib.suppress(VhdxCorruptError):
        ParentLinks.of(ParentLocator.unpack(bytes(item), at=AT), at=AT)


def changed(offset: int, layout: str, value: int) -> bytes:
    item = bytearray(GOLDEN)
    struct.pack_into(layout, item, offset, value)
    return bytes(item)


@pytest.mark.parametrize(
    ("item", "structure"),
    [
        (GOLDEN[:19], "parent locator"),
        (changed(18, "<H", 0xFFFF), "parent locator KeyValueCount"),
        (changed(20, "<I", 0xFFFF_FFFF), "parent locator offset"),
        (changed(24, "<I", 19), "parent locator offset"),
        (changed(28, "<H", 27), "parent locator text"),
        (changed(30, "<H", 0), "parent locator text"),
        (changed(30, "<H", 0xFFFE), "parent locator"),
        (changed(72, "<H", 0xD800), "parent locator text"),
        (changed(72, "<H", 0), "parent locator text"),
        (changed(74, "<H", ord("z")), "parent_linkage"),
        (changed(44, "<H", ord("q")), "parent locator"),
        (changed(148, "<H", ord("q")), "parent locator"),
        (changed(18, "<H", 1), "parent locator"),
    ],
)
def test_each_damage_is_refused_by_name(item: bytes, structure: str) -> None:
    with pytest.raises(VhdxCorruptError) as caught:
        ParentLinks.of(ParentLocator.unpack(item, at=AT), at=AT)
    assert caught.value.structure == structure
    assert caught.value.section.startswith("2.6.2.6")


def test_a_key_is_listed_once() -> None:
    item = changed(36 - 4, "<I", 44)  # the second entry's key becomes the first's
    item = item[:40] + struct.pack("<H", 28) + item[42:]
    with pytest.raises(VhdxCorruptError, match="listed twice"):
        ParentLocator.unpack(item, at=AT)


def test_entries_that_share_one_long_text_do_not_multiply_it() -> None:
    length, count = 0xFFFE, 60_000
    head = ParentLocator({}).pack()[:18] + struct.pack("<H", count)
    text_at = 20 + 12 * count
    entries = struct.pack("<IIHH", text_at, text_at, length, length) * count
    item = head + entries + b"a\0" * (length // 2)
    tracemalloc.start()
    try:
        with pytest.raises(VhdxCorruptError):
            ParentLocator.unpack(item, at=AT)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_another_type_of_locator_is_not_supported() -> None:
    with pytest.raises(VhdxUnsupportedError, match="only VHDX"):
        ParentLocator.unpack(UUID(int=1).bytes_le + GOLDEN[16:], at=AT)


@pytest.mark.parametrize("value", ["", "a\0b", "\ud800", "x" * 40_000])
def test_a_text_that_cannot_be_stored_is_refused(value: str) -> None:
    with pytest.raises(InvalidArgumentError):
        ParentLocator({"key": value}).pack()


def test_a_locator_longer_than_an_item_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="1 MiB"):
        ParentLocator({f"key{number}": "x" * 30_000 for number in range(20)}).pack()

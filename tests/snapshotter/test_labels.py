from __future__ import annotations

from pathlib import Path

import pytest

from snapshotter.errors import InvalidArgumentError
from snapshotter.labels import (
    LOCATION,
    MAX_SIZE,
    OWNER_KEY,
    REUSE_SCRATCH,
    SIZE_BYTES,
    SIZE_GB,
    OwnScratch,
    ScratchRequest,
    SharedScratch,
    scratch_request,
    without_empty,
)
from snapshotter.platform.windows import WindowsPlatform
from snapshotter.units import GIB, MIB
from tests.fakes.ntfs import FakeNtfs

ALLOWED = Path("/srv/fast")


def request(labels: dict[str, str]) -> ScratchRequest:
    return scratch_request(labels, default_size=20 * GIB, locations=[ALLOWED])


def test_without_labels_the_default_size_is_taken() -> None:
    assert request({}) == OwnScratch(20 * GIB)


def test_the_gigabyte_label_counts_gib() -> None:
    assert request({SIZE_GB: "30"}) == OwnScratch(30 * GIB)


def test_zero_gigabytes_stand_for_the_default() -> None:
    assert request({SIZE_GB: "0"}) == OwnScratch(20 * GIB)


def test_the_byte_label_is_rounded_up_to_whole_mib() -> None:
    assert request({SIZE_BYTES: str(GIB + 1)}) == OwnScratch(GIB + MIB)


def test_both_size_labels_may_agree() -> None:
    assert request({SIZE_GB: "2", SIZE_BYTES: str(2 * GIB)}) == OwnScratch(2 * GIB)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (SIZE_GB, "abc"),
        (SIZE_GB, "-1"),
        (SIZE_GB, "1.5"),
        (SIZE_GB, "0x10"),
        (SIZE_GB, " 20"),
        (SIZE_GB, "٢"),
        (SIZE_GB, "2147483648"),
        (SIZE_GB, "9" * 40),
        (SIZE_BYTES, "1000"),
        (SIZE_BYTES, "lots"),
        (MAX_SIZE, "-1"),
        (MAX_SIZE, "1.5G"),
        (MAX_SIZE, "1000"),
        (REUSE_SCRATCH, "True"),
        (REUSE_SCRATCH, "yes"),
        (LOCATION, "/srv/slow"),
        (LOCATION, "/srv/fast/../slow"),
        (LOCATION, "srv/fast"),
    ],
)
def test_a_bad_value_is_refused_naming_label_and_value(name: str, value: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        request({name: value})
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)


def test_sizes_that_disagree_are_refused_naming_both_labels() -> None:
    with pytest.raises(InvalidArgumentError, match=r"size-gb.*sizebytes"):
        request({SIZE_GB: "2", SIZE_BYTES: str(3 * GIB)})


def test_an_allowed_location_is_taken_however_it_is_spelled() -> None:
    assert request({LOCATION: "/srv/./fast/"}) == OwnScratch(20 * GIB, "/srv/fast")


def test_sharing_needs_an_owner() -> None:
    with pytest.raises(InvalidArgumentError, match="owner"):
        request({REUSE_SCRATCH: "true"})


def test_an_owner_alone_shares_nothing() -> None:
    assert request({OWNER_KEY: "pod"}) == OwnScratch(20 * GIB)


def test_sharing_with_an_owner() -> None:
    labels = {REUSE_SCRATCH: "true", OWNER_KEY: "pod"}
    assert request(labels) == SharedScratch("pod")
    assert request({**labels, SIZE_GB: "2"}) == SharedScratch("pod", 2 * GIB)


def test_labels_without_a_value_are_no_labels() -> None:
    assert without_empty({"a": "", "b": "1"}) == {"b": "1"}


def test_a_location_inside_an_allowed_one_is_taken() -> None:
    assert request({LOCATION: "/srv/fast/./a/b"}) == OwnScratch(20 * GIB, "/srv/fast/a/b")


def test_a_location_whose_name_only_begins_as_an_allowed_one_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="not inside an allowed"):
        request({LOCATION: "/srv/faster"})


def test_on_windows_the_spelling_of_a_location_does_not_matter() -> None:
    fold = WindowsPlatform(FakeNtfs()).fold
    for text in (r"c:\FAST/Sub", r"\\?\C:\fast\sub", r"C:\fast\x\..\SUB"):
        found = scratch_request(
            {LOCATION: text}, default_size=GIB, locations=[Path("c:\\fast")], fold=fold
        )
        assert isinstance(found, OwnScratch)
        assert fold(found.location) == "c:/fast/sub"
    with pytest.raises(InvalidArgumentError):
        scratch_request(
            {LOCATION: r"\\server\fast"},
            default_size=GIB,
            locations=[Path("c:\\fast")],
            fold=fold,
        )


def test_a_maximum_is_the_size_where_no_other_label_asks_and_is_never_exceeded() -> None:
    assert request({MAX_SIZE: str(2 * GIB + MIB - 1)}) == OwnScratch(2 * GIB)
    assert request({MAX_SIZE: str(3 * GIB), SIZE_GB: "2"}) == OwnScratch(2 * GIB)
    assert request({MAX_SIZE: "0"}) == OwnScratch(20 * GIB)
    with pytest.raises(InvalidArgumentError, match=r"max-size.*asks for"):
        request({MAX_SIZE: str(2 * GIB), SIZE_GB: "3"})

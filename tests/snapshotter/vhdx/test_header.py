from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.errors import VhdxCorruptError, VhdxUnsupportedError
from snapshotter.units import MIB
from snapshotter.vhdx.header import NO_GUID, Header, current_header

HEADER = Header(
    sequence_number=7,
    file_write_guid=UUID(int=1),
    data_write_guid=UUID(int=2),
    log_guid=NO_GUID,
    log_version=0,
    version=1,
    log_length=MIB,
    log_offset=MIB,
)
NEWER = replace(HEADER, sequence_number=8)
INVALID = bytes(4096)


@settings(max_examples=50, deadline=None)
@given(
    sequence=st.integers(0, 2**64 - 1),
    guids=st.tuples(st.uuids(), st.uuids(), st.uuids()),
    length=st.integers(0, 4095).map(lambda n: n * MIB),
    offset=st.integers(1, 2**30).map(lambda n: n * MIB),
)
def test_a_packed_header_reads_back(
    sequence: int, guids: tuple[UUID, UUID, UUID], length: int, offset: int
) -> None:
    header = Header(sequence, *guids, 0, 1, length, offset)
    assert Header.unpack(header.pack(), at=65536) == header


def test_guids_are_stored_little_endian() -> None:
    header = replace(HEADER, file_write_guid=UUID("00112233-4455-6677-8899-aabbccddeeff"))
    assert header.pack()[16:32].hex() == "33221100554477668899aabbccddeeff"


def test_the_greater_sequence_number_is_current() -> None:
    assert current_header(HEADER.pack(), NEWER.pack()) == NEWER
    assert current_header(NEWER.pack(), HEADER.pack()) == NEWER


def test_the_only_valid_header_is_current() -> None:
    assert current_header(HEADER.pack(), INVALID) == HEADER
    assert current_header(INVALID, HEADER.pack()) == HEADER


def test_two_equal_headers_are_accepted() -> None:
    assert current_header(HEADER.pack(), HEADER.pack()) == HEADER


def test_two_headers_of_one_sequence_number_that_differ_are_refused() -> None:
    other = replace(HEADER, data_write_guid=UUID(int=9))
    with pytest.raises(VhdxCorruptError, match="sequence number 7"):
        current_header(HEADER.pack(), other.pack())


def test_no_valid_header_is_refused_with_the_reason() -> None:
    with pytest.raises(VhdxCorruptError, match="signature") as caught:
        current_header(INVALID, INVALID)
    assert caught.value.section == "2.2.2"


@pytest.mark.parametrize("position", [0, 4, 8, 20, 60, 79, 4095])
def test_every_flipped_bit_makes_a_header_invalid(position: int) -> None:
    raw = bytearray(HEADER.pack())
    raw[position] ^= 0x10
    with pytest.raises(VhdxCorruptError):
        Header.unpack(bytes(raw), at=65536)


def test_a_short_header_is_invalid() -> None:
    with pytest.raises(VhdxCorruptError, match="ends inside"):
        Header.unpack(HEADER.pack()[:100], at=65536)


def test_an_unknown_version_is_not_supported() -> None:
    with pytest.raises(VhdxUnsupportedError, match="version 2"):
        current_header(replace(NEWER, version=2).pack(), HEADER.pack())


def test_an_unknown_log_version_matters_only_when_there_is_a_log() -> None:
    quiet = replace(NEWER, log_version=1)
    assert current_header(quiet.pack(), HEADER.pack()) == quiet
    with pytest.raises(VhdxUnsupportedError, match="log version 1"):
        current_header(replace(quiet, log_guid=UUID(int=3)).pack(), HEADER.pack())


@pytest.mark.parametrize(
    ("bad", "structure"),
    [
        (replace(NEWER, log_length=MIB + 4096), "LogLength"),
        (replace(NEWER, log_offset=MIB + 4096), "LogOffset"),
        (replace(NEWER, log_offset=0), "LogOffset"),
    ],
)
def test_a_misplaced_log_is_refused(bad: Header, structure: str) -> None:
    with pytest.raises(VhdxCorruptError) as caught:
        current_header(bad.pack(), HEADER.pack())
    assert caught.value.structure == structure

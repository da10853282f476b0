from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.winrmd.seal import SealedPart, SealError, frame, is_sealed, parse

_GOLDEN = (
    b"--Encrypted Boundary\r\n"
    b"\tContent-Type: application/HTTP-SPNEGO-session-encrypted\r\n"
    b"\tOriginalContent: type=application/soap+xml;charset=UTF-8;Length=4\r\n"
    b"--Encrypted Boundary\r\n"
    b"\tContent-Type: application/octet-stream\r\n"
    b"\x02\x00\x00\x00HHdata--Encrypted Boundary--\r\n"
)

parts = st.lists(
    st.builds(
        lambda header, data: SealedPart(header, data, len(data)),
        st.binary(min_size=1, max_size=60),
        st.binary(max_size=300) | st.just(b"x--Encrypted Boundary\r\n--Encrypted Boundary--\r\n"),
    ),
    min_size=1,
    max_size=4,
)


def test_the_frame_is_the_one_of_the_specification() -> None:
    content_type, body = frame([SealedPart(b"HH", b"data", 4)])
    assert body == _GOLDEN
    assert content_type == (
        'multipart/encrypted;protocol="application/HTTP-SPNEGO-session-encrypted";'
        'boundary="Encrypted Boundary"'
    )


@given(parts)
def test_what_is_framed_is_parsed_again(given_parts: list[SealedPart]) -> None:
    content_type, body = frame(given_parts)
    assert is_sealed(content_type)
    assert parse(body) == given_parts


@given(st.integers(0, len(_GOLDEN) - 1))
def test_a_cut_message_is_refused(at: int) -> None:
    if _GOLDEN[:at].endswith(b"--Encrypted Boundary--"):
        return  # all there; clients differ in the last line break
    with pytest.raises(SealError):
        parse(_GOLDEN[:at])


@given(st.binary(max_size=300))
def test_no_input_breaks_the_parser(data: bytes) -> None:
    with pytest.raises(SealError):
        parse(data)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Length=4", b"Length=400"),
        (b"\x02\x00\x00\x00", b"\xff\xff\xff\xff"),
        (b"\x02\x00\x00\x00", b"\x00\x00\x00\x00"),
        (b"octet-stream", b"octet-strem"),
        (b"--Encrypted Boundary--\r\n", b"--Encrypted Boundary--\r\nmore"),
    ],
)
def test_what_does_not_add_up_is_refused(old: bytes, new: bytes) -> None:
    with pytest.raises(SealError):
        parse(_GOLDEN.replace(old, new))

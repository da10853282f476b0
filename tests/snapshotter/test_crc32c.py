from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.crc32c import crc32c, crc32c_raw


def bitwise(data: bytes, crc: int) -> int:
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


def test_the_check_value_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200), seed=st.integers(0, 0xFFFF_FFFF))
def test_the_raw_form_is_the_plain_division(data: bytes, seed: int) -> None:
    assert crc32c_raw(seed, data) == bitwise(data, seed)


@settings(max_examples=50, deadline=None)
@given(first=st.binary(max_size=100), second=st.binary(max_size=100))
def test_a_long_input_may_be_fed_in_parts(first: bytes, second: bytes) -> None:
    assert crc32c(second, crc32c(first)) == crc32c(first + second)
    assert crc32c_raw(crc32c_raw(7, first), second) == crc32c_raw(7, first + second)


def test_every_kind_of_buffer_is_taken() -> None:
    assert crc32c(bytearray(b"abc")) == crc32c(memoryview(b"abc")) == crc32c(b"abc")

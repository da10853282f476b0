"""Layer streams are decompressed by their first bytes, and damage is never taken for an end."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.compression import gains_from_a_thread, open_stream
from snapshotter.errors import LayerError

CONTENT = random.Random(7).randbytes(300_000) + bytes(400_000) + b"the end"
SKIPPABLE = b"\x5a\x2a\x4d\x18\x04\0\0\0abcd"


def decompressed(raw: bytes) -> bytes:
    return open_stream(io.BytesIO(raw)).read()


def zstd(data: bytes, *, checksum: bool = False, size: bool = True) -> bytes:
    options = zstandard.ZstdCompressor(write_checksum=checksum, write_content_size=size)
    return options.compress(data)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(CONTENT, id="plain"),
        pytest.param(gzip.compress(CONTENT, 1), id="gzip"),
        pytest.param(gzip.compress(CONTENT[:9], 1) + gzip.compress(CONTENT[9:], 1), id="members"),
        pytest.param(gzip.compress(CONTENT, 1) + bytes(512), id="gzip with zero padding"),
        pytest.param(zstd(CONTENT), id="zstd"),
        pytest.param(zstd(CONTENT, checksum=True), id="zstd with checksum"),
        pytest.param(zstd(CONTENT, size=False), id="zstd without size"),
        pytest.param(zstd(CONTENT[:9]) + SKIPPABLE + zstd(CONTENT[9:]), id="frames"),
        pytest.param(SKIPPABLE + zstd(CONTENT), id="skippable first"),
    ],
)
def test_every_form_of_a_layer_reads_the_same(raw: bytes) -> None:
    assert decompressed(raw) == CONTENT


@pytest.mark.parametrize(
    ("raw", "gains"), [(gzip.compress(CONTENT, 1), True), (zstd(CONTENT), True), (CONTENT, False)]
)
def test_what_is_decompressed_is_worth_a_thread(raw: bytes, *, gains: bool) -> None:
    assert gains_from_a_thread(open_stream(io.BytesIO(raw))) == gains


@pytest.mark.parametrize("raw", [b"", b"x", b"\x28\xb5", b"ustar"])
def test_streams_shorter_than_any_magic_come_back_unchanged(raw: bytes) -> None:
    assert decompressed(raw) == raw


def test_reading_starts_where_the_stream_stands_and_leaves_it_open() -> None:
    raw = io.BytesIO(b"skipped" + gzip.compress(b"layer"))
    raw.seek(7)
    with open_stream(raw) as stream:
        assert stream.read() == b"layer"
    assert not raw.closed


@pytest.mark.parametrize("compress", [lambda data: gzip.compress(data, 1), zstd])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.999])
def test_a_stream_cut_short_is_an_error(compress: Callable[[bytes], bytes], kept: float) -> None:
    raw = compress(CONTENT)
    with pytest.raises(LayerError, match="cut short"):
        decompressed(raw[: int(len(raw) * kept)])


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(1, 400))
def test_zstd_cut_anywhere_in_a_later_frame_is_an_error(cut: int) -> None:
    first, second = zstd(b"a" * 1000), zstd(random.Random(1).randbytes(300), checksum=True)
    cut = min(cut, len(second) - 1)
    with pytest.raises(LayerError):
        decompressed(first + SKIPPABLE + second[:cut])


@pytest.mark.parametrize("compress", [lambda data: gzip.compress(data, 1), zstd])
def test_damage_in_the_middle_is_an_error(compress: Callable[[bytes], bytes]) -> None:
    raw = bytearray(compress(CONTENT))
    raw[len(raw) // 3] ^= 0xFF
    raw[len(raw) // 3 + 1 : len(raw) // 3 + 60] = bytes(59)
    if raw[:2] == b"\x28\xb5":  # without a checksum zstd cannot see changed literals
        raw = bytearray(zstd(CONTENT, checksum=True))
        raw[-2] ^= 1
    with pytest.raises(LayerError, match="damaged"):
        decompressed(bytes(raw))


@pytest.mark.parametrize("compress", [lambda data: gzip.compress(data, 1), zstd])
def test_garbage_after_the_stream_is_an_error(compress: Callable[[bytes], bytes]) -> None:
    with pytest.raises(LayerError):
        decompressed(compress(CONTENT) + b"not a stream at all")


@pytest.mark.parametrize("compress", [bz2.compress, lzma.compress])
def test_other_compressions_are_named(compress: Callable[[bytes], bytes]) -> None:
    with pytest.raises(LayerError, match=r"bzip2|xz"):
        open_stream(io.BytesIO(compress(CONTENT)))


class _Dribble(io.RawIOBase):
    """Gives at most three bytes a read."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        part = self._data.read(min(3, len(buffer)))
        buffer[: len(part)] = part
        return len(part)


@pytest.mark.parametrize("compress", [bytes, lambda data: gzip.compress(data, 1), zstd])
def test_short_reads_of_the_source_do_not_matter(compress: Callable[[bytes], bytes]) -> None:
    raw = compress(CONTENT[-50_000:])
    assert open_stream(_Dribble(raw)).read() == CONTENT[-50_000:]  # type: ignore[arg-type]

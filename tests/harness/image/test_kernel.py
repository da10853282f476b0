"""bzImages and the kernels in them. Oracles: each format's own packer, `lz4` where installed."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import struct
import subprocess
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import ImageBuildError
from harness.image.kernel import BzImage, decompress_lz4_legacy

VMLINUX = b"\x7fELF" + bytes(range(256)) * 400 + b"\0" * 5000
LZ4_MAGIC = bytes.fromhex("02214c18")


def sized(compressed: bytes) -> bytes:
    return compressed + struct.pack("<I", len(VMLINUX))


def lz4_literals(data: bytes) -> bytes:
    """An LZ4 legacy frame of one block without any match."""
    rest = len(data) - 15
    block = b"\xf0" + b"\xff" * (rest // 255) + bytes([rest % 255]) + data
    return LZ4_MAGIC + struct.pack("<I", len(block)) + block


def bzimage(payload: bytes, *, release: bytes = b"6.1.0-test (who@where) #1\0") -> bytes:
    setup_sectors = 3
    head = bytearray((setup_sectors + 1) * 512)
    head[0x1F1] = setup_sectors
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, 0x020F)
    struct.pack_into("<H", head, 0x20E, 0x300 - 0x200)
    head[0x300 : 0x300 + len(release)] = release
    gap = 64
    struct.pack_into("<II", head, 0x248, gap, len(payload))
    return bytes(head) + bytes(gap) + payload + b"after the payload"


@pytest.mark.parametrize(
    "compress",
    [
        lambda data: gzip.compress(data, mtime=0),  # its own trailer ends with the size
        lambda data: sized(lzma.compress(data, check=lzma.CHECK_CRC32)),
        lambda data: sized(lzma.compress(data, format=lzma.FORMAT_ALONE)),
        lambda data: sized(bz2.compress(data)),
        lambda data: sized(zstandard.ZstdCompressor().compress(data)),
        lambda data: sized(lz4_literals(data)),
    ],
    ids=["gzip", "xz", "lzma", "bzip2", "zstd", "lz4"],
)
def test_the_kernel_is_extracted_from_every_compression(
    compress: Callable[[bytes], bytes],
) -> None:
    image = BzImage.parse(bzimage(compress(VMLINUX)))
    assert image.release == "6.1.0-test"
    assert image.vmlinux() == VMLINUX


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "boot header is missing"),
        (b"\x7fELF" + bytes(2000), "boot header is missing"),
        (bzimage(gzip.compress(VMLINUX, mtime=0))[:-40], "cut short"),
    ],
)
def test_what_is_no_bzimage_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(ImageBuildError, match=problem):
        BzImage.parse(data)


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (b"\x89LZO" + bytes(100), "no compression that can be read"),
        (sized(gzip.compress(VMLINUX, mtime=0)[:50]), "gzip payload"),
        (sized(b"\xfd7zXZ\0" + b"x" * 100), "xz payload is damaged"),
        (sized(lz4_literals(VMLINUX)[:-9]), "lz4 payload"),
        (gzip.compress(b"not a kernel", mtime=0), "holds no ELF file"),
    ],
)
def test_a_damaged_payload_is_refused(payload: bytes, problem: str) -> None:
    with pytest.raises(ImageBuildError, match=problem):
        BzImage.parse(bzimage(payload)).vmlinux()


def test_overlapping_lz4_matches_repeat_the_pattern() -> None:
    # 2 literals, a match of 19 + 5 bytes at distance 2, then 3 literals.
    block = b"\x2fab\x02\x00\x05" + b"\x30xyz"
    frame = LZ4_MAGIC + struct.pack("<I", len(block)) + block
    assert decompress_lz4_legacy(frame) == b"ab" * 13 + b"xyz"


def test_an_lz4_match_before_the_start_is_refused() -> None:
    block = b"\x10a\x05\x00" + b"\x10b"
    with pytest.raises(ValueError, match="5 bytes back"):
        decompress_lz4_legacy(LZ4_MAGIC + struct.pack("<I", len(block)) + block)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=30), st.integers(1, 90)), max_size=30))
def test_the_lz4_decoder_agrees_with_the_lz4_program(runs: list[tuple[bytes, int]]) -> None:
    program = shutil.which("lz4")
    if program is None:
        pytest.skip("the lz4 program is not installed")
    data = b"".join(piece * count for piece, count in runs)
    packed = subprocess.run(
        [program, "-l", "-9", "-c"], input=data, capture_output=True, check=True
    ).stdout
    assert decompress_lz4_legacy(packed + struct.pack("<I", len(data) | 1 << 31)) == data

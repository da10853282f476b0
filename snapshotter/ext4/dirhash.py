"""The hash by which ext4 finds a name in a large directory: half of MD4, of many names at once.

Linux fs/ext4/hash.c (half_md4_transform, str2hashbuf_signed). A few thousand names as columns of
numpy arrays take about a microsecond each.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

_CHUNK: Final = 32  # bytes of the name in one round of the hash
_WORDS: Final = _CHUNK // 4
_SEED: Final = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)  # where the file system has none
_END_OF_DIRECTORY: Final = 0xFFFF_FFFE  # taken: the kernel's mark for "read to the end"

Words = NDArray[np.uint32]

# (word of the name, bits to rotate) of each step, RFC 1320 halved.
_ROUND_1: Final = tuple(zip(range(8), (3, 7, 11, 19) * 2, strict=True))
_ROUND_2: Final = tuple(zip((1, 3, 5, 7, 0, 2, 4, 6), (3, 5, 9, 13) * 2, strict=True))
_ROUND_3: Final = tuple(zip((3, 7, 2, 6, 1, 5, 0, 4), (3, 9, 11, 15) * 2, strict=True))
_K2, _K3 = np.uint32(0o13240474631), np.uint32(0o15666365641)


def hash_names(names: Sequence[bytes], seed: bytes) -> Words:
    """Return the half-MD4 hash of each name, signed characters; `seed` is s_hash_seed.

    Names have 1 to 255 bytes and no NUL.
    """
    words = struct.unpack("<4I", seed)
    lengths = np.fromiter(map(len, names), np.int64, len(names))
    width = -(-int(lengths.max(initial=1)) // _CHUNK) * _CHUNK
    text = np.array(names, f"S{width}").view(np.int8).reshape(len(names), width)
    state = [np.full(len(names), word, np.uint32) for word in (words if any(words) else _SEED)]
    for start in range(0, width, _CHUNK):
        more = np.flatnonzero(lengths > start)
        columns = _words(text[more, start : start + _CHUNK], lengths[more] - start)
        mixed = _transform([part[more] for part in state], columns)
        for part, value in zip(state, mixed, strict=True):
            part[more] = value
    result: Words = state[1] & np.uint32(0xFFFF_FFFE)
    result[result == _END_OF_DIRECTORY] = _END_OF_DIRECTORY - 2
    return result


def _words(text: NDArray[np.int8], left: NDArray[np.int64]) -> list[Words]:
    """Return the eight words of one chunk; what the name does not fill is its length."""
    pad = (left | left << 8).astype(np.uint32)
    pad |= pad << np.uint32(16)
    signed = text.astype(np.int32).view(np.uint32)
    columns = []
    for word in range(_WORDS):
        value = pad
        for at in range(4 * word, 4 * word + 4):
            value = np.where(at < left, signed[:, at] + (value << np.uint32(8)), value)
        columns.append(value)
    return columns


def _transform(state: list[Words], words: list[Words]) -> list[Words]:
    a, b, c, d = state
    for index, bits in _ROUND_1:
        a = _rotate(a + (d ^ (b & (c ^ d))) + words[index], bits)
        a, b, c, d = d, a, b, c
    for index, bits in _ROUND_2:
        a = _rotate(a + ((b & c) + ((b ^ c) & d)) + words[index] + _K2, bits)
        a, b, c, d = d, a, b, c
    for index, bits in _ROUND_3:
        a = _rotate(a + (b ^ c ^ d) + words[index] + _K3, bits)
        a, b, c, d = d, a, b, c
    return [old + new for old, new in zip(state, (a, b, c, d), strict=True)]


def _rotate(value: Words, bits: int) -> Words:
    rotated: Words = value << np.uint32(bits) | value >> np.uint32(32 - bits)
    return rotated

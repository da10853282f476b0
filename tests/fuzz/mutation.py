"""Mutations that break structures rather than noise: bit flips, boundary numbers, cuts, splices."""

from __future__ import annotations

import random

_INTERESTING = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 32)


def mutate(seed: bytes, rng: random.Random) -> bytes:
    """Return `seed` with one to eight random mutations; the length mostly stays."""
    data = bytearray(seed)
    for _ in range(rng.randint(1, 8)):
        if not data:
            break
        at = rng.randrange(len(data))
        kind = rng.randrange(6)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(_INTERESTING) % (1 << (8 * width))
            raw = number.to_bytes(width, "little")
            data[at : at + width] = raw if rng.random() < 0.5 else raw[::-1]
        elif kind == 2:
            length = rng.randint(1, 64)
            other = rng.randrange(len(data))
            data[at : at + length] = data[other : other + length]
        elif kind == 3:
            data[at : at + rng.randint(1, 16)] = rng.randbytes(rng.randint(1, 16))
        elif kind == 4 and rng.random() < 0.2:
            del data[at:]
        else:
            data[at] = rng.randrange(256)
    return bytes(data)

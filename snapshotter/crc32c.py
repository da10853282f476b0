"""CRC-32C (Castagnoli), the checksum of VHDX and ext4 metadata, in the two conventions in use."""

from __future__ import annotations

import google_crc32c

_ALL_ONES = 0xFFFF_FFFF


def crc32c(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """Return the standard CRC-32C of `data` (initial and final inversion), as VHDX stores it.

    `value` is the CRC of what precedes `data`, so that a long input can be fed in parts.
    """
    checksum: int = google_crc32c.extend(value, data if isinstance(data, bytes) else bytes(data))
    return checksum


def crc32c_raw(seed: int, data: bytes | bytearray | memoryview) -> int:
    """Return the CRC-32C of `data` from `seed` with no inversion, as ext4 and the kernel chain it.

    Source: Linux lib/crc32 `crc32c(seed, data, length)`.
    """
    return crc32c(data, seed ^ _ALL_ONES) ^ _ALL_ONES

"""PAX extended headers: `length key=value` lines (POSIX.1-2017, pax, Extended Header)."""

from __future__ import annotations

from typing import Final

XATTR_PREFIX: Final = b"SCHILY.xattr."
SPARSE_PREFIX: Final = b"GNU.sparse."

_SPARSE_PAIR: Final = (SPARSE_PREFIX + b"offset", SPARSE_PREFIX + b"numbytes")
_NANO: Final = 1_000_000_000


def parse_records(raw: bytes) -> dict[bytes, bytes]:
    """Return key to value, in the order of the records. Raises ValueError.

    The pairs of records of a sparse map (GNU 0.0) come back as the one record of GNU 0.1.
    """
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    place = 0
    while place < len(raw):
        if not raw[place]:  # some writers pad with zeros
            break
        space = raw.find(b" ", place, place + 20)
        digits = raw[place:space]
        if space < 0 or not digits.isdigit():
            raise ValueError(f"a PAX record without a length: {raw[place : place + 20]!r}")
        end = place + int(digits)
        if end > len(raw) or end <= space + 1 or raw[end - 1 : end] != b"\n":
            raise ValueError(f"a PAX record whose length {int(digits)} is wrong")
        key, equals, value = raw[space + 1 : end - 1].partition(b"=")
        if not equals or not key or b"\0" in key:
            raise ValueError(f"a PAX record without a key: {key[:40]!r}")
        if key in _SPARSE_PAIR:
            if key != _SPARSE_PAIR[len(sparse) % 2]:
                raise ValueError("sparse offsets and lengths that do not take turns")
            sparse.append(value)
        else:
            records[key] = value
        place = end
    if sparse:
        records[SPARSE_PREFIX + b"map"] = b",".join(sparse)
    return records


def parse_decimal(value: bytes) -> int:
    """Return a PAX size, uid or gid. Raises ValueError."""
    if not value.isdigit() or len(value) > 20:
        raise ValueError(f"not a number: {value[:40]!r}")
    return int(value)


def parse_time(value: bytes) -> tuple[int, int]:
    """Return (seconds, nanoseconds) of a PAX time such as `-1.5`. Raises ValueError."""
    negative = value.startswith(b"-")
    whole, _, fraction = value.removeprefix(b"-").partition(b".")
    if not whole.isdigit() or len(whole) > 20 or not (fraction or b"0").isdigit():
        raise ValueError(f"not a time: {value[:40]!r}")
    total = int(whole) * _NANO + int(fraction[:9].ljust(9, b"0"))
    if negative:
        total = -total
    return divmod(total, _NANO)

"""The snapshots in a containerd snapshotter's metadata.db (core/snapshots/storage/bolt.go).

::

    v1/snapshots/<key>/  id (uvarint)  kind (1 byte)  parent (a key)  createdat  updatedat (Go time)
                         inodes  size (varint)  labels/<name> = value
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from snapshotter.bolt.file import BoltFile, Bucket
from snapshotter.errors import BoltError
from snapshotter.metastore.model import Info, Kind, Usage

_GO_TIME: Final = struct.Struct(">Bqih")
"""time.Time.MarshalBinary, version 1: seconds since year 1, nanoseconds, offset in minutes."""
_UNIX_EPOCH: Final = 62_135_596_800
"""Seconds from 0001-01-01 to 1970-01-01 (Go's time.unixToInternal)."""
_MAX_NS: Final = (1 << 63) - 1
_MAX_ID: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class BoltSnapshot:
    """One snapshot with its number and the usage that its commit recorded."""

    number: int
    info: Info
    usage: Usage


def last_number(file: BoltFile) -> int:
    """The number that was given out last; 0 in a store that never had a snapshot."""
    bucket = _snapshots(file)
    return 0 if bucket is None else bucket.sequence


def snapshots(file: BoltFile) -> Iterator[BoltSnapshot]:
    """Every snapshot, in the order of the keys. Raises BoltError."""
    bucket = _snapshots(file)
    if bucket is None:
        return
    for key, row in bucket.buckets():
        yield _snapshot(_text("key", key), row)


def _snapshots(file: BoltFile) -> Bucket | None:
    version = file.root.bucket(b"v1")
    return None if version is None else version.bucket(b"snapshots")


def _snapshot(key: str, row: Bucket) -> BoltSnapshot:
    values = dict(row.values())
    number = _uvarint(_required(key, values, b"id"))
    if not 0 < number <= _MAX_ID:
        raise BoltError(f"id of snapshot {key!r}", number, offset=None)
    kind = _required(key, values, b"kind")
    try:
        (code,) = kind
        known = Kind(code)
    except ValueError:
        raise BoltError(f"kind of snapshot {key!r}", kind[:8], offset=None) from None
    labels = row.bucket(b"labels")
    info = Info(
        key,
        known,
        _text("parent", values.get(b"parent", b"")),
        {}
        if labels is None
        else {_text("label", name): _text("label", value) for name, value in labels.values()},
        _go_time(_required(key, values, b"createdat")),
        _go_time(_required(key, values, b"updatedat")),
    )
    usage = Usage(_varint(values.get(b"size", b"\0")), _varint(values.get(b"inodes", b"\0")))
    return BoltSnapshot(number, info, usage)


def _required(key: str, values: dict[bytes, bytes], name: bytes) -> bytes:
    try:
        return values[name]
    except KeyError:
        raise BoltError(f"snapshot {key!r}", f"without {name.decode()}", offset=None) from None


def _text(what: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise BoltError(what, raw[:64], offset=None) from None


def _uvarint(raw: bytes) -> int:
    """Go's binary.Uvarint."""
    value = 0
    for position, byte in enumerate(raw[:10]):
        value |= (byte & 0x7F) << (7 * position)
        if byte < 0x80:
            return value
    raise BoltError("number", raw[:16], offset=None)


def _varint(raw: bytes) -> int:
    """Go's binary.Varint, of which only what a size can be."""
    zigzag = _uvarint(raw)
    value = (zigzag >> 1) ^ -(zigzag & 1)
    if not 0 <= value <= _MAX_NS:
        raise BoltError("size", value, offset=None)
    return value


def _go_time(raw: bytes) -> int:
    """Nanoseconds since the Unix epoch."""
    # Version 2 has the offset's seconds in one more byte; the offset changes no instant.
    if len(raw) not in (_GO_TIME.size, _GO_TIME.size + 1):
        raise BoltError("time", raw[:16], offset=None)
    version, seconds, nanoseconds, _ = _GO_TIME.unpack_from(raw)
    value: int = (seconds - _UNIX_EPOCH) * 1_000_000_000 + nanoseconds
    if version not in (1, 2) or not 0 <= nanoseconds < 1_000_000_000 or not 0 <= value <= _MAX_NS:
        raise BoltError("time", raw[:16], offset=None)
    return value

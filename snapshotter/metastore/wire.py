"""An Info as gRPC sends it: containerd.services.snapshots.v1.Info, in protobuf's encoding.

::

    message Info {
        string name = 1;  string parent = 2;  Kind kind = 3;
        google.protobuf.Timestamp created_at = 4, updated_at = 5;
        map<string, string> labels = 6;
    }

The store keeps these bytes in the snapshot's row, already framed as field 1 of a response:
StatSnapshotResponse and UpdateSnapshotResponse are one frame, ListSnapshotsResponse is any number
of them one after the other. Answering then costs a read and no encoding. (containerd
api/services/snapshots/v1/snapshots.proto; protobuf.dev, "Encoding".)
"""

from __future__ import annotations

from typing import Final

from snapshotter.metastore.model import Info

_LENGTH_DELIMITED: Final = 2
"""Wire type of texts, messages and map entries; 0 is that of numbers."""

_NS: Final = 1_000_000_000


def info_frame(info: Info) -> bytes:
    """The Info as field 1 of StatSnapshotResponse, UpdateSnapshotResponse, ListSnapshotsResponse.

    Labels are in the byte order of their names, so that equal Infos give equal bytes.
    """
    created = _timestamp(info.created_ns)
    updated = created if info.updated_ns == info.created_ns else _timestamp(info.updated_ns)
    parts = [
        text(1, info.name),
        text(2, info.parent),
        _number(3, int(info.kind)),
        delimited(4, created),
        delimited(5, updated),
    ]
    labels = info.labels
    parts += [delimited(6, text(1, name) + text(2, labels[name])) for name in sorted(labels)]
    return delimited(1, b"".join(parts))


def text(field: int, value: str) -> bytes:
    """A field of type string; nothing for an empty one."""
    return delimited(field, value.encode()) if value else b""


def delimited(field: int, data: bytes) -> bytes:
    """A field whose value has a length: an encoded message, a string, bytes."""
    return _KEYS[field] + _varint(len(data)) + data


def _timestamp(nanoseconds: int) -> bytes:
    # Floor division: before 1970 the seconds are negative, and the nanoseconds still count up.
    seconds, rest = divmod(nanoseconds, _NS)
    return _number(1, seconds) + _number(2, rest)


def _number(field: int, value: int) -> bytes:
    # A negative int64 is its two's complement in 64 bits.
    return bytes((field << 3,)) + _varint(value & 0xFFFF_FFFF_FFFF_FFFF) if value else b""


def _varint(value: int) -> bytes:
    if value <= 0x7F:
        return _BYTES[value]
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


_BYTES: Final = tuple(bytes((value,)) for value in range(0x80))
_KEYS: Final = tuple(bytes((field << 3 | _LENGTH_DELIMITED,)) for field in range(16))
"""The first byte of a field with a length, by its number."""

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
    message = bytearray()
    message += _text(1, info.name)
    message += _text(2, info.parent)
    message += _number(3, int(info.kind))
    message += _delimited(4, _timestamp(info.created_ns))
    message += _delimited(5, _timestamp(info.updated_ns))
    for name in sorted(info.labels):
        message += _delimited(6, _text(1, name) + _text(2, info.labels[name]))
    return _delimited(1, bytes(message))


def _timestamp(nanoseconds: int) -> bytes:
    # Floor division: before 1970 the seconds are negative, and the nanoseconds still count up.
    seconds, rest = divmod(nanoseconds, _NS)
    return _number(1, seconds) + _number(2, rest)


def _text(field: int, text: str) -> bytes:
    return _delimited(field, text.encode()) if text else b""


def _number(field: int, value: int) -> bytes:
    # A negative int64 is its two's complement in 64 bits.
    return bytes([field << 3]) + _varint(value & 0xFFFF_FFFF_FFFF_FFFF) if value else b""


def _delimited(field: int, data: bytes) -> bytes:
    return bytes([field << 3 | _LENGTH_DELIMITED]) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)

"""Clients that ask for a stream and never read a byte of it, nor of anything else.

By hand, since a gRPC library always reads its socket.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Final

from snapshotter.rpc import messages
from tests.snapshotter.rpc.client import SNAPSHOTS

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _WINDOW_UPDATE = 0, 1, 4, 8
_END_STREAM, _END_HEADERS = 1, 4
_INITIAL_WINDOW_SIZE: Final = 4
DEFAULT_WINDOW: Final = 65_535
"""Bytes that HTTP/2 lets a server send unasked: less than a socket takes."""
LARGEST_WINDOW: Final = (1 << 31) - 1
"""With it nothing but the socket holds a server back."""


class UnreadLists:
    """A connection with `streams` calls of List on it that nobody reads; a context manager.

    `window` is what HTTP/2's flow control lets the server send.
    """

    def __init__(self, path: Path, *, streams: int = 1, window: int = LARGEST_WINDOW) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(path))
            self._socket.sendall(
                _PREFACE
                + _frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, window))
                + (_more(window - DEFAULT_WINDOW) if window > DEFAULT_WINDOW else b"")
                + b"".join(_list(2 * number + 1) for number in range(streams))
            )
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> UnreadLists:
        return self

    def __exit__(self, *_: object) -> None:
        """Vanish, as a killed client does."""
        self._socket.close()


def _more(window: int) -> bytes:
    """Let the server send more on the whole connection."""
    return _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", window))


def _list(stream: int) -> bytes:
    """A call of List with no filter (gRPC over HTTP/2)."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/{SNAPSHOTS}/List",
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    # RFC 7541 6.2.2: literals without indexing, names included.
    block = b"".join(b"\x00" + _text(name) + _text(value) for name, value in headers.items())
    request = messages.ListSnapshotsRequest(snapshotter="lcow").SerializeToString()
    message = struct.pack(">BI", 0, len(request)) + request
    return _frame(_HEADERS, _END_HEADERS, stream, block) + _frame(
        _DATA, _END_STREAM, stream, message
    )


def _text(text: str) -> bytes:
    assert len(text) < 127, "longer ones take more than one byte for their length"
    return bytes([len(text)]) + text.encode()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113 4.1."""
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload

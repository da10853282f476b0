r"""Message sealing of WinRM: `multipart/encrypted` frames around what a security context wrapped.

::

    --Encrypted Boundary
    \tContent-Type: application/HTTP-SPNEGO-session-encrypted
    \tOriginalContent: type=application/soap+xml;charset=UTF-8;Length=N
    --Encrypted Boundary
    \\tContent-Type: application/octet-stream
    <int32 header length, little endian><header><sealed data>--Encrypted Boundary--

Source: [MS-WSMV] 2.2.9.1. No I/O, and no cryptography: that is the context's.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from harness.errors import ProtocolError

SPNEGO: Final = "application/HTTP-SPNEGO-session-encrypted"
KERBEROS: Final = "application/HTTP-Kerberos-session-encrypted"
_BOUNDARY: Final = "Encrypted Boundary"
_HEAD: Final = re.compile(
    rb"--Encrypted Boundary\r\n"
    rb"[ \t]*Content-Type:[ \t]*(?P<protocol>[^\r\n]{1,200})\r\n"
    rb"[ \t]*OriginalContent:[ \t]*type=[^\r\n]{1,200};[ \t]*Length=(?P<length>\d{1,9})[ \t]*\r\n"
    rb"--Encrypted Boundary\r\n"
    rb"[ \t]*Content-Type:[ \t]*application/octet-stream\r\n",
    re.IGNORECASE,
)
_NEXT: Final = re.compile(rb"(?:\r\n)?--Encrypted Boundary(?P<last>--)?(?:\r\n)?")
_LONGEST_HEADER: Final = 1024  # a signature has 16 bytes for NTLM, some 60 for Kerberos


class SealError(ProtocolError):
    """What came is no sealed message, or not one of this connection: HTTP 400."""


@dataclass(frozen=True, slots=True)
class SealedPart:
    """One wrapped piece: its signature `header`, its `data`, and its `length` once unwrapped."""

    HEADER: ClassVar = struct.Struct("<i")
    header: bytes
    data: bytes
    length: int


def is_sealed(content_type: str) -> bool:
    """Return whether a body of that Content-Type is a sealed message."""
    return content_type.lower().startswith(("multipart/encrypted", "multipart/x-multi-encrypted"))


def parse(body: bytes) -> list[SealedPart]:
    """Return the parts of a sealed message, in order. Raises SealError."""
    parts: list[SealedPart] = []
    at = 0
    while True:
        head = _HEAD.match(body, at)
        if head is None:
            raise SealError(f"no sealed part at byte {at}")
        at = head.end()
        if at + SealedPart.HEADER.size > len(body):
            raise SealError("a sealed part ends before its header's length")
        (size,) = SealedPart.HEADER.unpack_from(body, at)
        at += SealedPart.HEADER.size
        length = int(head["length"])
        if not 0 < size <= _LONGEST_HEADER or at + size + length > len(body):
            raise SealError("a sealed part is longer than the message that holds it")
        # Wrapped data is never shorter than what it holds: a boundary inside of it by chance is
        # not looked at.
        end = _NEXT.search(body, at + size + length)
        if end is None:
            raise SealError("a sealed part has no end")
        parts.append(SealedPart(body[at : at + size], body[at + size : end.start()], length))
        if end["last"]:
            if end.end() != len(body):
                raise SealError("something follows the last sealed part")
            return parts
        at = end.start() + (2 if body.startswith(b"\r\n", end.start()) else 0)


def frame(parts: Sequence[SealedPart], *, protocol: str = SPNEGO) -> tuple[str, bytes]:
    """Return the Content-Type and the body of a sealed message."""
    pieces: list[bytes] = []
    for part in parts:
        pieces.append(
            (
                f"--{_BOUNDARY}\r\n\tContent-Type: {protocol}\r\n"
                "\tOriginalContent: type=application/soap+xml;charset=UTF-8;"
                f"Length={part.length}\r\n"
                f"--{_BOUNDARY}\r\n\tContent-Type: application/octet-stream\r\n"
            ).encode()
        )
        pieces.append(SealedPart.HEADER.pack(len(part.header)))
        pieces.append(part.header)
        pieces.append(part.data)
    pieces.append(f"--{_BOUNDARY}--\r\n".encode())
    kind = "encrypted" if len(parts) == 1 else "x-multi-encrypted"
    content_type = f'multipart/{kind};protocol="{protocol}";boundary="{_BOUNDARY}"'
    return content_type, b"".join(pieces)

"""Put out one part of a file as a zlib stream on standard output."""

from __future__ import annotations

import base64
import zlib
from typing import IO, Any


def main(parameters: dict[str, Any], source: IO[bytes], report: IO[bytes]) -> None:
    """Send `length` bytes of `path` from `offset`; `text` asks for lines of base64."""
    del source
    encoder = zlib.compressobj(1)
    left = parameters["length"]
    with open(parameters["path"], "rb") as file:
        file.seek(parameters["offset"])
        while left:
            block = file.read(min(left, 1 << 18))
            if not block:
                raise SystemExit("the file became shorter while it was read")
            left -= len(block)
            _put(report, encoder.compress(block), text=parameters["text"])
    _put(report, encoder.flush(), text=parameters["text"])


def _put(report: IO[bytes], data: bytes, *, text: bool) -> None:
    if data:
        report.write(base64.b64encode(data) + b"\n" if text else data)
        report.flush()

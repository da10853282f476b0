"""Take one part of a file on standard input, going on where a former attempt ended."""

from __future__ import annotations

import base64
import json
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import IO, Any


def main(parameters: dict[str, Any], source: IO[bytes], report: IO[bytes]) -> None:
    """Append a zlib stream to `part` below `root`; report `have` first, then again with `complete`.

    `size` is that of the whole part; `text` says that the stream comes as lines of base64.
    """
    path = pathlib.Path(parameters["root"], parameters["part"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as part:
        if part.tell() > parameters["size"]:
            part.truncate(0)
            part.seek(0)
        _tell(report, have=part.tell())
        decoder = zlib.decompressobj()
        for block in _blocks(source, text=parameters["text"]):
            part.write(decoder.decompress(block))
        part.write(decoder.flush())
        part.flush()
        os.fsync(part.fileno())
        _tell(report, have=part.tell(), complete=decoder.eof)


def _blocks(source: IO[bytes], *, text: bool) -> Iterator[bytes]:
    if text:
        for line in source:
            yield base64.b64decode(line)
    else:
        while block := source.read(1 << 16):
            yield block


def _tell(report: IO[bytes], **values: object) -> None:
    report.write(json.dumps(values).encode() + b"\n")
    report.flush()

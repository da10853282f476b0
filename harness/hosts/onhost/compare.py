"""Which files of a list are not on the host as listed."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import IO, Any


def main(parameters: dict[str, Any], source: IO[bytes], report: IO[bytes]) -> None:
    """Report `differing`: the paths of `files` below `folder` with another size or SHA-256."""
    del source
    folder = pathlib.Path(parameters["folder"])
    differing = [
        each["path"]
        for each in parameters["files"]
        if not _same(folder / each["path"], each["size"], each["sha256"])
    ]
    report.write(json.dumps({"differing": differing}).encode() + b"\n")
    report.flush()


def _same(file: pathlib.Path, size: int, sha256: str) -> bool:
    if not file.is_file() or file.stat().st_size != size:
        return False
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == sha256

"""Size and SHA-256 of a file."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import IO, Any


def main(parameters: dict[str, Any], source: IO[bytes], report: IO[bytes]) -> None:
    """Report `size` and `sha256` of `path`, or `size` null where there is no such file."""
    del source
    path = pathlib.Path(parameters["path"])
    values: dict[str, object] = {"size": None, "sha256": ""}
    if path.is_file():
        digest, size = hashlib.sha256(), 0
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
        values = {"size": size, "sha256": digest.hexdigest()}
    report.write(json.dumps(values).encode() + b"\n")
    report.flush()

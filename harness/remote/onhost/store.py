"""The cache on the host: make an entry from its parts, check it, put it where it is wanted."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
from typing import IO, Any

_CHUNK = 1 << 20


def main(parameters: dict[str, Any], source: IO[bytes], report: IO[bytes]) -> None:
    """Report `state`: stored, missing or damaged, for the content of that `sha256` and `size`.

    `entry` and `parts` are below `root`. `parts`, when given, are joined into the entry first and
    removed. A damaged entry is removed: what is reported as stored was read back and has that
    hash. With `destination` the content is put there by an atomic replacement.
    """
    del source
    root = pathlib.Path(parameters["root"])
    entry = root / parameters["entry"]
    parts = [root / part for part in parameters["parts"]]
    if parts and not entry.exists():
        _join(parts, entry, parameters["first_size"])
    for part in parts:
        part.unlink(missing_ok=True)
    state = _check(entry, parameters["sha256"], parameters["size"])
    if state == "stored" and parameters.get("destination"):
        _place(entry, pathlib.Path(parameters["destination"]))
    report.write(json.dumps({"state": state}).encode() + b"\n")
    report.flush()


def _join(parts: list[pathlib.Path], entry: pathlib.Path, first_size: int) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    with parts[0].open("r+b") as whole:
        # A former attempt may have come to here and stopped: what it appended goes.
        whole.truncate(first_size)
        whole.seek(first_size)
        for part in parts[1:]:
            with part.open("rb") as file:
                shutil.copyfileobj(file, whole, _CHUNK)
        whole.flush()
        os.fsync(whole.fileno())
    parts[0].replace(entry)


def _check(entry: pathlib.Path, sha256: str, size: int) -> str:
    if not entry.exists():
        return "missing"
    digest = hashlib.sha256()
    if entry.stat().st_size == size:
        with entry.open("rb") as file:
            while block := file.read(_CHUNK):
                digest.update(block)
        if digest.hexdigest() == sha256:
            return "stored"
    entry.unlink()
    return "damaged"


def _place(entry: pathlib.Path, destination: pathlib.Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    # A copy, not a link: whoever writes into the placed file must not change the cache.
    temporary = destination.with_name(f"{destination.name}.{os.getpid()}.new")
    shutil.copyfile(entry, temporary)
    temporary.replace(destination)

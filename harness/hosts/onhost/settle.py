"""Compare an unpacked Python with its archive, and make it the host's own when all is there."""

from __future__ import annotations

import hashlib
import json
import pathlib
import sys
import zipfile
from typing import IO, Any


def main(parameters: dict[str, Any], source: IO[bytes], report: IO[bytes]) -> None:
    """Report `wrong`: what is missing or differs, a few of it, or why this Python will not do.

    `archive` must have the SHA-256 `sha256`; each of its files is compared with that below
    `folder`. `current` is written last, and names `path`, `version` and the hash.
    """
    del source
    archive, folder = pathlib.Path(parameters["archive"]), pathlib.Path(parameters["folder"])
    wrong = []
    with archive.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != parameters["sha256"]:
        wrong.append(f"{archive.name} is not what was sent")
    else:
        wrong += _differing(archive, folder)
    if not wrong:
        current = pathlib.Path(parameters["current"])
        beside = current.with_name(current.name + ".new")
        values = {
            "path": parameters["path"],
            "sha256": parameters["sha256"],
            "version": list(sys.version_info[:3]),
        }
        beside.write_text(json.dumps(values), "utf-8")
        beside.replace(current)
    report.write(json.dumps({"wrong": wrong[:5]}).encode() + b"\n")
    report.flush()


def _differing(archive: pathlib.Path, folder: pathlib.Path) -> list[str]:
    differing = []
    with zipfile.ZipFile(archive) as packed:
        for info in packed.infolist():
            file = folder.joinpath(*info.filename.replace("\\", "/").split("/"))
            if info.is_dir():
                continue
            if not file.is_file() or file.stat().st_size != info.file_size:
                differing.append(f"{info.filename} is missing or cut off")
            elif file.read_bytes() != packed.read(info):
                differing.append(f"{info.filename} differs")
    return differing

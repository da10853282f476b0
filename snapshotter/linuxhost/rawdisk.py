"""Writable disks that Linux can mount: the content of a scratch disk in a sparse raw file.

The kernel reads no dynamic VHDX, so a snapshot's scratch disk is taken out of its VHDX: what is
mounted is what our ext4 and VHDX code wrote, and the VHDX itself stays as it is. An unpack
snapshot has no VHDX; its disk comes straight from the ext4 layout.
"""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from snapshotter.errors import UnavailableError
from snapshotter.ext4.mkfs import format_ext4
from snapshotter.units import MIB
from snapshotter.vhdx import VhdxDisk

RAW_NAME: Final = "linux-host.ext4"
"""The raw disk, beside the VHDX that it was taken from or in the snapshot's own directory."""

_CHUNK: Final = 4 * MIB
_Piece = tuple[int, bytes]


def raw_from_vhdx(source: Path, target: Path) -> None:
    """Write what is in the VHDX at `source` to a raw file at `target`, unless that is there.

    Raises VhdxError, UnavailableError.
    """
    if target.exists():
        return
    try:
        disk = VhdxDisk.open(source)
    except FileNotFoundError as error:
        raise UnavailableError(
            f"the scratch disk {source} is missing; remove the snapshots that use it"
        ) from error
    with disk:
        _publish(target, disk.size, _pieces(disk))


def raw_formatted(size: int, target: Path) -> None:
    """Write an empty ext4 of `size` bytes to `target`, unless something is there.

    Raises InvalidArgumentError, UnavailableError.
    """
    if not target.exists():
        content = format_ext4(size)
        _publish(target, content.size, iter(content.pieces))


def _pieces(disk: VhdxDisk) -> Iterator[_Piece]:
    for start, length in disk.allocated_ranges():
        for offset in range(start, start + length, _CHUNK):
            yield offset, disk.read_at(offset, min(_CHUNK, start + length - offset))


def _publish(target: Path, size: int, pieces: Iterator[_Piece]) -> None:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            temporary.chmod(0o600)
            file.truncate(size)
            for offset, data in pieces:
                file.seek(offset)
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise UnavailableError(f"cannot write {target}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)

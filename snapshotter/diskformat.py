"""The formats in which a file can hold a disk, and how to tell them."""

from __future__ import annotations

import enum
import os
from pathlib import Path
from typing import Final, Self

from snapshotter.blockio import BlockReader

_VHDX_SIGNATURE: Final = b"vhdxfile"
_VHD_COOKIE: Final = b"conectix"
_VHD_FOOTER_SIZE: Final = 512
_SUFFIXES: Final = {".vhdx": "vhdx", ".avhdx": "vhdx", ".vhd": "vhd"}


class DiskFormat(enum.StrEnum):
    """How a file holds a disk; `VHD` is a fixed one."""

    RAW = "raw"
    VHDX = "vhdx"
    VHD = "vhd"

    @classmethod
    def of_name(cls, path: str | os.PathLike[str]) -> Self:
        """Return the format that a file's suffix stands for, raw for any other suffix."""
        return cls(_SUFFIXES.get(Path(path).suffix.lower(), "raw"))

    @classmethod
    def detect(cls, file: BlockReader) -> Self:
        """Return the format that a file's own bytes show; raw where they show none.

        What a guest writes to a raw disk can imitate any other format: whoever handles disks of
        others says what format they have instead.
        """
        if file.read_at(0, len(_VHDX_SIGNATURE)) == _VHDX_SIGNATURE:
            return cls("vhdx")
        footer = max(0, file.size - _VHD_FOOTER_SIZE)
        return cls("vhd" if file.read_at(footer, len(_VHD_COOKIE)) == _VHD_COOKIE else "raw")

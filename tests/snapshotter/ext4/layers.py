"""Layer tars for tests, made by Python's tarfile, and what becomes of them."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

from snapshotter.blockio import LocalBlockFile
from snapshotter.ext4.layertar import ConversionLimits, ConvertedLayer, convert_layer
from snapshotter.ext4.reader import Ext4
from snapshotter.vhd import FOOTER_SIZE, FixedVhd
from tests.snapshotter.ext4.oracles import MemoryDisk, fsck

REG, DIR, SYM, LNK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
CHR, BLK, FIFO = tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE


def member(
    name: str,
    data: bytes = b"",
    *,
    kind: bytes = REG,
    link: str = "",
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: float = 0,
    device: tuple[int, int] = (0, 0),
    xattrs: Mapping[str, str] | None = None,
) -> tuple[tarfile.TarInfo, bytes]:
    """Return a member for `tar`."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    info.uid, info.gid, info.mtime = uid, gid, mtime
    info.devmajor, info.devminor = device
    info.size = len(data)
    info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in (xattrs or {}).items()}
    return info, data


def tar(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar of `members` with its end mark."""
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=form, encoding="utf-8", errors="surrogateescape"
    ) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def convert(
    raw: bytes,
    target: Path,
    *,
    limits: ConversionLimits | None = None,
    checksums: bool = False,
    verity: bool = False,
) -> ConvertedLayer:
    """Convert a tar in memory to `target`."""
    stream = io.BytesIO(raw)
    return convert_layer(stream, target, limits=limits, checksums=checksums, verity=verity)


def files_of(target: Path, *, check: bool = True) -> Ext4:
    """Return the files of a converted layer; e2fsck has looked at it unless told not to."""
    if check:
        payload = target.with_suffix(".ext4")
        payload.write_bytes(target.read_bytes()[:-FOOTER_SIZE])
        fsck(payload)
    with FixedVhd.open(target) as disk:
        return Ext4.open(MemoryDisk(disk.read_at(0, disk.size)))


def converted(tmp_path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Ext4:
    """Return the files of the layer that `members` make."""
    target = tmp_path / "layer.vhd"
    convert(tar(*members), target)
    return files_of(target)


def open_payload(path: Path) -> Ext4:
    """Return the files of a raw disk, read into memory."""
    with LocalBlockFile.open(path) as file:
        return Ext4.open(MemoryDisk(file.read_at(0, os.path.getsize(path))))

"""Our disk files in Windows's hands, and Windows's in ours: do both see the same disk?

What a first real host runs before anything else. Our disks are opened and attached by Windows,
its own are read and checked by this package, and it merges a child of ours into a parent of ours.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import time
import uuid
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.hcs.virtdisk import NativeDisk, VirtDisk
from harness.hcs.virtdiskapi import DeviceId, Subtype
from snapshotter.blockio import DiskContent
from snapshotter.diskfile import open_disk
from snapshotter.diskformat import DiskFormat
from snapshotter.errors import SnapshotterError
from snapshotter.platform.winerror import winerror_of
from snapshotter.scratch.template import ScratchTemplate
from snapshotter.units import GIB, MIB
from snapshotter.vhd import FixedVhd, fixed_footer
from snapshotter.vhdx import (
    VhdxDisk,
    check_vhdx,
    create_child,
    create_vhdx,
    emit_vhdx,
    inspect_vhdx,
    open_chain,
    resolve_chain,
    write_content,
)

MERGED: Final = "merged.vhdx"
"""A parent of ours into which Windows merges a child of ours."""

_WHOLE: Final = 128 * MIB
"""Disks up to this size are compared from end to end, larger ones where they have data."""
_STEP: Final = MIB
_DEVICE_WAIT_S: Final = 10.0
"""Attaching returns when the disk is there, its device may come a moment later."""
_DEVICE_PAUSE_S: Final = 0.05
_SCRATCH_SIZE: Final = 20 * GIB


@dataclass(frozen=True, slots=True)
class Difference:
    """What one side says of a disk and the other does not; `windows` may be its refusal."""

    disk: str
    what: str
    ours: str
    windows: str

    def __str__(self) -> str:
        return f"{self.disk}: {self.what}: ours {self.ours}, Windows {self.windows}"


@dataclass(frozen=True, slots=True)
class _Facts:
    """What this package says about a disk file, in Windows's terms."""

    device: DeviceId
    subtype: Subtype
    size: int
    block_size: int | None
    sector_size: int
    physical_sector_size: int | None
    disk_id: object
    parent: Path | None


def cross_check(folder: Path, *, library: VirtDisk | None = None) -> list[Difference]:
    """Return every difference between Windows and this package; empty when they agree.

    Works in a directory of its own in `folder`, which has to be on a volume that virtual disks
    can be attached from, and needs an administrator. Raises UsageError off Windows, OSError where
    `folder` cannot be written to.
    """
    return CrossCheck(library or VirtDisk.load()).run(folder)


class CrossCheck:
    """One run; `compared` counts the values and stretches that both sides gave.

    With `disks`, those alone: names of `OURS`, `THEIRS` and `MERGED`, parents with their children.
    """

    def __init__(self, library: VirtDisk, *, disks: Container[str] | None = None) -> None:
        self._library = library
        self._disks = disks
        self._differences: list[Difference] = []
        self.compared = 0

    def run(self, folder: Path) -> list[Difference]:
        """Return the differences; see `cross_check`."""
        with tempfile.TemporaryDirectory(prefix="native-", dir=folder) as name:
            place = Path(name)
            for disk, make in OURS.items():
                if self._wants(disk):
                    with self._guarded(disk):
                        make(place / disk)
                        self._compare(place / disk)
            for disk, order in THEIRS.items():
                if self._wants(disk):
                    with self._guarded(disk):
                        order(self._library, place / disk)
                        self._compare(place / disk)
                        self._check(place / disk)
            if self._wants(MERGED):
                with self._guarded(MERGED):
                    self._merge(place / MERGED)
        return self._differences

    def _wants(self, disk: str) -> bool:
        return self._disks is None or disk in self._disks

    def _compare(self, path: Path) -> None:
        ours, stretches, before = _facts(path), _stretches(path), _digest_of(path)
        with self._library.opened(path) as disk:
            windows = disk.info()
            self._compare_facts(path.name, ours, windows)
            with disk.attached() as device:
                self._compare_content(path.name, stretches, device)
        self._same(path.name, "the file after it was attached", before, _digest_of(path))

    def _compare_facts(self, name: str, ours: _Facts, windows: NativeDisk) -> None:
        self._same(name, "format", int(ours.device), windows.device)
        self._same(name, "kind", int(ours.subtype), windows.subtype)
        self._same(name, "size", ours.size, windows.size)
        self._same(name, "logical sector size", ours.sector_size, windows.sector_size)
        for what, expected, found in (
            ("block size", ours.block_size, windows.block_size),
            ("physical sector size", ours.physical_sector_size, windows.physical_sector_size),
            ("identifier", ours.disk_id, windows.disk_id),
        ):
            if expected is not None:
                self._same(name, what, expected, found)
        if ours.parent is not None and not _is_same_file(ours.parent, windows.parent):
            self._differ(name, "parent", ours.parent, windows.parent or "not found")
        self.compared += ours.parent is not None

    def _compare_content(
        self, name: str, stretches: Iterable[tuple[int, int, bytes]], device: str
    ) -> None:
        with _open_device(device) as reader:
            for offset, length, digest in stretches:
                self.compared += 1
                reader.seek(offset)
                data = b""
                while len(data) < length and (part := reader.read(length - len(data))):
                    data += part
                if hashlib.sha256(data).digest() != digest:
                    self._differ(name, f"content from {offset:#x} on", "one", "another")
                    return

    def _check(self, path: Path) -> None:
        if DiskFormat.VHDX.value == path.suffix[1:]:
            for finding in check_vhdx(path):
                self._differ(path.name, finding.structure, finding.message, finding.value)
            self.compared += 1

    def _merge(self, parent: Path) -> None:
        child = parent.with_name("merging.vhdx")
        _write_dynamic(parent)
        _write_child(child, parent)
        expected = _stretches(child)
        self._library.merge_into_parent(child)
        for before, after in zip(expected, _stretches(parent), strict=True):
            self._same(parent.name, f"content from {before[0]:#x} on", before, after)
        self._check(parent)

    def _same(self, disk: str, what: str, ours: object, windows: object) -> None:
        self.compared += 1
        if ours != windows:
            self._differ(disk, what, ours, windows)

    def _differ(self, disk: str, what: str, ours: object, windows: object) -> None:
        self._differences.append(Difference(disk, what, str(ours), str(windows)))

    @contextmanager
    def _guarded(self, disk: str) -> Iterator[None]:
        """Have a refusal be a difference: the other disks are still of interest."""
        try:
            yield
        except SnapshotterError as error:
            self._differ(disk, "our reader refuses it", error, "made it or changed it")
        except OSError as error:
            code = winerror_of(error)
            if code is None:
                raise  # the folder's fault, or ours
            self._differ(disk, "Windows refuses it", "fine", f"{error.strerror} ({code:#x})")


def _open_device(device: str) -> io.FileIO:
    """Open a disk that may have to be announced yet. Raises OSError."""
    deadline = time.monotonic() + _DEVICE_WAIT_S
    while True:
        try:
            # Unbuffered: a disk is read in whole sectors.
            return io.FileIO(device, "rb")
        except FileNotFoundError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_DEVICE_PAUSE_S)


def _facts(path: Path) -> _Facts:
    if path.suffix == ".vhd":
        with FixedVhd.open(path) as vhd:
            return _Facts(DeviceId.VHD, Subtype.FIXED, vhd.size, None, 512, None, None, None)
    info, _ = inspect_vhdx(path)
    subtype = Subtype.FIXED if info.leave_blocks_allocated else Subtype.DYNAMIC
    chain = [file.path for file in resolve_chain(path)]
    return _Facts(
        DeviceId.VHDX,
        Subtype.DIFFERENCING if info.has_parent else subtype,
        info.size,
        None if info.leave_blocks_allocated else info.block_size,
        info.logical_sector_size,
        info.physical_sector_size,
        info.disk_id,
        chain[1] if info.has_parent else None,
    )


def _stretches(path: Path) -> list[tuple[int, int, bytes]]:
    """Return (offset, length, SHA-256) of the disk's content as our reader sees it."""
    with open_disk(path) as disk:
        ranges = [(0, disk.size)]
        if disk.size > _WHOLE:
            ends = ((0, _STEP), (disk.size - _STEP, _STEP))
            ranges = sorted({*disk.allocated_ranges(), *ends})
        return [
            (at, count, hashlib.sha256(disk.read_at(at, count)).digest())
            for offset, length in ranges
            for at in range(offset, offset + length, _STEP)
            for count in (min(_STEP, offset + length - at),)
        ]


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_same_file(ours: Path, windows: str | None) -> bool:
    try:
        return bool(windows) and ours.samefile(windows or "")
    except OSError:
        return False


def _pattern(number: int, length: int) -> bytes:
    return hashlib.shake_256(f"{number}".encode()).digest(4096) * (length // 4096)


def _write_scratch(path: Path) -> None:
    ScratchTemplate.build(_SCRATCH_SIZE).write(path)


def _write_dynamic(path: Path) -> None:
    # The last block is not a whole one.
    pieces = ((0, _pattern(1, 3 * MIB)), (32 * MIB + 8192, _pattern(2, 65536)))
    end = (64 * MIB + 4096, _pattern(3, 4096))
    content = DiskContent(64 * MIB + 8192, (*pieces, end), zeros=((16 * MIB, MIB),))
    write_content(path, emit_vhdx(content, block_size=2 * MIB))


def _write_large_sectors(path: Path) -> None:
    create_vhdx(path, 32 * MIB, logical_sector_size=4096)
    with VhdxDisk.open(path, writable=True) as disk:
        disk.write_at(4 * MIB - 4096, _pattern(4, 8192))


def _write_fixed(path: Path) -> None:
    create_vhdx(path, 8 * MIB, fixed=True)
    with VhdxDisk.open(path, writable=True) as disk:
        disk.write_at(5 * MIB, _pattern(5, 65536))


def _write_vhd(path: Path) -> None:
    data = _pattern(6, 8 * MIB) + _pattern(7, 4096)  # layers are whole blocks, not whole MiB
    footer = fixed_footer(len(data), unique_id=uuid.uuid4(), timestamp=0)
    path.write_bytes(data + footer)


def _write_child(path: Path, parent: Path) -> None:
    create_child(path, parent)
    with open_chain(path, writable=True) as chain:
        chain.top.write_at(MIB + 512, _pattern(8, 4096))  # a part of a block of the parent's
        chain.top.write_at(40 * MIB, _pattern(9, 2 * MIB))


OURS: Final[dict[str, Callable[[Path], None]]] = {
    "scratch.vhdx": _write_scratch,
    "dynamic.vhdx": _write_dynamic,
    "sectors.vhdx": _write_large_sectors,
    "fixed.vhdx": _write_fixed,
    "layer.vhd": _write_vhd,
    "child.vhdx": lambda path: _write_child(path, path.with_name("dynamic.vhdx")),
    "grandchild.vhdx": lambda path: _write_child(path, path.with_name("child.vhdx")),
}
"""What this package writes, in this order: children need their parents."""

EVERY_RUN: Final = frozenset({"scratch.vhdx", "layer.vhd"})
"""What a utility VM is given: a run on Windows starts with these."""

THEIRS: Final[dict[str, Callable[[VirtDisk, Path], None]]] = {
    "windows.vhdx": lambda library, path: library.create(path, size=64 * MIB),
    "windows-blocks.vhdx": lambda library, path: library.create(
        path, size=64 * MIB, block_size=MIB, sector_size=512
    ),
    "windows-sectors.vhdx": lambda library, path: library.create(
        path, size=64 * MIB, sector_size=4096
    ),
    "windows-fixed.vhdx": lambda library, path: library.create(path, size=8 * MIB, fixed=True),
    "windows-fixed.vhd": lambda library, path: library.create(
        path, device=DeviceId.VHD, size=8 * MIB, sector_size=512, fixed=True
    ),
    "windows-child.vhdx": lambda library, path: library.create(
        path, parent=path.with_name("dynamic.vhdx")
    ),
    "windows-grandchild.vhdx": lambda library, path: library.create(
        path, parent=path.with_name("windows-child.vhdx")
    ),
}
"""What Windows writes; among it a child of a disk of ours."""

"""Conversion between raw disks, VHDX and fixed VHDs, streaming.

One pass in the order of the disk: what may hold data is read 256 KiB at a time (larger parts fall
out of the processor's cache between reading and writing and take up to twice as long), pages of
zeros are left out, the rest is written. A target says where on its file a stretch of the disk
goes and what surrounds it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from snapshotter.blockio import BlockFile, DiskContent, LocalBlockFile
from snapshotter.diskfile import SparseDisk, StoredDisk, open_disk
from snapshotter.diskformat import DiskFormat
from snapshotter.errors import InvalidArgumentError, UnavailableError
from snapshotter.reservation import ReservingWriter
from snapshotter.units import GIB, KIB, MIB
from snapshotter.vhd import fixed_footer
from snapshotter.vhdx.bat import ENTRY_SIZE, BatBuilder, BatGeometry
from snapshotter.vhdx.create import VhdxIdentity, VhdxLayout, layout_vhdx
from snapshotter.vhdx.format import ALIGNMENT
from snapshotter.vhdx.publish import staged_file

Progress = Callable[[int, int], None]
"""Called with (bytes of the disk done, bytes of the disk)."""

_STEP: Final = 256 * KIB
_PAGE: Final = 4 * KIB
_PAGE_WORDS: Final = _PAGE // 8
_SMALL_GAP: Final = 32 * KIB
_SECTOR: Final = 512
_MAX_VHD: Final = 2040 * GIB  # what Windows and QEMU attach


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion made; sizes in bytes. `stored` is what was not left out as zeros."""

    target: Path
    target_format: DiskFormat
    disk_size: int
    file_size: int
    stored: int


@dataclass(frozen=True, slots=True)
class VhdxOptions:
    """How a new VHDX is laid out; sizes in bytes."""

    fixed: bool = False
    block_size: int = MIB
    logical_sector_size: int = 512
    physical_sector_size: int = 4096


def convert_disk(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    source_format: DiskFormat | None = None,
    target_format: DiskFormat | None = None,
    vhdx: VhdxOptions | None = None,
    overwrite: bool = False,
    durable: bool = True,
    progress: Progress | None = None,
) -> Conversion:
    """Write the disk in the file `source` to the new file `target`, and return what was made.

    Formats that are not named are what the source shows and what the target's suffix stands for.
    The source is opened read-only, dirty logs and parents included. A raw source that ends within
    a sector is filled up with zeros. `vhdx` is for VHDX targets. The target appears whole or not
    at all, see `staged_file`.

    Raises AlreadyExistsError, InvalidArgumentError for sizes that the target cannot have,
    VhdxError, VhdError, UnavailableError, FileNotFoundError.
    """
    with open_disk(source, disk_format=source_format) as disk:
        return write_disk(
            disk,
            target,
            target_format=target_format or DiskFormat.of_name(target),
            vhdx=vhdx,
            overwrite=overwrite,
            durable=durable,
            progress=progress,
        )


def write_disk(
    disk: SparseDisk,
    target: str | os.PathLike[str],
    *,
    target_format: DiskFormat,
    vhdx: VhdxOptions | None = None,
    overwrite: bool = False,
    durable: bool = True,
    progress: Progress | None = None,
) -> Conversion:
    """Write an open disk to the new file `target`; the rest is as `convert_disk` says."""
    options = vhdx or VhdxOptions()
    if vhdx is not None and target_format is not DiskFormat.VHDX:
        raise InvalidArgumentError(f"block and sector sizes are for VHDX, not {target_format}")
    unit = options.logical_sector_size if target_format is DiskFormat.VHDX else _SECTOR
    size = disk.size if target_format is DiskFormat.RAW else -(-disk.size // unit) * unit
    layout: _Target
    if target_format is DiskFormat.VHDX:
        layout = (_FixedVhdxTarget if options.fixed else _DynamicVhdxTarget)(size, options)
    elif target_format is DiskFormat.VHD:
        if size > _MAX_VHD:
            raise InvalidArgumentError(
                f"a disk of {size} bytes: a VHD has {_MAX_VHD} at most; make it a VHDX"
            )
        layout = _FlatTarget(fixed_footer(size, unique_id=uuid.uuid4(), timestamp=0))
    else:
        layout = _FlatTarget(b"")
    with staged_file(target, durable=durable, overwrite=overwrite) as file:
        with ReservingWriter(file) as writer:
            stored = _copy(disk, writer, layout, progress)
        layout.finish(file, size)
        return Conversion(Path(target), target_format, size, file.size, stored)


class _Target(Protocol):
    """Where the parts of a disk go in a file."""

    def place(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (file offset, length) for a stretch of the disk that has data."""
        ...

    def finish(self, file: BlockFile, size: int) -> None:
        """Write what surrounds the data of a disk of `size` bytes."""
        ...


class _FlatTarget:
    """The disk byte for byte, and a footer."""

    def __init__(self, footer: bytes) -> None:
        self._footer = footer

    def place(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        yield offset, length

    def finish(self, file: BlockFile, size: int) -> None:
        file.truncate(size)
        if self._footer:
            file.write_at(size, self._footer)


class _FixedVhdxTarget:
    """A fixed VHDX: the blocks lie behind its structures in the order of the disk."""

    def __init__(self, size: int, options: VhdxOptions) -> None:
        self._content = _empty(size, options).stamp(VhdxIdentity.fresh())
        blocks = -(-size // options.block_size)
        self._start = self._content.size - blocks * options.block_size

    def place(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        yield self._start + offset, length

    def finish(self, file: BlockFile, size: int) -> None:
        _write_structures(file, self._content)


class _DynamicVhdxTarget:
    """A dynamic VHDX: blocks get their place in the order in which they come."""

    def __init__(self, size: int, options: VhdxOptions) -> None:
        self._layout = _empty(size, options)
        geometry = BatGeometry(size, options.block_size, options.logical_sector_size)
        self._bat = BatBuilder(geometry)
        self._block_size = options.block_size
        self._end = self._layout.file_size
        bat_length = max(1, -(-geometry.entries * ENTRY_SIZE // ALIGNMENT)) * ALIGNMENT
        self._bat_offset = self._end - bat_length
        self._block = -1

    def place(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        while length:
            block, within = divmod(offset, self._block_size)
            if block != self._block:
                self._bat.set_present(block, self._end)
                self._block = block
                self._end += self._block_size
            count = min(length, self._block_size - within)
            yield self._end - self._block_size + within, count
            offset += count
            length -= count

    def finish(self, file: BlockFile, size: int) -> None:
        layout = replace(
            self._layout,
            file_size=self._end,
            after_items=tuple(self._bat.pieces(self._bat_offset)),
        )
        _write_structures(file, layout.stamp(VhdxIdentity.fresh()))


def _empty(size: int, options: VhdxOptions) -> VhdxLayout:
    return layout_vhdx(
        DiskContent(size, ()),
        block_size=options.block_size,
        logical_sector_size=options.logical_sector_size,
        physical_sector_size=options.physical_sector_size,
        fixed=options.fixed,
    )


def _write_structures(file: BlockFile, content: DiskContent) -> None:
    file.truncate(content.size)
    for offset, data in content.pieces:
        file.write_at(offset, data)


def _copy(
    disk: SparseDisk, file: ReservingWriter, target: _Target, progress: Progress | None
) -> int:
    """Copy what is not zero, and return how many bytes that were."""
    stored = 0
    size = disk.size
    sharing = _Sharing(disk, file, target)
    for start, length in sharing.left():
        end = start + length
        while start < end:
            # Steps end at multiples of their length: a page is looked at as a whole.
            part = disk.read_at(start, min(_STEP - start % _STEP, end - start))
            if not part:
                raise UnavailableError(
                    f"the source ends at {start} and not at {size}: it shrank while it was read"
                )
            for first, count in data_runs(part):
                view = memoryview(part)[first : first + count]
                for place, fits in target.place(start + first, count):
                    file.write_at(place, view[:fits])
                    view = view[fits:]
                stored += count
            start += len(part)
            if progress is not None:
                progress(start, size)
    stored += sharing.shared
    if progress is not None:
        progress(size, size)
    return stored


class _Sharing:
    """What the target's file can share with the source's, on a file system that can.

    Then nothing is read, zeros are not looked for, and a disk of any size takes no time. Only
    where the target's file is the disk as it is; a VHDX is laid out by what is not zero.
    """

    def __init__(self, disk: SparseDisk, writer: ReservingWriter, target: _Target) -> None:
        self.shared = 0
        self._disk = disk
        self._writer = writer
        self._source: LocalBlockFile | None = None
        if isinstance(target, _FlatTarget) and isinstance(disk, StoredDisk):
            self._source = disk.file

    def left(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of what has to be copied, and share the rest on the way."""
        for start, length in self._disk.allocated_ranges():
            if self._source is None or not isinstance(self._disk, StoredDisk):
                yield start, length
                continue
            for place, count in self._disk.file_ranges(start, length):
                done = self._share(place, start, count)
                if done < count and place >= 0:
                    yield start + done, count - done
                start += count

    def _share(self, place: int, start: int, count: int) -> int:
        whole = count // _PAGE * _PAGE
        if self._source is None or place < 0 or place % _PAGE or start % _PAGE or not whole:
            return 0
        self._writer.settle()
        if not self._writer.file.share_from(self._source, place, start, whole):
            self._source = None
            return 0
        self.shared += whole
        return whole


def data_runs(part: bytes) -> list[tuple[int, int]]:
    """Return (offset, length) of the runs of pages of 4 KiB in `part` that are not all zeros.

    Gaps below 32 KiB count as data: a file in many small parts costs more than it saves. A page
    whose first word is not zero needs no further look: data costs next to nothing.
    """
    pages = len(part) // _PAGE
    words = np.frombuffer(part, dtype=np.uint64, count=pages * _PAGE_WORDS)
    holds = words[::_PAGE_WORDS] != 0
    rest = part[pages * _PAGE :]
    if not rest and holds.all():
        return [(0, len(part))] if part else []
    table = words.reshape(pages, _PAGE_WORDS)
    unsure = np.flatnonzero(~holds)
    holds[unsure] = (table[unsure] if len(unsure) < pages else table).any(axis=1)
    if rest:
        holds = np.append(holds, any(rest))
    edges = np.flatnonzero(np.diff(holds, prepend=False, append=False)) * _PAGE
    runs: list[tuple[int, int]] = []
    for start, end in edges.reshape(-1, 2).tolist():
        if runs and start - sum(runs[-1]) < _SMALL_GAP:
            start = runs.pop()[0]
        runs.append((start, min(end, len(part)) - start))
    return runs

"""The template of scratch disks as a file at a location: verified before it is trusted.

Its name is the one that containerd's own plugin gives it: `scratch.vhdx` for the default size,
`scratch_<N>.vhdx` for N GiB. Any client may name the location, and anybody may have put the file
there; so a file that is no clean, formatted scratch disk of the right size is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from snapshotter.blockio import DiskContent
from snapshotter.errors import AlreadyExistsError, FailedPreconditionError, StorageError
from snapshotter.labels import DEFAULT_SCRATCH_SIZE
from snapshotter.platform import Platform
from snapshotter.scratch.maker import allocation_of
from snapshotter.scratch.template import SCRATCH_BLOCK_SIZE, ScratchTemplate, verify_scratch
from snapshotter.units import GIB, KIB, MIB
from snapshotter.vhdx import VhdxDisk, layout_vhdx

_MAX_DATA: Final = 256 * MIB
"""A template is kept in memory. Upstream's takes 17 MiB."""
_PIECE: Final = 64 * KIB
_NAME: Final = re.compile(r"scratch(?:_([0-9]{1,8})(m?))?\.vhdx")

FileState = tuple[int, int, int, int] | None
"""What tells one state of a file from another: device, inode, size, time of change in ns."""


def template_name(size: int) -> str:
    """The file name of the template for disks of `size` bytes."""
    if size == DEFAULT_SCRATCH_SIZE:
        return "scratch.vhdx"
    if size % GIB == 0:
        return f"scratch_{size // GIB}.vhdx"
    return f"scratch_{size // MIB}m.vhdx"


def template_size(name: str) -> int | None:
    """The size that a template of that file name has; None for another name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    number, unit = match.groups()
    size = DEFAULT_SCRATCH_SIZE if number is None else int(number) * (MIB if unit else GIB)
    return size if template_name(size) == name else None


@dataclass(frozen=True, slots=True)
class TemplateFile:
    """One template at one location."""

    path: Path
    size: int
    _platform: Platform

    @classmethod
    def at(cls, location: Path, size: int, platform: Platform) -> Self:
        """The template of disks of `size` bytes; it need not be there."""
        return cls(location / template_name(size), size, platform)

    def state(self) -> FileState:
        """What would change with the file; None where there is none."""
        try:
            status = self._platform.long(self.path).lstat()
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def load_or_create(self, *, durable: bool) -> ScratchTemplate:
        """The template in the file, which is made where it is missing.

        Raises FailedPreconditionError (the file is no such template), UnavailableError.
        """
        path = self._platform.long(self.path)
        if self.state() is None:
            template = ScratchTemplate.build(self.size)
            try:
                template.write(path, durable=durable, allocation=allocation_of(self._platform))
            except AlreadyExistsError:
                pass  # another process was faster: its file is as good as any
            else:
                return template
        return self.load()

    def load(self) -> ScratchTemplate:
        """The template in the file. Raises FailedPreconditionError, UnavailableError."""
        path = self._platform.long(self.path)
        if path.is_symlink() or not path.is_file():
            raise self._refusal("it is no regular file")
        try:
            verify_scratch(path, size=self.size)
            with VhdxDisk.open(path) as disk:
                content = DiskContent(disk.size, tuple(self._pieces(disk)))
        except (StorageError, FailedPreconditionError) as error:
            raise self._refusal(str(error)) from error
        return ScratchTemplate(self.size, layout_vhdx(content, block_size=SCRATCH_BLOCK_SIZE))

    def _pieces(self, disk: VhdxDisk) -> Iterator[tuple[int, bytes]]:
        """What is not zero, in pieces that begin and end with data."""
        total = 0
        start, run = 0, bytearray()
        for offset, length in disk.allocated_ranges():
            for at in range(offset, offset + length, _PIECE):
                data = disk.read_at(at, min(_PIECE, offset + length - at))
                if not any(data):
                    continue
                total += len(data)
                if total > _MAX_DATA:
                    raise self._refusal(f"it holds more than {_MAX_DATA // MIB} MiB of data")
                if start + len(run) != at:
                    if run:
                        yield start, bytes(run)
                    start, run = at, bytearray()
                run += data
        if run:
            yield start, bytes(run)

    def _refusal(self, problem: str) -> FailedPreconditionError:
        return FailedPreconditionError(
            f"the scratch template {self.path} cannot be trusted: {problem}; remove it, or put a"
            f" formatted, unused disk of {self.size} bytes there"
        )

"""What goes where in a root file system of the guest; the same layout gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from harness.image.cpio import CpioWriter, DeviceKind, Entry
from harness.image.tree import MERGED_DIRECTORIES, TreeFile, canonical

_STICKY = {"/tmp": 0o1777}  # noqa: S108 - the guest's own


class Layout:
    """Files, links and device nodes by path; parents are made, paths are canonical.

    What is added first stays.
    """

    def __init__(self) -> None:
        self._files: dict[str, tuple[bytes, int]] = {}
        self._links: dict[str, str] = {}
        self._devices: dict[str, tuple[int, int]] = {}
        self._directories: set[str] = set()

    def file(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        """Add a file."""
        if self._is_free(path):
            self._files[canonical(path)] = (content, mode)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        if self._is_free(path):
            self._links[canonical(path)] = target

    def directory(self, path: str) -> None:
        """Add an empty directory."""
        self._directories.add(canonical(path))

    def character_device(self, path: str, *, major: int, minor: int) -> None:
        """Add a character device node."""
        self._devices[canonical(path)] = (major, minor)

    def packaged(self, chain: Iterable[TreeFile]) -> None:
        """Add a file of a package and the links that lead to it."""
        for file in chain:
            if file.target is None:
                mode = 0o755 if file.source.stat().st_mode & 0o111 else 0o644
                self.file(file.path, file.source.read_bytes(), mode=mode)
            else:
                self.link(file.path, file.target)

    def entries(self) -> Iterator[Entry]:
        """Everything, sorted by path so that a directory comes before what is in it."""
        named = {*self._files, *self._links, *self._devices}
        parents = {p.as_posix() for path in named for p in Path(path).parents}
        for path in sorted((named | parents | self._directories) - {"/"}):
            name = path.lstrip("/")
            if path in self._files:
                content, mode = self._files[path]
                yield Entry(name, mode, content=content)
            elif path in self._links:
                yield Entry(name, 0o777, target=self._links[path])
            elif path in self._devices:
                yield Entry(name, 0o600, device=self._devices[path])
            else:
                yield Entry(name, _STICKY.get(path, 0o755))
        for name in MERGED_DIRECTORIES:
            yield Entry(name, 0o777, target=f"usr/{name}")

    def write(self, out: BinaryIO) -> int:
        """Write everything as a cpio archive; gives its size in bytes."""
        archive = CpioWriter(out)
        for entry in self.entries():
            if entry.content is not None:
                archive.file(entry.name, entry.content, mode=entry.mode)
            elif entry.target is not None:
                archive.symlink(entry.name, entry.target)
            elif entry.device is not None:
                major, minor = entry.device
                archive.device(entry.name, DeviceKind.CHARACTER, major=major, minor=minor)
            else:
                archive.directory(entry.name, mode=entry.mode)
        archive.finish()
        return archive.size

    def _is_free(self, path: str) -> bool:
        return canonical(path) not in self._files.keys() | self._links.keys()

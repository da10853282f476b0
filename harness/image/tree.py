"""The files of several unpacked packages, seen as one root with a merged /usr.

A path is canonical when its first folder is not one of the old top-level ones: `/bin/sh` is
`/usr/bin/sh`. Debian 12's packages use the old paths, later ones do not; the guest has links.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.image.packages import Package

MERGED_DIRECTORIES = ("bin", "lib", "lib64", "sbin")
_MAX_LINKS = 40  # as the kernel's own limit, MAXSYMLINKS


@dataclass(frozen=True, slots=True)
class TreeFile:
    """A file or symbolic link: where it lies unpacked, and the package it came from."""

    path: str
    source: Path
    package: Package
    target: str | None
    """What a symbolic link points to; None for a regular file."""


def canonical(path: str) -> str:
    """The path on a merged /usr: absolute, without `.` and `..`."""
    clean = posixpath.normpath(posixpath.join("/", path)).lstrip("/")
    first = clean.split("/", 1)[0]
    return f"/usr/{clean}" if first in MERGED_DIRECTORIES else f"/{clean}"


class PackageTree:
    """Unpacked packages laid over each other; the first package that has a path wins."""

    def __init__(self) -> None:
        self._files: dict[str, TreeFile] = {}
        self._packages: dict[str, Package] = {}

    @property
    def packages(self) -> tuple[Package, ...]:
        """The packages added so far."""
        return tuple(self._packages.values())

    def add(self, package: Package, folder: Path) -> None:
        """Take in a package that was unpacked below `folder`."""
        self._packages[package.name] = package
        for parent, directories, files in os.walk(folder):
            relative = Path(parent).relative_to(folder).as_posix()
            for name in [*files, *directories]:
                source = Path(parent, name)
                target = str(source.readlink()) if source.is_symlink() else None
                if target is None and not source.is_file():
                    continue
                path = canonical(f"{relative}/{name}")
                self._files.setdefault(path, TreeFile(path, source, package, target))

    def chain(self, path: str) -> list[TreeFile]:
        """The links that `path` leads through and the regular file at their end; [] if none."""
        found: list[TreeFile] = []
        current = canonical(path)
        while len(found) <= _MAX_LINKS:
            file = self._files.get(current)
            if file is None:
                return []
            found.append(file)
            if file.target is None:
                return found
            current = canonical(posixpath.join(posixpath.dirname(current), file.target))
        return []

    def find(self, path: str) -> TreeFile | None:
        """The regular file at `path`, links followed, or None."""
        chain = self.chain(path)
        return chain[-1] if chain else None

    def read(self, path: str) -> bytes | None:
        """The bytes of the file at `path`, links followed, or None."""
        file = self.find(path)
        return None if file is None else file.source.read_bytes()

    def below(self, directory: str) -> Iterator[TreeFile]:
        """Every file and link below a directory."""
        prefix = canonical(directory).rstrip("/") + "/"
        return (file for path, file in sorted(self._files.items()) if path.startswith(prefix))

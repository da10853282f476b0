"""The guest's programs unpacked, and their libraries fetched as the ELF closure asks for them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from harness.errors import ImageBuildError
from harness.image.distribution import ProgramPackages
from harness.image.elf import MissingLibrary, library_closure
from harness.image.packages import Apt, Package, unpack
from harness.image.tree import PackageTree

_MAX_ROUNDS = 16


class Userland:
    """Unpacked packages that grow until no library is missing.

    `debs` keeps the downloads; the packages are unpacked below `scratch`.
    """

    def __init__(self, apt: Apt, plan: ProgramPackages, *, debs: Path, scratch: Path) -> None:
        self._apt = apt
        self._plan = plan
        self._debs = debs
        self._scratch = scratch
        self.tree = PackageTree()

    def unpack_roots(self) -> None:
        """Fetch and unpack the packages that hold the programs. Raises ImageBuildError."""
        self._add(self._plan.packages[name] for name in self._plan.roots)

    def libraries(self, programs: Iterable[str]) -> list[str]:
        """Paths of every loader and library that the programs need.

        Packages that have the missing ones are fetched. Raises ImageBuildError if none has.
        """
        roots = list(programs)
        missing: list[MissingLibrary] = []
        for _ in range(_MAX_ROUNDS):
            found, missing = library_closure(roots, self.tree.read)
            if not missing:
                return found
            packages = {p.name: p for library in missing for p in self._providers(library)}
            if not packages:
                break
            self._add(packages.values())
        listed = ", ".join(f"{m.soname} (for {m.needed_by})" for m in missing)
        raise ImageBuildError(f"no package of this distribution has {listed}")

    def _providers(self, library: MissingLibrary) -> list[Package]:
        """Packages that may hold a library: named like it, else all its user depends on.

        Debian policy 8.1 names a library package after its soname; those that are named otherwise
        (zlib1g, libext2fs2 for libe2p) are direct dependencies all the same (policy 8.6).
        """
        user = self.tree.find(library.needed_by)
        if user is None:
            return []
        unpacked = {package.name for package in self.tree.packages}
        fresh = [
            self._plan.packages[name]
            for name in user.package.depends
            if name in self._plan.packages and name not in unpacked
        ]
        stem = _letters(library.soname.partition(".so")[0])
        return [p for p in fresh if _letters(p.name).startswith(stem)] or fresh

    def _add(self, packages: Iterable[Package]) -> None:
        wanted = list(packages)
        files = self._apt.download(wanted, self._debs)
        for package in wanted:
            folder = self._scratch / package.name
            unpack(files[package.name], folder)
            self.tree.add(package, folder)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())

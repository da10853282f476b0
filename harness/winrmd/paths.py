r"""The pretend host's disk: `C:\` is a folder here, whatever the case of its names.

Real local processes know only local paths, clients only Windows ones: both directions live here.
Nothing outside of the folder can be named, `..` included.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_ABSOLUTE: Final = re.compile(r"(?:\\\\\?\\)?([A-Za-z]):(?=[\\/]|$)")
_NESTED: Final = re.compile(r"(^|[=;,@])((?:\\\\\?\\)?[A-Za-z]:[\\/][^;,\"]*)")


@dataclass(frozen=True, slots=True)
class HostPaths:
    r"""Translates between `C:\…` and files below `root` (absolute)."""

    root: Path

    def local(self, path: str, *, directory: Path | None = None) -> Path | None:
        r"""Return the local path of a Windows one, or None if its drive is not C:.

        Relative paths start at `directory` (the root, if None). Existing names are found
        whatever their case; `..` stops at the root, as it does on a drive. Symbolic links are
        not followed: what the host's own processes made of its disk is theirs.
        """
        match = _ABSOLUTE.match(path)
        rest = path[match.end() :] if match else path
        if match is not None and match[1].upper() != "C":
            return None
        names = [name for name in re.split(r"[\\/]+", rest) if name not in ("", ".")]
        start = self.root
        if match is None and not rest.startswith(("\\", "/")) and directory is not None:
            start = directory
        parts = list(start.relative_to(self.root).parts)
        for name in names:
            if name == "..":
                del parts[-1:]
            else:
                parts.append(_name_in(self.root.joinpath(*parts), name))
        return self.root.joinpath(*parts)

    def windows(self, path: Path) -> str:
        r"""Return the `C:\…` name of a local path below the root. Raises ValueError outside."""
        return "C:\\" + "\\".join(path.relative_to(self.root).parts)

    def translate(self, text: str) -> str:
        r"""Return text for a local process: absolute `C:\` paths in it become local ones.

        A path counts at the start and after one of `=;,@` (`--out=C:\x`, `PATH`-like lists).
        """

        def replace(match: re.Match[str]) -> str:
            found = self.local(match[2])
            return match[0] if found is None else match[1] + str(found)

        return _NESTED.sub(replace, text)


def _name_in(directory: Path, name: str) -> str:
    """Return how the directory spells that name; the name itself if it has none like it."""
    if os.path.lexists(directory / name):
        return name
    try:
        entries = [entry.name for entry in directory.iterdir()]
    except OSError:
        return name
    folded = name.casefold()
    return min((entry for entry in entries if entry.casefold() == folded), default=name)

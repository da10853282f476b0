"""Where the parent of a differencing disk may be: Windows paths in a locator, on any system.

What a locator says was written on Windows as a rule. On other systems a relative path is taken
with its backslashes turned; a path with a drive letter is looked for below `/mnt/<letter>`, where
WSL has it, and, like one on a volume or a share, under its last name beside the child: whoever
moves a chain moves all of it. A file found that way counts only with the right DataWriteGuid.
"""

from __future__ import annotations

import ntpath
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from snapshotter.errors import InvalidArgumentError
from snapshotter.vhdx.locator import ABSOLUTE_PATH, RELATIVE_PATH, ParentLinks

ON_WINDOWS: Final = sys.platform == "win32"

_DEVICE_PREFIX: Final = re.compile(r"\\\\[?.]\\(?!UNC\\)", re.IGNORECASE)
_LOCAL_DEVICE: Final = re.compile(
    r"\\\\\?\\(?:[A-Z]:|Volume\{[0-9A-F-]+\})\\", re.IGNORECASE | re.ASCII
)
_DRIVE: Final = re.compile(r"([A-Za-z]):\\(.*)", re.DOTALL)


def places_to_try(links: ParentLinks, child: Path, *, windows: bool) -> Iterator[Path]:
    """Yield where the parent of the file `child` may be, the likeliest first, each place once.

    On Windows a path to another computer is tried only for a child that is on one itself: opening
    it would hand this user's credentials to whoever the file names.
    """
    seen: set[str] = set()
    for key, text in links.tried():
        finder = _on_windows if windows else _elsewhere
        for place in finder(key, text, child):
            if str(place) not in seen:
                seen.add(str(place))
                yield place


def paths_to_store(child: Path, parent: Path, *, windows: bool) -> Mapping[str, str]:
    """Return the paths to `parent` by key, for the locator of a new file `child`.

    A relative path, which survives moving both, and on Windows the absolute one too.

    Raises InvalidArgumentError for a name that Windows would read as two.
    """
    # Names are turned to where links lead, because `..` means that to the system; the parent's own
    # name stays.
    below = str(parent.parent.resolve() / parent.name)
    above = str(child.parent.resolve())
    paths: dict[str, str] = {}
    try:
        relative = os.path.relpath(below, above)
    except ValueError:  # another drive
        relative = ""
    if relative:
        if not windows:
            if "\\" in relative:
                raise InvalidArgumentError(
                    f"the path {relative} has a backslash, which separates names in a VHDX:"
                    " rename it"
                )
            relative = relative.replace("/", "\\")
        paths[RELATIVE_PATH] = relative if relative.startswith("..\\") else f".\\{relative}"
    if windows:
        paths[ABSOLUTE_PATH] = below if below.startswith("\\\\") else f"\\\\?\\{below}"
    return paths


def _on_windows(key: str, text: str, child: Path) -> Iterator[Path]:
    here = str(child)
    if not ntpath.isabs(here):
        here = str(child.absolute())
    path = ntpath.join(ntpath.dirname(here), text) if key == RELATIVE_PATH else text
    if _is_local(path) or not _is_local(here):
        yield Path(path)


def _is_local(path: str) -> bool:
    """Say whether an absolute path stays on this computer; of devices only disks count."""
    backslashed = path.replace("/", "\\")
    return not backslashed.startswith("\\\\") or _LOCAL_DEVICE.match(backslashed) is not None


def _elsewhere(key: str, text: str, child: Path) -> Iterator[Path]:
    folders = [child.parent]
    if child.is_symlink():
        folders.append(Path(os.path.realpath(child)).parent)
    bare = _bare(text)
    drive = _DRIVE.fullmatch(bare)
    if drive is not None:
        yield Path("/mnt", drive[1].lower(), *_names(drive[2]))
    elif bare.startswith("/"):
        yield Path(bare)
    elif key == RELATIVE_PATH and not bare.startswith("\\"):
        for folder in folders:
            # Not normalised: `..` behind a link means what the system makes of it.
            yield folder.joinpath(*_names(bare))
        return
    names = _names(bare)
    if names and names[-1] != "..":
        for folder in folders:
            yield folder / names[-1]


def _bare(text: str) -> str:
    return _DEVICE_PREFIX.sub("", text, count=1)


def _names(path: str) -> list[str]:
    return [name for name in re.split(r"[\\/]", path) if name not in ("", ".")]

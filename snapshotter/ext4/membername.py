"""Names of tar members: what is refused, and the parts of what is not."""

from __future__ import annotations

import re
from typing import Final

from snapshotter.ext4.directory import MAX_NAME

_MAX_PATH: Final = 4095  # PATH_MAX without its NUL

# Anything that `split_path` would change or refuse: a start with `/` or `.`, an end with `/`,
# empty and dotted parts, NUL. Hidden files and long names go the long way too; they are few.
_SPECIAL: Final = re.compile(rb"^[/.]|/[/.]|/$|\0|^$")


class PathError(Exception):
    """A member that cannot be placed; whoever knows its name turns this into a LayerError."""


def is_clean(name: bytes) -> bool:
    """Return whether `name` can be taken as it stands."""
    return _SPECIAL.search(name) is None and len(name) <= MAX_NAME


def split_path(name: bytes) -> list[bytes]:
    """Return the components of `name`; none for the root of the layer.

    `./` in front, doubled slashes and a slash at the end are accepted, as tars have them.
    Raises PathError for absolute names, `..`, NUL, and what is empty or too long.
    """
    if not name:
        raise PathError("an empty name")
    if name.startswith(b"/"):
        raise PathError("an absolute name: names in a layer are relative to its root")
    if b"\0" in name:
        raise PathError("a NUL in the name")
    if len(name) > _MAX_PATH:
        raise PathError(f"a name of {len(name)} bytes: Linux allows {_MAX_PATH}")
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    for part in parts:
        if part == b"..":
            raise PathError("a name that leaves the layer by `..`")
        if len(part) > MAX_NAME:
            raise PathError(f"a name of {len(part)} bytes: ext4 allows {MAX_NAME}")
    return parts

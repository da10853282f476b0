"""Labels that ask for something, and what they ask for.

All of them begin with `containerd.io/snapshot/`, so that containerd passes them on to a back
end (snapshots.FilterInheritedLabels).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final

from snapshotter.errors import InvalidArgumentError
from snapshotter.units import GIB, MIB, TIB

SIZE_GB: Final = "containerd.io/snapshot/io.microsoft.container.storage.rootfs.size-gb"
"""Size of the scratch disk in GiB, decimal; 0 stands for the default (plugins/snapshots/lcow)."""

SIZE_BYTES: Final = "containerd.io/snapshot/windows/rootfs.sizebytes"
"""Size of the scratch disk in bytes; what containerd's CRI plugin sets since v1.7.0."""

MAX_SIZE: Final = "containerd.io/snapshot/max-size"
"""The most bytes that a snapshot may hold; the size of its disk where no other label asks."""

LOCATION: Final = "containerd.io/snapshot/io.microsoft.container.storage.rootfs.location"
"""Directory of the scratch template, and here of the disk as well.

Refused unless the store was opened with it, or a directory around it, as allowed.
"""

REUSE_SCRATCH: Final = "containerd.io/snapshot/io.microsoft.container.storage.reuse-scratch"
"""`true`: share the scratch disk of the snapshot that `OWNER_KEY` names."""

OWNER_KEY: Final = "containerd.io/snapshot/io.microsoft.owner.key"
"""Key of the snapshot whose scratch disk is shared."""

SNAPSHOT_REF: Final = "containerd.io/snapshot.ref"
"""Set by unpackers to the chain ID that the snapshot is going to be committed as."""

DIFF_ID: Final = "containerd.io/snapshot/diff-id"
"""Digest of a layer's uncompressed tar."""

SESSION: Final = "containerd.io/snapshot/lcowlab.session"
"""On an active snapshot: remove it once the store that this names is closed or killed."""

DEFAULT_SCRATCH_SIZE: Final = 20 * GIB
"""What hcsshim's DefaultScratchSizeGB gives where nobody asks for a size."""

MIN_SCRATCH_SIZE: Final = GIB
MAX_SCRATCH_SIZE: Final = 64 * TIB
"""The largest virtual disk of [MS-VHDX] 2.6.2.1."""

_DECIMAL: Final = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class OwnScratch:
    """A new scratch disk of `size` bytes; `location` is a directory, or "" for the store's own."""

    size: int
    location: str = ""


@dataclass(frozen=True, slots=True)
class SharedScratch:
    """The scratch disk of the snapshot named `owner`.

    `size` (bytes), `location` and `max_size` (bytes) are what the labels ask for as well; None
    where they do not.
    """

    owner: str
    size: int | None = None
    location: str | None = None
    max_size: int | None = None


ScratchRequest = OwnScratch | SharedScratch


def without_empty(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels that have a value: an empty value is no label (containerd boltutil)."""
    return {name: value for name, value in labels.items() if value}


def _fold(path: str) -> str:
    return os.path.normcase(os.path.normpath(path))


def scratch_request(
    labels: Mapping[str, str],
    *,
    default_size: int,
    locations: Sequence[Path],
    fold: Callable[[str], str] = _fold,
) -> ScratchRequest:
    """What the labels of a new active snapshot ask for.

    `locations` are the absolute directories that `LOCATION` may name, or name a part of; `fold`
    makes two spellings of one path equal. Raises InvalidArgumentError naming label and value:
    containerd's own plugin takes the default for a size it cannot read.
    """
    size = _requested_size(labels)
    most = _maximum(labels, size)
    location = _requested_location(labels, locations, fold)
    reuse = labels.get(REUSE_SCRATCH, "false")
    if reuse not in ("true", "false"):
        raise _refusal(REUSE_SCRATCH, reuse, "expected true or false")
    if reuse == "false":
        return OwnScratch(size or most or default_size, location or "")
    owner = labels.get(OWNER_KEY, "")
    if not owner:
        raise _refusal(
            REUSE_SCRATCH, reuse, f"sharing needs the owner's key in the label {OWNER_KEY}"
        )
    return SharedScratch(owner, size, location, most)


def check_scratch_size(size: int) -> int:
    """`size` in bytes, rounded up to whole MiB. Raises InvalidArgumentError out of bounds."""
    if not MIN_SCRATCH_SIZE <= size <= MAX_SCRATCH_SIZE:
        raise InvalidArgumentError(
            f"a scratch disk of {size} bytes is not possible;"
            f" give {MIN_SCRATCH_SIZE // GIB} GiB to {MAX_SCRATCH_SIZE // TIB} TiB"
        )
    return -(-size // MIB) * MIB


def _requested_size(labels: Mapping[str, str]) -> int | None:
    sizes = {}
    for name, unit in ((SIZE_GB, GIB), (SIZE_BYTES, 1)):
        text = labels.get(name)
        if text is None:
            continue
        if _DECIMAL.fullmatch(text) is None:
            raise _refusal(name, text, "expected a decimal number, 0 or more")
        if int(text) == 0:
            continue
        try:
            sizes[name] = check_scratch_size(int(text) * unit)
        except InvalidArgumentError as error:
            raise _refusal(name, text, str(error)) from error
    if len(set(sizes.values())) > 1:
        raise _refusal(
            SIZE_GB, labels[SIZE_GB], f"{SIZE_BYTES}={labels[SIZE_BYTES]} asks for another size"
        )
    return next(iter(sizes.values()), None)


def _maximum(labels: Mapping[str, str], size: int | None) -> int | None:
    """The size limit in whole MiB, none of them begun beyond it."""
    text = labels.get(MAX_SIZE)
    if text is None:
        return None
    if _DECIMAL.fullmatch(text) is None:
        raise _refusal(MAX_SIZE, text, "expected a decimal number, 0 or more")
    most = int(text) // MIB * MIB
    if most == 0 == int(text):
        return None
    try:
        check_scratch_size(most)
    except InvalidArgumentError as error:
        raise _refusal(MAX_SIZE, text, str(error)) from error
    if size is not None and size > most:
        raise _refusal(MAX_SIZE, text, f"another label asks for {size} bytes, which is more")
    return most


def _requested_location(
    labels: Mapping[str, str], allowed: Sequence[Path], fold: Callable[[str], str]
) -> str | None:
    text = labels.get(LOCATION)
    if text is None:
        return None
    # The text decides, not what it resolves to: an allowed path must be named as the
    # configuration names it. Links further down are refused when the directory is made.
    wanted = PurePath(fold(text))
    for path in allowed:
        base = PurePath(fold(str(path)))
        if wanted.is_relative_to(base):
            return str(path / wanted.relative_to(base))
    choice = ", ".join(map(str, allowed)) or "none: the store was opened without any"
    raise _refusal(LOCATION, text, f"not inside an allowed scratch location ({choice})")


def _refusal(name: str, value: str, problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"label {name}={value!r}: {problem}")

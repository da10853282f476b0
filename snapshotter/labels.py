"""Labels that ask for something, and what they ask for.

All of them begin with `containerd.io/snapshot/`, so that containerd passes them on to a back
end (snapshots.FilterInheritedLabels).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snapshotter.errors import InvalidArgumentError
from snapshotter.units import GIB, MIB, TIB

SIZE_GB: Final = "containerd.io/snapshot/io.microsoft.container.storage.rootfs.size-gb"
"""Size of the scratch disk in GiB, decimal; 0 stands for the default (plugins/snapshots/lcow)."""

SIZE_BYTES: Final = "containerd.io/snapshot/windows/rootfs.sizebytes"
"""Size of the scratch disk in bytes; what containerd's CRI plugin sets since v1.7.0."""

LOCATION: Final = "containerd.io/snapshot/io.microsoft.container.storage.rootfs.location"
"""Directory for the scratch disk; refused unless the store was opened with it as allowed."""

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

    `size` (bytes) and `location` are what the labels ask for as well; None where they do not.
    """

    owner: str
    size: int | None = None
    location: str | None = None


ScratchRequest = OwnScratch | SharedScratch


def without_empty(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels that have a value: an empty value is no label (containerd boltutil)."""
    return {name: value for name, value in labels.items() if value}


def scratch_request(
    labels: Mapping[str, str], *, default_size: int, locations: Sequence[Path]
) -> ScratchRequest:
    """What the labels of a new active snapshot ask for.

    `locations` are the absolute directories that `LOCATION` may name. Raises InvalidArgumentError
    naming label and value: containerd's own plugin takes the default for a size it cannot read.
    """
    size = _requested_size(labels)
    location = _requested_location(labels, locations)
    reuse = labels.get(REUSE_SCRATCH, "false")
    if reuse not in ("true", "false"):
        raise _refusal(REUSE_SCRATCH, reuse, "expected true or false")
    if reuse == "false":
        return OwnScratch(default_size if size is None else size, location or "")
    owner = labels.get(OWNER_KEY, "")
    if not owner:
        raise _refusal(
            REUSE_SCRATCH, reuse, f"sharing needs the owner's key in the label {OWNER_KEY}"
        )
    return SharedScratch(owner, size, location)


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


def _requested_location(labels: Mapping[str, str], allowed: Sequence[Path]) -> str | None:
    text = labels.get(LOCATION)
    if text is None:
        return None
    # normpath, not resolve: an allowed path must be named as the configuration names it, so
    # that no symbolic link decides where disks are written.
    wanted = os.path.normcase(os.path.normpath(text))
    for path in allowed:
        if os.path.normcase(path) == wanted:
            return str(path)
    choice = ", ".join(map(str, allowed)) or "none: the store was opened without any"
    raise _refusal(LOCATION, text, f"not an allowed scratch location ({choice})")


def _refusal(name: str, value: str, problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"label {name}={value!r}: {problem}")

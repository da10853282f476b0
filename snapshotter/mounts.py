"""From a chain of snapshots to the `lcow-layer` mount that hcsshim parses (ParseLCOWLayers)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snapshotter.errors import InvalidArgumentError
from snapshotter.metastore.model import Kind, Snapshot, SnapshotId

LCOW_LAYER: Final = "lcow-layer"
SCRATCH_NAME: Final = "sandbox.vhdx"
"""The scratch disk in a mount's source."""
LAYER_NAME: Final = "layer.vhd"
"""The layer disk in each parent layer path."""
_PARENTS: Final = "parentLayerPaths="


@dataclass(frozen=True, slots=True)
class Mount:
    """containerd.types.Mount without its target, which LCOW mounts leave empty."""

    type: str
    source: str
    options: tuple[str, ...]

    @property
    def parent_layer_paths(self) -> tuple[Path, ...]:
        """Directories of the parents' layers, nearest first. Raises InvalidArgumentError."""
        for option in self.options:
            if option.startswith(_PARENTS):
                try:
                    decoded: object = json.loads(option.removeprefix(_PARENTS))
                except ValueError as error:
                    raise InvalidArgumentError(f"mount option {option!r} is not JSON") from error
                if decoded is None:
                    return ()
                if isinstance(decoded, list) and all(isinstance(item, str) for item in decoded):
                    return tuple(map(Path, decoded))
                raise InvalidArgumentError(f"mount option {option!r} is no list of paths")
        return ()


def lcow_mounts(snapshot: Snapshot, directory: Callable[[SnapshotId], Path]) -> list[Mount]:
    """The one mount of an active snapshot or a view, as plugins/snapshots/lcow gives it.

    The source is the snapshot's own directory; for a view with parents, its nearest parent's.
    """
    sources = [str(directory(number)) for number in snapshot.parent_ids]
    if snapshot.kind is Kind.ACTIVE or not sources:
        sources.insert(0, str(directory(snapshot.id)))
    mode = "rw" if snapshot.kind is Kind.ACTIVE else "ro"
    return [Mount(LCOW_LAYER, sources[0], (mode, _PARENTS + go_json(sources[1:])))]


def go_json(paths: Sequence[str]) -> str:
    """A list of strings as Go's json.Marshal writes it: a nil slice, `null`, where it is empty.

    Go escapes `<`, `>`, `&` and U+2028/2029, and replaces what is not UTF-8 by U+FFFD.
    """
    if not paths:
        return "null"
    text = f"[{','.join(map(_encode, paths))}]"
    if _PLAIN.fullmatch(text):
        return text
    return _LONE_SURROGATE.sub(r"\\ufffd", text.translate(_GO_ESCAPES))


_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_PLAIN: Final = re.compile("[ !-%'-;=?-~]*")
"""What Go and Python write alike: ASCII without `&`, `<`, `>`."""
_GO_ESCAPES: Final = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")

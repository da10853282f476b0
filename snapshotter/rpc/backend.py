"""What the service needs of a snapshotter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from snapshotter.contract import Contract

if TYPE_CHECKING:
    from snapshotter.layercache import LayerCache


class Backend(Contract, Protocol):
    """`snapshotter.Snapshotter`, or what wraps one and gives other mounts."""

    @property
    def layers(self) -> LayerCache | None: ...

    def stat_frame(self, key: str) -> bytes: ...

    def walk_frames(self, *filters: str) -> Iterator[bytes]: ...

    def cleanup(self) -> int: ...

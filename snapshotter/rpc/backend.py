"""What the service needs of a snapshotter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from snapshotter.metastore.model import Info, Usage
from snapshotter.mounts import Mount

if TYPE_CHECKING:
    from snapshotter.layercache import LayerCache


class Backend(Protocol):
    """`snapshotter.Snapshotter`, or what wraps one and gives other mounts.

    The methods are documented there, with the errors that they raise.
    """

    @property
    def layers(self) -> LayerCache | None: ...

    def prepare(
        self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None
    ) -> Sequence[Mount]: ...

    def view(
        self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None
    ) -> Sequence[Mount]: ...

    def mounts(self, key: str) -> Sequence[Mount]: ...

    def commit(
        self,
        name: str,
        key: str,
        *,
        labels: Mapping[str, str] | None = None,
        parent: str = "",
    ) -> None: ...

    def remove(self, key: str) -> None: ...

    def stat_frame(self, key: str) -> bytes: ...

    def update(self, info: Info, *fieldpaths: str) -> Info: ...

    def usage(self, key: str) -> Usage: ...

    def walk_frames(self, *filters: str) -> Iterator[bytes]: ...

    def cleanup(self) -> int: ...

    def close(self) -> None: ...

"""containerd's core/snapshots.Snapshotter, in Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from snapshotter.metastore.model import Info, Usage
from snapshotter.mounts import Mount


class Contract(Protocol):
    """What every snapshotter does: ours, what wraps it, or one at the other end of a socket.

    `snapshotter.Snapshotter` documents the methods, with the errors that they raise.
    """

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

    def stat(self, key: str) -> Info: ...

    def update(self, info: Info, *fieldpaths: str) -> Info: ...

    def usage(self, key: str) -> Usage: ...

    def walk(self, *filters: str) -> Iterator[Info]: ...

    def close(self) -> None: ...

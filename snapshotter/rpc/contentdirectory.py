r"""Blobs of containerd's content store, read from its files.

For Windows: containerd serves its content API on a named pipe there, which gRPC for Python cannot
dial, and a bridge in that direction would hand containerd's whole API to whoever finds its port.
containerd names a blob to a differ after it has verified it, and never changes it:

::

    <root>\io.containerd.content.v1.content\blobs\sha256\<hex>
"""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from snapshotter.digests import check_digest
from snapshotter.errors import NotFoundError, UnavailableError
from snapshotter.platform import Platform, local_platform
from snapshotter.units import MIB

_READ_SIZE: Final = MIB


class ContentDirectory:
    """A content store by its directory, `blobs` in it."""

    def __init__(self, path: Path, platform: Platform | None = None) -> None:
        self._path = path
        self._platform = platform or local_platform()

    def open(self, digest: str, *, size: int, namespace: str) -> _OpenFile:
        """Open a blob of `size` bytes (0: not known); files know no namespaces.

        Raises NotFoundError, UnavailableError, InvalidArgumentError (no digest).
        """
        del namespace
        algorithm, _, encoded = check_digest(digest).partition(":")
        path = self._platform.long(self._path / "blobs" / algorithm / encoded)
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError as error:
            raise NotFoundError(
                f"blob {digest} is not in {self._path}; check containerd.content, which is the"
                " directory io.containerd.content.v1.content of containerd's root"
            ) from error
        except OSError as error:
            raise UnavailableError(f"cannot read blob {digest}: {error.strerror}") from error
        found = path.stat().st_size
        if size and found != size:
            file.close()
            raise UnavailableError(f"blob {digest} has {found} bytes of {size}; try again")
        return _OpenFile(file, digest)

    def close(self) -> None:
        """Nothing: every blob is closed by who opened it."""


class _OpenFile:
    def __init__(self, file: io.RawIOBase, digest: str) -> None:
        self._raw = _Cancellable(file, digest)
        self._stream = cast("BinaryIO", io.BufferedReader(self._raw, buffer_size=_READ_SIZE))

    @property
    def stream(self) -> BinaryIO:
        return self._stream

    def cancel(self) -> None:
        self._raw.cancel()


class _Cancellable(io.RawIOBase):
    """A file that another thread may end."""

    def __init__(self, file: io.RawIOBase, digest: str) -> None:
        super().__init__()
        self._file = file
        self._digest = digest
        self._reading = threading.Lock()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401, what io hands over
        with self._reading:
            if self._file.closed:
                raise UnavailableError(f"reading blob {self._digest} was cancelled")
            try:
                return self._file.readinto(buffer) or 0
            except OSError as error:
                raise UnavailableError(
                    f"cannot read blob {self._digest}: {error.strerror}"
                ) from error

    def cancel(self) -> None:
        with self._reading:
            self._file.close()

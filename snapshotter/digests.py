"""OCI digests (`sha256:...`), chain IDs, and streams that are checked while they are read."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, Final

from snapshotter.errors import DigestMismatchError, InvalidArgumentError
from snapshotter.units import KIB, MIB

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_LENGTHS: Final = {"sha256": 64, "sha384": 96, "sha512": 128}
_DIGEST: Final = re.compile(r"([a-z0-9]+):([0-9a-f]+)")
_DRAIN_SIZE: Final = 256 * KIB
_WATCH_STEP: Final = 4 * MIB


def check_digest(text: str) -> str:
    """`text`, where it is a well-formed digest of a known algorithm.

    Raises InvalidArgumentError.
    """
    match = _DIGEST.fullmatch(text)
    if match is None or _LENGTHS.get(match.group(1)) != len(match.group(2)):
        known = ", ".join(_LENGTHS)
        raise InvalidArgumentError(f"{text!r} is no digest; expected {known}, a colon and hex")
    return text


def sha256_digest(data: bytes) -> str:
    """The digest of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def chain_ids(diff_ids: Sequence[str]) -> Iterator[str]:
    """The chain ID of each layer, base first (OCI image-spec config.md, Layer ChainID)."""
    chain = ""
    for diff_id in diff_ids:
        chain = sha256_digest(f"{chain} {diff_id}".encode()) if chain else diff_id
        yield chain


class CheckedReader(io.RawIOBase):
    """A stream whose digest and length are known beforehand; `finish` checks them.

    `what` names it in errors; `watch` is called with the position now and then. What is read
    before `finish` returns is not to be trusted yet.
    """

    def __init__(
        self,
        raw: BinaryIO,
        what: str,
        *,
        digest: str | None,
        size: int,
        watch: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__()
        self._watch = watch
        self._next_watch = 0
        self._raw = raw
        self._what = what
        self._size = size
        self._expected = None if digest is None else check_digest(digest)
        self._hash = hashlib.new((digest or "sha256:").partition(":")[0])
        self.position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read up to the size of `buffer`; 0 at the end."""
        view = memoryview(buffer).cast("B")
        data = self._raw.read(len(view))
        view[: len(data)] = data
        self._hash.update(data)
        self.position += len(data)
        if self._watch is not None and self.position >= self._next_watch:
            self._next_watch = self.position + _WATCH_STEP
            self._watch(self.position)
        return len(data)

    def finish(self) -> None:
        """Read to the end and compare. Raises DigestMismatchError."""
        while self.read(_DRAIN_SIZE):
            pass
        if self.position != self._size:
            raise DigestMismatchError(
                self._what, expected=f"{self._size} bytes", actual=f"{self.position} bytes"
            )
        if self._expected is not None:
            actual = f"{self._hash.name}:{self._hash.hexdigest()}"
            if actual != self._expected:
                raise DigestMismatchError(self._what, expected=self._expected, actual=actual)

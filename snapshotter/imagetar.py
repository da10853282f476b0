"""The members of an image tar by name: read where they are, checked against their digests."""

from __future__ import annotations

import io
import json
import posixpath
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self

from snapshotter.digests import CheckedReader
from snapshotter.errors import ImageError
from snapshotter.units import MIB

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_MAX_JSON: Final = 8 * MIB
"""As containerd reads manifests."""
_MAX_LINKS: Final = 16
_MAX_MEMBERS: Final = 100_000
_BLOB: Final = re.compile(r"blobs/([a-z0-9]+)/([0-9a-f]+)")
_DOCKER_CONFIG: Final = re.compile(r"([0-9a-f]{64})\.json")


class ImageTar:
    """An open tar; a context manager."""

    def __init__(self, path: Path, file: BinaryIO, members: Mapping[str, tarfile.TarInfo]) -> None:
        self.path = path
        self._file = file
        self._members = members

    @classmethod
    def open(cls, path: Path, *, spool_directory: Path) -> Self:
        """Open a tar. One that is itself compressed is uncompressed into a nameless file.

        Raises ImageError for what is no tar, FileNotFoundError, UnavailableError.
        """
        # Compression is imported with the first archive, not with the package.
        from snapshotter.imagespool import open_seekable

        file = open_seekable(path, spool_directory)
        try:
            return cls(path, file, _index(path, file))
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return _normal(name) in self._members

    def size(self, name: str) -> int:
        """Length of a member in bytes. Raises ImageError where it is missing."""
        return self._member(name).size

    def open_member(
        self,
        name: str,
        *,
        digest: str | None,
        watch: Callable[[int], None] | None = None,
    ) -> CheckedReader:
        """A member's bytes; call its `finish` after reading. One reader at a time.

        `digest` is what they must have, `watch` is called with the position now and then. Raises
        ImageError where the member is missing.
        """
        info = self._member(name)
        part = io.BufferedReader(_Part(self._file, info.offset_data, info.size))
        what = f"{name} of {self.path}"
        return CheckedReader(part, what, digest=digest, size=info.size, watch=watch)

    def json_object(self, name: str, *, digest: str | None = None) -> Mapping[str, Any]:
        """A member that is a JSON object. Raises ImageError, DigestMismatchError."""
        return json_object(self._json(name, digest=digest), name)

    def json_list(self, name: str) -> list[object]:
        """A member that is a JSON list. Raises ImageError."""
        value = self._json(name, digest=None)
        if not isinstance(value, list):
            raise ImageError(f"{name} of {self.path} is not a JSON list")
        return value

    def _json(self, name: str, *, digest: str | None) -> object:
        if self._member(name).size > _MAX_JSON:
            raise ImageError(f"{name} of {self.path} is larger than {_MAX_JSON} bytes")
        stream = self.open_member(name, digest=digest)
        data = stream.read()
        stream.finish()
        try:
            value: object = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ImageError(f"{name} of {self.path} is not JSON: {error}") from error
        return value

    def _member(self, name: str) -> tarfile.TarInfo:
        """The regular file that a name means, through links inside the archive."""
        current = _normal(name)
        for _ in range(_MAX_LINKS):
            info = self._members.get(current)
            if info is None:
                raise ImageError(f"{name} is missing in {self.path}; the archive is incomplete")
            if info.isreg() and not info.issparse():
                return info
            if info.issym():
                current = _normal(posixpath.join(posixpath.dirname(current), info.linkname))
            elif info.islnk():
                current = _normal(info.linkname)
            else:
                raise ImageError(f"{name} in {self.path} is no regular file")
        raise ImageError(f"{name} in {self.path} is a loop of links")


class _Part(io.RawIOBase):
    """A range of a seekable file; one reader at a time."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        super().__init__()
        self._file = file
        self._next = offset
        self._end = offset + size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        self._file.seek(self._next)
        data = self._file.read(min(len(view), self._end - self._next))
        view[: len(data)] = data
        self._next += len(data)
        return len(data)


def _index(path: Path, file: BinaryIO) -> dict[str, tarfile.TarInfo]:
    """Members by name; of several with one name the last counts, as when a tar is extracted."""
    members: dict[str, tarfile.TarInfo] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for count, info in enumerate(tar):
                if count >= _MAX_MEMBERS:
                    raise ImageError(f"{path} has more than {_MAX_MEMBERS} members")
                members[_normal(info.name)] = info
    except tarfile.TarError as error:
        raise ImageError(f"{path} is no tar archive: {error}") from error
    return members


def _normal(name: str) -> str:
    return posixpath.normpath("/" + name).lstrip("/")


def digest_of_name(member: str) -> str | None:
    """The digest that a member's name states: `blobs/sha256/<hex>` or Docker's `<hex>.json`."""
    name = _normal(member)
    blob = _BLOB.fullmatch(name)
    if blob is not None:
        return f"{blob.group(1)}:{blob.group(2)}"
    config = _DOCKER_CONFIG.fullmatch(name)
    return None if config is None else f"sha256:{config.group(1)}"


def json_object(value: object, what: str) -> Mapping[str, Any]:
    """`value`, where it is a JSON object. Raises ImageError."""
    if not isinstance(value, dict):
        raise ImageError(f"{what} is not a JSON object; the archive is damaged")
    return value

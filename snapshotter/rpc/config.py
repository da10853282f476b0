"""The configuration file of the service.

::

    default_scratch_size_gb = 20              # where no label names a size
    scratch_locations = ["/mnt/fast"]        # what the location label may name
    reuse_layers = true                       # clone or link to a layer that is there already

    [containerd]
    address = "unix:///run/containerd/containerd.sock"   # where diff.v1 reads blobs: the API,
    content = "/var/lib/containerd/io.containerd.content.v1.content"   # or the files (Windows)
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from snapshotter.errors import InvalidArgumentError, NotFoundError, UnavailableError
from snapshotter.labels import DEFAULT_SCRATCH_SIZE
from snapshotter.units import GIB

_KEYS: Final = {"default_scratch_size_gb", "scratch_locations", "reuse_layers", "containerd"}
_ON_WINDOWS: Final = sys.platform == "win32"
DEFAULT_CONTAINERD: Final = "unix:///run/containerd/containerd.sock"


def default_content() -> Path | None:
    """The content store of containerd with its default root, on Windows; None elsewhere."""
    data = os.environ.get("ProgramData")  # noqa: SIM112, Windows's spelling
    if not _ON_WINDOWS or not data:
        return None
    return Path(data) / "containerd" / "root" / "io.containerd.content.v1.content"


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """What the file may say; sizes in bytes. Where there is a content store, no API is asked."""

    default_scratch_size: int = DEFAULT_SCRATCH_SIZE
    scratch_locations: tuple[str, ...] = ()
    reuse_layers: bool = True
    containerd_address: str = DEFAULT_CONTAINERD
    containerd_content: Path | None = field(default_factory=default_content)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file. Raises NotFoundError, UnavailableError, InvalidArgumentError."""
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no configuration file {path}; check --config") from error
        except (OSError, UnicodeDecodeError) as error:
            raise UnavailableError(f"cannot read the configuration {path}: {error}") from error
        try:
            return cls.parse(text)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"configuration {path}: {error}") from error

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text of a file. Raises InvalidArgumentError naming the key."""
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InvalidArgumentError(f"not TOML: {error}") from error
        _known("", document, _KEYS)
        containerd = document.get("containerd", {})
        if not isinstance(containerd, dict):
            raise InvalidArgumentError("containerd: expected a table")
        _known("containerd.", containerd, {"address", "content"})
        return cls(
            default_scratch_size=_gigabytes(document),
            scratch_locations=_locations(document),
            reuse_layers=_reuse_layers(document),
            containerd_address=_address(containerd),
            containerd_content=_content(containerd),
        )


def _known(prefix: str, table: Mapping[str, object], names: set[str]) -> None:
    for name in table:
        if name not in names:
            choice = ", ".join(sorted(names))
            raise InvalidArgumentError(f"{prefix}{name}: no such key (there are: {choice})")


def _gigabytes(document: Mapping[str, object]) -> int:
    value = document.get("default_scratch_size_gb", DEFAULT_SCRATCH_SIZE // GIB)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise InvalidArgumentError(f"default_scratch_size_gb: expected a number, got {value!r}")
    return value * GIB


def _locations(document: Mapping[str, object]) -> tuple[str, ...]:
    value = document.get("scratch_locations", [])
    if not isinstance(value, list):
        raise InvalidArgumentError(f"scratch_locations: expected a list of paths, got {value!r}")
    paths = []
    for item in value:
        if not isinstance(item, str):
            raise InvalidArgumentError(f"scratch_locations: expected a path, got {item!r}")
        paths.append(item)
    return tuple(paths)


def _reuse_layers(document: Mapping[str, object]) -> bool:
    value = document.get("reuse_layers", True)
    if not isinstance(value, bool):
        raise InvalidArgumentError(f"reuse_layers: expected true or false, got {value!r}")
    return value


def _content(containerd: Mapping[str, object]) -> Path | None:
    value = containerd.get("content")
    if value is None:
        return None if "address" in containerd else default_content()
    if not isinstance(value, str) or not Path(value).is_absolute():
        raise InvalidArgumentError(f"containerd.content: expected an absolute path, got {value!r}")
    if "address" in containerd:
        raise InvalidArgumentError("containerd.content: give this or address, not both")
    return Path(value)


def _address(containerd: Mapping[str, object]) -> str:
    value = containerd.get("address", DEFAULT_CONTAINERD)
    if not isinstance(value, str) or not value:
        raise InvalidArgumentError(f"containerd.address: expected an address, got {value!r}")
    if value.startswith(("npipe:", "//./pipe/", "\\\\.\\pipe\\")):
        raise InvalidArgumentError(
            f"containerd.address: gRPC for Python cannot dial the pipe {value}; give"
            " containerd.content, the directory of its content store"
        )
    # containerd's own configuration writes a plain path.
    return f"unix://{value}" if value.startswith("/") else value

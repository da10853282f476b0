"""Keys as a snapshotter back end sees them.

containerd prefixes a client's key with its namespace and a sequence number:
`k8s.io/12/pod1` (core/metadata/snapshot.go). A key that a library or command-line caller gives
has no such prefix. Keys of active snapshots and views, and names of committed ones, share one
key space.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from snapshotter.errors import InvalidArgumentError
from snapshotter.labels import SNAPSHOT_REF

UNPACK_PREFIX: Final = "extract-"
"""How an unpacker's keys begin: `extract-<unique> <chain ID>` (snapshots.UnpackKeyPrefix)."""

_NAMESPACED: Final = re.compile(r"([^/]+)/([0-9]+)/(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class BackendKey:
    """A back-end key and its parts; without a prefix, namespace and sequence are empty."""

    text: str
    namespace: str
    sequence: str
    client: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Split `<namespace>/<sequence>/<client key>`; any other text is all client key."""
        match = _NAMESPACED.fullmatch(text)
        if match is None:
            return cls(text, "", "", text)
        return cls(text, *match.groups())


def is_unpack(key: str, labels: Mapping[str, str]) -> bool:
    """Whether the snapshot is an unpacker's, which gets no scratch disk.

    The pull unpacker sets `containerd.io/snapshot.ref`; `image.Unpack` sets no label, but its
    client key begins with `extract-`. A key that merely contains the word is no unpack key.
    """
    return SNAPSHOT_REF in labels or BackendKey.parse(key).client.startswith(UNPACK_PREFIX)


def check_key(what: str, key: str) -> None:
    """Refuse a key or name that cannot be stored: empty, with a NUL, or not Unicode text.

    Raises InvalidArgumentError; `what` names the argument.
    """
    if not key:
        raise InvalidArgumentError(f"{what} is empty; give the snapshot a key")
    check_text(what, key)


def check_text(what: str, text: str) -> None:
    """Refuse text with a NUL or a lone surrogate. Raises InvalidArgumentError naming `what`."""
    if "\0" in text:
        raise InvalidArgumentError(f"{what} {text!r} contains a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{what} {text!r} is not valid Unicode text") from error

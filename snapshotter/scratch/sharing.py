"""Whose scratch disk a snapshot shares: the lookup of an owner key.

containerd's own plugin takes the last snapshot whose name contains the key anywhere. Here a key
names one snapshot or none.
"""

from __future__ import annotations

from pathlib import PurePath

from snapshotter.errors import InvalidArgumentError, NotFoundError
from snapshotter.keys import BackendKey, is_unpack
from snapshotter.labels import LOCATION, MAX_SIZE, OWNER_KEY, SIZE_GB, SharedScratch
from snapshotter.metastore.model import Kind, Scratch
from snapshotter.metastore.scratches import Candidate, Scratches


def shared_scratch(scratches: Scratches, key: str, request: SharedScratch) -> Scratch:
    """The scratch disk that the request of snapshot `key` means.

    The owner is the active snapshot with exactly that key, else the one in `key`'s own namespace
    with exactly that client key. It may itself share: the disk is then the same one. An unpack
    snapshot, a view or a committed snapshot is never an owner, nor is a snapshot of another
    namespace. Raises NotFoundError saying what was searched, InvalidArgumentError (two owners,
    another size or location than the disk has).
    """
    owner, scratch = _owner(scratches, BackendKey.parse(key), request.owner)
    if request.size is not None and request.size != scratch.size:
        raise InvalidArgumentError(
            f"snapshot {key!r} asks for a scratch disk of {request.size} bytes ({SIZE_GB}), but"
            f" shares the one of {owner!r}, which has {scratch.size}; leave the size to the owner"
        )
    if request.max_size is not None and scratch.size > request.max_size:
        raise InvalidArgumentError(
            f"snapshot {key!r} may hold {request.max_size} bytes ({MAX_SIZE}), but shares the"
            f" scratch disk of {owner!r}, which has {scratch.size}; leave the size to the owner"
        )
    if request.location is not None and PurePath(request.location) != PurePath(scratch.location):
        raise InvalidArgumentError(
            f"label {LOCATION}={request.location!r}: the scratch disk shared with {owner!r} is"
            " elsewhere; leave the location to the owner"
        )
    return scratch


def _owner(scratches: Scratches, sharer: BackendKey, owner: str) -> tuple[str, Scratch]:
    rejected: list[str] = []
    by_key = scratches.candidates_by_key(owner)
    by_client = scratches.candidates_by_client_key(sharer.namespace, owner)
    for candidates in (by_key, by_client):
        fitting: list[tuple[str, Scratch]] = []
        for candidate in candidates:
            problem = _problem(candidate, sharer)
            if problem is None and candidate.scratch is not None:
                fitting.append((candidate.key, candidate.scratch))
            elif problem is not None and problem not in rejected:
                rejected.append(problem)
        if len(fitting) > 1:
            names = " and ".join(repr(key) for key, _ in fitting)
            raise InvalidArgumentError(
                f"label {OWNER_KEY}={owner!r} names both {names}; give the full key of one"
            )
        if fitting:
            return fitting[0]
    where = f"in namespace {sharer.namespace!r}" if sharer.namespace else "without a namespace"
    found = f" ({'; '.join(rejected)})" if rejected else ""
    raise NotFoundError(
        f"no active snapshot with a scratch disk has the full key {owner!r}, or the client key"
        f" {owner!r} {where}{found}; label {OWNER_KEY} must name one"
    )


def _problem(candidate: Candidate, sharer: BackendKey) -> str | None:
    namespace = BackendKey.parse(candidate.key).namespace
    if candidate.kind is not Kind.ACTIVE:
        return f"{candidate.key!r} is {candidate.kind.word}"
    if candidate.scratch is None:
        if is_unpack(candidate.key, {}):
            return f"{candidate.key!r} is an unpack snapshot without a scratch disk"
        return f"{candidate.key!r} has no disk that can be shared: links were refused to it"
    if sharer.namespace and namespace != sharer.namespace:
        return f"{candidate.key!r} is outside the namespace {sharer.namespace!r}"
    return None

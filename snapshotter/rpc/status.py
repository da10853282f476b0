"""Errors and gRPC status codes, both ways; no other module names a code.

containerd's client turns the code into one of its error classes (errdefs). 1.6 knows the eight
of `snapshotter.errors`' callers and takes everything else for "unknown"; 2.x knows all of them.
What a code sets off there: FAILED_PRECONDITION of a Remove makes the garbage collector skip that
snapshot, every other error stops it; UNIMPLEMENTED makes the diff service try its next differ.
"""

from __future__ import annotations

from typing import Final

import grpc

from snapshotter.errors import (
    AlreadyExistsError,
    DigestMismatchError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    SnapshotterError,
    StorageError,
    UnavailableError,
    UnimplementedError,
)

INTERNAL: Final = grpc.StatusCode.INTERNAL.name
"""The name of what a bug of ours is answered with."""

_OK: Final = str(grpc.StatusCode.OK.name)

_CODES: Final[tuple[tuple[type[SnapshotterError], grpc.StatusCode], ...]] = (
    (NotFoundError, grpc.StatusCode.NOT_FOUND),
    (AlreadyExistsError, grpc.StatusCode.ALREADY_EXISTS),
    (FailedPreconditionError, grpc.StatusCode.FAILED_PRECONDITION),
    (InvalidArgumentError, grpc.StatusCode.INVALID_ARGUMENT),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (UnimplementedError, grpc.StatusCode.UNIMPLEMENTED),
    # A layer that is no tar, or a blob that is not what its descriptor says: the client's.
    (DigestMismatchError, grpc.StatusCode.INVALID_ARGUMENT),
    (StorageError, grpc.StatusCode.INVALID_ARGUMENT),
)

_ERRORS: Final = {
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
}

_MAX_DETAILS: Final = 1024
"""Characters: trailers beyond the client's 8 KiB of metadata would lose the code with the text."""


def status(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The code and the text that answer a call which raised `error`."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code, _details(str(error))
    return grpc.StatusCode.INTERNAL, "internal error; see the log of lcow-snapshotter"


def status_name(error: BaseException | None) -> str:
    """What the log calls the end of a call: OK, the code, or CANCELLED where the caller went."""
    if error is None:
        return _OK
    code = status(error)[0] if isinstance(error, Exception) else grpc.StatusCode.CANCELLED
    return str(code.name)


def error_from_peer(error: grpc.RpcError, *, doing: str) -> SnapshotterError:
    """What a failed call of ours to another server means here; `doing` says what it was for."""
    code, details = error.code(), error.details()
    kind = _ERRORS.get(code, UnavailableError)
    return kind(f"{doing}: {details or code.name}")


def _details(text: str) -> str:
    clean = text.encode("utf-8", "replace").decode()
    if len(clean) <= _MAX_DETAILS:
        return clean
    half = _MAX_DETAILS // 2
    return f"{clean[:half]} … {clean[-half:]}"

"""Blobs of containerd's content store, read through its content API.

containerd tells a differ only a blob's descriptor; it has to read the blob back, in the namespace
of the call (containerd.services.content.v1.Content, Read).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, BinaryIO, Final, Protocol, cast

import grpc

from snapshotter.errors import UnavailableError
from snapshotter.rpc import messages
from snapshotter.rpc.descriptors import Message
from snapshotter.rpc.status import error_from_peer

NAMESPACE_HEADER: Final = "containerd-namespace"
_READ: Final = f"/{messages.CONTENT}.Content/Read"
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", 16 << 20),
    # containerd may have been restarted: gRPC would wait up to two minutes before it dials again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class Blob(Protocol):
    """A blob being read."""

    @property
    def stream(self) -> BinaryIO:
        """Its bytes. Reading raises NotFoundError, UnavailableError."""
        ...

    def cancel(self) -> None:
        """Make reading fail, from any thread; nothing after the end."""
        ...


class ContentStore(Protocol):
    """Where blobs are."""

    def open(self, digest: str, *, size: int, namespace: str) -> Blob:
        """Start to read a blob of `size` bytes (0: not known)."""
        ...

    def close(self) -> None:
        """End what it holds; a second call does nothing."""
        ...


class ContainerdContent:
    """The content store of a containerd; `close` ends the connection."""

    def __init__(self, address: str) -> None:
        self._address = address
        # Dialled with the first read: containerd need not be up before its plugins.
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._read = self._channel.unary_stream(
            _READ,
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=messages.ReadContentResponse.FromString,
        )

    def open(self, digest: str, *, size: int, namespace: str) -> Blob:
        """Start to read a blob."""
        request = messages.ReadContentRequest(digest=digest)
        responses = self._read(request, metadata=((NAMESPACE_HEADER, namespace),))
        return _OpenBlob(responses, f"blob {digest} of containerd at {self._address}", size)

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        self._channel.close()


class _OpenBlob:
    def __init__(self, responses: Any, name: str, size: int) -> None:  # noqa: ANN401, untyped library
        self._responses = responses
        raw = _Chunks(responses, name, size)
        self._stream = cast("BinaryIO", io.BufferedReader(raw, buffer_size=1 << 20))

    @property
    def stream(self) -> BinaryIO:
        return self._stream

    def cancel(self) -> None:
        self._responses.cancel()


class _Chunks(io.RawIOBase):
    """The chunks of a Read, one after the other."""

    def __init__(self, responses: Iterator[Message], name: str, size: int) -> None:
        super().__init__()
        self._responses = responses
        self._name = name
        self._size = size
        self._done = 0
        self._chunk = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401, what io hands over
        while not self._chunk:
            if not self._next():
                return 0
        count = min(len(buffer), len(self._chunk))
        buffer[:count] = self._chunk[:count]
        self._chunk = self._chunk[count:]
        return count

    def _next(self) -> bool:
        try:
            response = next(self._responses)
        except StopIteration:
            if self._size and self._done != self._size:
                raise UnavailableError(
                    f"{self._name} ended after {self._done} bytes of {self._size}; try again"
                ) from None
            return False
        except grpc.RpcError as error:
            raise error_from_peer(error, doing=f"cannot read {self._name}") from error
        self._chunk = memoryview(response.data)
        self._done += len(response.data)
        return True

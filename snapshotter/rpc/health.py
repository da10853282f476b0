"""grpc.health.v1.Health: whether the server takes calls.

Watch is not offered: it would hold a thread for as long as somebody watches. A client takes
UNIMPLEMENTED for an answer and asks Check (grpc doc/health-checking.md).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from enum import IntEnum
from typing import Any, Final

import grpc

from snapshotter.errors import NotFoundError
from snapshotter.rpc import messages
from snapshotter.rpc.calls import Call, Calls, Method
from snapshotter.rpc.descriptors import Message


class ServingStatus(IntEnum):
    """grpc.health.v1.HealthCheckResponse.ServingStatus."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


class HealthService:
    """The state of a server and of the services in it."""

    name: Final = f"{messages.HEALTH}.Health"

    def __init__(self, services: Collection[str]) -> None:
        self._services = frozenset({"", self.name, *services})
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Say NOT_SERVING from now on."""
        self._stopping.set()

    def handler(self, calls: Calls) -> Any:  # noqa: ANN401, untyped library
        """What a gRPC server takes."""
        check = Method("Check", messages.HealthCheckRequest, _service, logging.DEBUG)
        return grpc.method_handlers_generic_handler(
            self.name, {"Check": calls.unary(check, self._check)}
        )

    def _check(self, request: Message, _: Call) -> bytes:
        if request.service not in self._services:
            raise NotFoundError(f"service {request.service!r} is not served here")
        serving = ServingStatus.NOT_SERVING if self._stopping.is_set() else ServingStatus.SERVING
        return messages.HealthCheckResponse(status=int(serving)).SerializeToString()


def _service(request: Message) -> str:
    return str(request.service)

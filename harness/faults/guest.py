"""A bridge to the guest with faults in front of it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping

from harness.errors import GuestError
from harness.faults.grammar import Action, Fault
from harness.faults.plan import FaultPlan, guest_boundary
from harness.gcs.bridge import DEFAULT_TIMEOUT_S, Bridge, PendingCall
from harness.gcs.guest import GuestClient
from harness.gcs.prot import NULL_ID, ContainerNotification, ModifySettings, Request


class FaultyBridge:
    """The calls of a bridge, each after what its boundary meets.

    Silence ends as it does without faults: the deadline of a call closes the bridge, at once here.
    """

    def __init__(self, bridge: Bridge, plan: FaultPlan) -> None:
        self._bridge = bridge
        self._plan = plan

    def close(self) -> None:
        """Close the bridge; may be repeated."""
        self._bridge.close()

    def kill(self, cause: Exception) -> None:
        """Close the bridge for a reason that everybody who waits gets to know."""
        self._bridge.kill(cause)

    @property
    def closed(self) -> bool:
        """Whether the bridge is closed."""
        return self._bridge.closed

    def explain_end(self, why_gone: Callable[[], Exception | None]) -> None:
        """See `Bridge.explain_end`."""
        self._bridge.explain_end(why_gone)

    def send(
        self,
        request: Request,
        message: object | None = None,
        *,
        container_id: str = NULL_ID,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
    ) -> PendingCall:
        """Send a request whose answer the caller waits for later; no fault is put there."""
        return self._bridge.send(request, message, container_id=container_id, timeout_s=timeout_s)

    def call(
        self,
        request: Request,
        message: object | None = None,
        *,
        container_id: str = NULL_ID,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
    ) -> Mapping[str, object]:
        """Return the answer's JSON object, or meet a fault."""
        change, resource = None, ""
        if isinstance(message, ModifySettings):
            change, resource = message.request.request_type, message.request.resource_type
        boundary = guest_boundary(request, change, resource)
        fault = self._plan.next(boundary)

        def call() -> Mapping[str, object]:
            return self._bridge.call(
                request, message, container_id=container_id, timeout_s=timeout_s
            )

        return self._meet(boundary, fault, call)

    def _meet(
        self, boundary: str, fault: Fault, call: Callable[[], Mapping[str, object]]
    ) -> Mapping[str, object]:
        match fault.action:
            case Action.ERROR:
                raise GuestError("a fault on purpose", hresult=fault.hresult, request=boundary)
            case Action.HANG:
                time.sleep(fault.delay_s)
            case Action.LOST:
                call()
                self._bridge.kill(TimeoutError(f"{boundary}: the answer was lost, on purpose"))
                raise self._bridge.closed_error()
            case Action.TIMEOUT | Action.DIE:
                self._bridge.kill(TimeoutError(f"{boundary}: no answer, on purpose"))
                raise self._bridge.closed_error()
        return call()

    def expect_notifications(self, container_id: str) -> None:
        """Keep the container's notifications."""
        self._bridge.expect_notifications(container_id)

    def forget_notifications(self, container_id: str) -> None:
        """Forget what was told of an earlier container of that id."""
        self._bridge.forget_notifications(container_id)

    def wait_notification(
        self, container_id: str, *, timeout_s: float | None = None
    ) -> ContainerNotification:
        """Return the container's first notification."""
        return self._bridge.wait_notification(container_id, timeout_s=timeout_s)


def faulty_connection(plan: FaultPlan) -> Callable[[socket.socket], GuestClient]:
    """Return what makes a client of a connected bridge whose calls meet the plan's faults."""

    def connect(connected: socket.socket) -> GuestClient:
        bridge = Bridge(connected)
        bridge.start()
        return GuestClient(FaultyBridge(bridge, plan))

    return connect

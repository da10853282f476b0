"""Calls to the guest with faults in front of them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping

from harness.errors import GuestError
from harness.faults.grammar import Action
from harness.faults.plan import FaultPlan, guest_boundary
from harness.gcs.bridge import Bridge
from harness.gcs.guest import Call, GuestClient
from harness.gcs.prot import ModifySettings, Request


class FaultGate:
    """Implements CallGate: each call after what its boundary meets.

    Silence ends as it does without faults: the deadline of a call closes the bridge, at once here.
    """

    def __init__(self, bridge: Bridge, plan: FaultPlan) -> None:
        self._bridge = bridge
        self._plan = plan

    def __call__(
        self, request: Request, message: object | None, call: Call
    ) -> Mapping[str, object]:
        """Return the answer's JSON object, or meet a fault."""
        change, resource = None, ""
        if isinstance(message, ModifySettings):
            change, resource = message.request.request_type, message.request.resource_type
        boundary = guest_boundary(request, change, resource)
        fault = self._plan.next(boundary)
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


def faulty_connection(plan: FaultPlan) -> Callable[[socket.socket], GuestClient]:
    """Return what makes a client of a connected bridge whose calls meet the plan's faults."""

    def connect(connected: socket.socket) -> GuestClient:
        bridge = Bridge(connected)
        bridge.start()
        return GuestClient(bridge, gate=FaultGate(bridge, plan))

    return connect

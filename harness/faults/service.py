"""A compute service with faults in front of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from harness.errors import (
    ComputeServiceError,
    ComputeTimeoutError,
    SystemExitedError,
    SystemNotFoundError,
)
from harness.faults.grammar import Action
from harness.faults.plan import FaultPlan
from harness.hcs.document import ComputeSystem, ModifySettingRequest, RequestType
from harness.hcs.service import ComputeService, StreamEndpoint, SystemEvent, SystemProperties

# HCS_E_SYSTEM_NOT_FOUND, HCS_E_SYSTEM_ALREADY_STOPPED and HCS_E_CONNECTION_TIMEOUT, in both the
# spellings of hcsshim (NTSTATUS-like 0xC037…) and winerror.h (0x8037…).
_TYPES: Final[dict[int, type[ComputeServiceError]]] = {
    0x010E: SystemNotFoundError,
    0x0110: SystemExitedError,
    0x0109: ComputeTimeoutError,
}
_HCS_FACILITY: Final = (0xC037, 0x8037)
_T = TypeVar("_T")


def service_error(doing: str, hresult: int) -> ComputeServiceError:
    """Return the error that a compute service raises for an HRESULT."""
    kind = ComputeServiceError
    if hresult >> 16 in _HCS_FACILITY:
        kind = _TYPES.get(hresult & 0xFFFF, ComputeServiceError)
    return kind(f"{doing}: a fault on purpose", hresult=hresult)


class FaultyComputeService:
    """Implements ComputeService: the calls of another one, each after what its boundary meets."""

    def __init__(self, service: ComputeService, plan: FaultPlan) -> None:
        self._service = service
        self._plan = plan

    @property
    def name(self) -> str:
        """The other one's name."""
        return self._service.name

    def create(self, system_id: str, document: ComputeSystem) -> SystemProperties:
        """Create a system, or meet a fault of `service.create`."""
        return self._meet(
            "service.create", system_id, lambda: self._service.create(system_id, document)
        )

    def start(self, system_id: str, *, timeout_s: float = 60.0) -> None:
        """Start it, or meet a fault of `service.start`."""
        self._meet(
            "service.start", system_id, lambda: self._service.start(system_id, timeout_s=timeout_s)
        )

    def modify(
        self, system_id: str, request: ModifySettingRequest, *, timeout_s: float = 30.0
    ) -> None:
        """Apply a change, or meet a fault of `service.attach` or `service.detach`."""
        self.modify_batch(system_id, [request], timeout_s=timeout_s)

    def modify_batch(
        self, system_id: str, requests: Sequence[ModifySettingRequest], *, timeout_s: float = 30.0
    ) -> None:
        """Apply changes; a batch is one call of the boundary of its first request."""
        if not requests:
            return
        kind = requests[0].request_type
        boundary = "service.detach" if kind is RequestType.REMOVE else "service.attach"
        self._meet(
            boundary,
            system_id,
            lambda: self._service.modify_batch(system_id, requests, timeout_s=timeout_s),
        )

    def properties(self, system_id: str) -> SystemProperties:
        """Return what is known, or meet a fault of `service.properties`."""
        return self._meet(
            "service.properties", system_id, lambda: self._service.properties(system_id)
        )

    def enumerate(self, *, owner: str | None = None) -> Sequence[SystemProperties]:
        """Return every system that was not closed."""
        return self._service.enumerate(owner=owner)

    def listen(self, system_id: str, port: int) -> StreamEndpoint:
        """Listen on a port, or meet a fault of `stream.listen`."""
        return self._meet("stream.listen", system_id, lambda: self._service.listen(system_id, port))

    def unlisten(self, system_id: str, port: int) -> None:
        """Give up a port."""
        self._service.unlisten(system_id, port)

    def events(
        self, system_id: str, *, after: int = 0, timeout_s: float = 0.0
    ) -> Sequence[SystemEvent]:
        """Return events with a sequence above `after`."""
        return self._service.events(system_id, after=after, timeout_s=timeout_s)

    def console(self, system_id: str) -> str:
        """Return the last 64 KiB of the serial console."""
        return self._service.console(system_id)

    def terminate(self, system_id: str, *, timeout_s: float = 10.0) -> None:
        """Stop it, or meet a fault of `service.terminate`."""
        self._meet(
            "service.terminate",
            system_id,
            lambda: self._service.terminate(system_id, timeout_s=timeout_s),
        )

    def close(self, system_id: str) -> None:
        """Forget a system; no fault is ever put here, or nothing could be cleaned up."""
        self._service.close(system_id)

    def _meet(self, boundary: str, system_id: str, call: Callable[[], _T]) -> _T:
        fault = self._plan.next(boundary)
        match fault.action:
            case Action.ERROR:
                raise service_error(boundary, fault.hresult)
            case Action.HANG:
                time.sleep(fault.delay_s)
            case Action.TIMEOUT:
                raise ComputeTimeoutError(f"{boundary}: no answer, on purpose")
            case Action.LOST:
                call()
                raise ComputeTimeoutError(f"{boundary}: the answer was lost, on purpose")
            case Action.DIE:
                self._service.terminate(system_id)
                raise SystemExitedError(f"{boundary}: the system died, on purpose")
        return call()

"""The compute service on Windows: HCS through computecore.dll.

Implements `harness.hcs.service.ComputeService`. Systems end with the process that made them
(ShouldTerminateOnLastHandleClosed); what is left all the same is found by its owner's tag.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from harness.hcs.document import ComputeSystem, ModifySettingRequest
from harness.hcs.hcssystem import HcsSystem
from harness.hcs.service import StreamEndpoint, SystemEvent, SystemProperties, SystemState
from harness.hcs.systems import SystemTable
from harness.hcs.windowshost import WindowsHost

_QUERY_S: Final = 30.0
_TERMINATE_S: Final = 30.0


class HcsComputeService:
    """A compute service whose systems are Hyper-V's. A context manager that closes them all."""

    def __init__(self, host: WindowsHost) -> None:
        self._host = host
        self._systems: SystemTable[HcsSystem] = SystemTable()
        self._lock = threading.Lock()
        self._was_ours: set[str] = set()

    @property
    def name(self) -> str:
        """`hcs`."""
        return "hcs"

    def prepare(self) -> None:
        """Do nothing: the service itself holds nothing."""

    def schema_versions(self) -> tuple[str, ...]:
        """Return the schema versions that this Windows takes, such as `2.5`. Raises HcsCallError.

        Source: SchemaReference, ServiceProperties and BasicInformation.
        """
        answer = self._host.api.service_properties()
        return tuple(
            f"{version.get('Major')}.{version.get('Minor', 0)}"
            for properties in answer.get("Properties") or ()
            for version in properties.get("SupportedSchemaVersions") or ()
        )

    def create(self, system_id: str, document: ComputeSystem) -> SystemProperties:
        """Create a system with its disks attached. On failure nothing is left.

        The machine's account may read the boot files and its disks until it is closed. Raises
        ComputeServiceError (0x8037010f for an id in use), HcsCallError with HCS' own reasons.
        """
        with self._systems.creating(system_id):
            system = HcsSystem(self._host, system_id, document)
            system.create()
            self._systems.add(system_id, system, close=HcsSystem.close)
            with self._lock:
                self._was_ours.discard(system_id)
        return system.properties()

    def start(self, system_id: str, *, timeout_s: float = 60.0) -> None:
        """Start it; returns once the virtual machine runs (its guest may still boot)."""
        self._system(system_id).start(timeout_s=timeout_s)

    def modify(
        self, system_id: str, request: ModifySettingRequest, *, timeout_s: float = 30.0
    ) -> None:
        """Apply one change; a disk is made readable for the machine before it is attached."""
        self._system(system_id).modify(request, timeout_s=timeout_s)

    def modify_batch(
        self, system_id: str, requests: Sequence[ModifySettingRequest], *, timeout_s: float = 30.0
    ) -> None:
        """Apply changes in order; stops at a failure. HCS takes them one by one."""
        system = self._system(system_id)
        for request in requests:
            system.modify(request, timeout_s=timeout_s)

    def properties(self, system_id: str) -> SystemProperties:
        """Return what is known of a system."""
        return self._system(system_id).properties()

    def enumerate(self, *, owner: str | None = None) -> Sequence[SystemProperties]:
        """Return every system that was not closed, or those of one owner.

        Also what HCS still has of those that were closed: there should be none.
        """
        with self._lock:
            closed = sorted(self._was_ours)
        found = [each.properties() for each in self._systems.all()]
        if closed:
            left = self._host.api.enumerate({"Ids": closed}, timeout_s=_QUERY_S)
            found += [_listed(each) for each in left]
            with self._lock:  # what HCS has no more is gone for good
                self._was_ours -= set(closed) - {str(each.get("Id")) for each in left}
        return [each for each in found if owner in (None, each.owner)]

    def leftovers(self, owner_prefix: str) -> Sequence[SystemProperties]:
        """Return systems of this host that are not this service's, by the beginning of their owner.

        They belong to another process that runs, or to one that died and left them.
        """
        ours = self._systems.ids()
        listed = self._host.api.enumerate({"Types": ["VirtualMachine"]}, timeout_s=_QUERY_S)
        return [
            _listed(each)
            for each in listed
            if str(each.get("Owner", "")).startswith(owner_prefix) and each.get("Id") not in ours
        ]

    def remove_leftover(self, system_id: str) -> None:
        """End a system of somebody else. Raises SystemNotFoundError, ComputeServiceError."""
        api = self._host.api
        handle = api.open(system_id)
        try:
            api.terminate(handle, timeout_s=_TERMINATE_S)
        finally:
            api.close(handle)

    def listen(self, system_id: str, port: int) -> StreamEndpoint:
        """Return the Hyper-V socket on which the consumer of the guest's stream listens itself."""
        return self._system(system_id).listen(port)

    def unlisten(self, system_id: str, port: int) -> None:
        """Give up a port that the guest has not dialed; unknown ports are fine."""
        self._system(system_id).unlisten(port)

    def events(
        self, system_id: str, *, after: int = 0, timeout_s: float = 0.0
    ) -> Sequence[SystemEvent]:
        """Return events with a sequence above `after`; waits up to `timeout_s` for the first."""
        return self._system(system_id).events(after=after, timeout_s=timeout_s)

    def console(self, system_id: str) -> str:
        """Return the last 64 KiB the guest wrote to its serial console."""
        return self._system(system_id).console()

    def terminate(self, system_id: str, *, timeout_s: float = 10.0) -> None:
        """Stop it at once, as pulling the plug does; returns once it stopped. Stopped is fine."""
        self._system(system_id).terminate(timeout_s=timeout_s)

    def close(self, system_id: str) -> None:
        """Forget a system, terminating it first where needed; nothing of it is left on the host.

        Raises ComputeTimeoutError for one that does not end: it stays known, and may be closed
        again.
        """
        self._close(self._system(system_id))

    def _close(self, system: HcsSystem) -> None:
        try:
            system.close()
        finally:
            if system.closed:
                with self._lock:
                    self._was_ours.add(system.id)
                self._systems.forget(system.id)

    def close_all(self) -> None:
        """Close every system and the service; may be repeated. Raises its first error last."""
        if errors := self._systems.close(self._close):
            raise errors[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close_all()

    def _system(self, system_id: str) -> HcsSystem:
        return self._systems.find(system_id)


def _listed(each: Mapping[str, Any]) -> SystemProperties:
    """Return the properties of a system that HCS lists."""
    state = str(each.get("State") or "")
    known = state in set(SystemState)
    return SystemProperties(
        id=str(each.get("Id", "")),
        owner=str(each.get("Owner", "")),
        runtime_id=str(each.get("RuntimeId", "")),
        state=SystemState(state) if known else SystemState.RUNNING,
        details={} if known else {"state": state},
    )

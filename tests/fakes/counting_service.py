"""A compute service that does nothing but note what it was asked."""

from __future__ import annotations

from collections.abc import Sequence

from harness.hcs.document import ComputeSystem, ModifySettingRequest, RequestType
from harness.hcs.service import StreamEndpoint, SystemEvent, SystemProperties, SystemState


class CountingService:
    """Implements ComputeService; `calls` has a boundary's name for each call that came through."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._state = SystemState.RUNNING

    @property
    def name(self) -> str:
        return "counting"

    def create(self, system_id: str, document: ComputeSystem) -> SystemProperties:
        self.calls.append("service.create")
        return self._known(system_id)

    def start(self, system_id: str, *, timeout_s: float = 60.0) -> None:
        self.calls.append("service.start")

    def modify(
        self, system_id: str, request: ModifySettingRequest, *, timeout_s: float = 30.0
    ) -> None:
        self.modify_batch(system_id, [request], timeout_s=timeout_s)

    def modify_batch(
        self, system_id: str, requests: Sequence[ModifySettingRequest], *, timeout_s: float = 30.0
    ) -> None:
        removes = requests[0].request_type is RequestType.REMOVE
        self.calls.append("service.detach" if removes else "service.attach")

    def properties(self, system_id: str) -> SystemProperties:
        self.calls.append("service.properties")
        return self._known(system_id)

    def enumerate(self, *, owner: str | None = None) -> Sequence[SystemProperties]:
        return []

    def listen(self, system_id: str, port: int) -> StreamEndpoint:
        self.calls.append("stream.listen")
        return StreamEndpoint("unix", "nowhere")

    def unlisten(self, system_id: str, port: int) -> None:
        self.calls.append("stream.unlisten")

    def events(
        self, system_id: str, *, after: int = 0, timeout_s: float = 0.0
    ) -> Sequence[SystemEvent]:
        return []

    def console(self, system_id: str) -> str:
        return ""

    def terminate(self, system_id: str, *, timeout_s: float = 10.0) -> None:
        self.calls.append("service.terminate")
        self._state = SystemState.STOPPED

    def close(self, system_id: str) -> None:
        self.calls.append("service.close")

    def _known(self, system_id: str) -> SystemProperties:
        return SystemProperties(system_id, "", "", self._state)

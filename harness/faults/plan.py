"""Which boundary meets which faults, and how far each has come."""

from __future__ import annotations

import difflib
import re
import threading
from collections.abc import Mapping
from typing import Final, Self

from harness.errors import UsageError
from harness.faults.grammar import Action, Fault, parse_spec
from harness.gcs.prot import Request, RequestType, ResourceType


def _words(name: str) -> str:
    """Return a name of the protocol in the form of a boundary: words joined by hyphens."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


def guest_boundary(request: Request, change: str | None, resource: str) -> str:
    """Return the boundary of a message: `guest.create`, `guest.add-mapped-virtual-disk`."""
    if request is Request.MODIFY_SETTINGS and change is not None:
        if resource == ResourceType.SCSI_DEVICES:
            resource = ResourceType.SCSI_DEVICE  # one boundary, for one disk or for many
        return f"guest.{_words(change)}-{_words(resource)}"
    return f"guest.{request.name.lower().replace('_', '-')}"


_SERVICE: Final = ("create", "start", "attach", "detach", "properties", "terminate")
_CHANGES: Final = (
    (RequestType.ADD, ResourceType.MAPPED_VIRTUAL_DISK),
    (RequestType.REMOVE, ResourceType.MAPPED_VIRTUAL_DISK),
    (RequestType.REMOVE, ResourceType.SCSI_DEVICE),
    (RequestType.ADD, ResourceType.COMBINED_LAYERS),
    (RequestType.REMOVE, ResourceType.COMBINED_LAYERS),
)
# What the host never sends as it is: changes have boundaries of their own, below; hcsshim's Linux
# guest has no use for the others.
_UNSENT: Final = (
    Request.MODIFY_SETTINGS,
    Request.UPDATE_CONTAINER,
    Request.LIFECYCLE_NOTIFICATION,
    Request.MODIFY_SERVICE_SETTINGS,
)
BOUNDARIES: Final = (
    *(f"service.{name}" for name in _SERVICE),
    "stream.listen",
    *(guest_boundary(each, None, "") for each in Request if each not in _UNSENT),
    *(guest_boundary(Request.MODIFY_SETTINGS, change, str(what)) for change, what in _CHANGES),
)
"""Every boundary where a fault can be put."""


class FaultPlan:
    """Faults by boundary; each call takes the next one. Thread-safe."""

    def __init__(self, faults: Mapping[str, tuple[Fault, ...]] | None = None) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Fault]] = {}
        self.met: list[tuple[str, Fault]] = []
        """What has been met so far, `ok` left out."""
        for boundary, spec in (faults or {}).items():
            self._waiting[boundary] = [
                Fault(fault.action, 1, fault.hresult, fault.delay_s)
                for fault in spec
                for _ in range(fault.count)
            ]

    @classmethod
    def parse(cls, specs: Mapping[str, str]) -> Self:
        """Return the plan of specifications by boundary. Raises UsageError, FaultSyntaxError."""
        for boundary in specs:
            if boundary not in BOUNDARIES:
                near = difflib.get_close_matches(boundary, BOUNDARIES, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(BOUNDARIES)}"
                raise UsageError(f"no boundary is called {boundary}; {hint}")
        return cls({boundary: parse_spec(spec) for boundary, spec in specs.items()})

    def add(self, boundary: str, spec: str) -> None:
        """Put more faults behind those of a boundary. Raises as `parse`."""
        more = self.parse({boundary: spec})
        with self._lock:
            self._waiting.setdefault(boundary, []).extend(more._waiting[boundary])

    def clear(self) -> None:
        """Take every fault away."""
        with self._lock:
            self._waiting.clear()

    def next(self, boundary: str) -> Fault:
        """Return what the call that is made now meets."""
        with self._lock:
            waiting = self._waiting.get(boundary)
            if not waiting or waiting[0].action is Action.OFF:
                return _OK
            fault = waiting.pop(0)
            if fault.action is not Action.OK:
                self.met.append((boundary, fault))
            return fault


_OK: Final = Fault(Action.OK)

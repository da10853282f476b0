"""The compute service: creates, changes and ends utility VMs, in the terms of Windows' HCS.

A system is described by an HCS `ComputeSystem` document and changed by HCS
`ModifySettingRequest`s. Everything that crosses this protocol is a plain serialisable value: no
callback, handle or file object, so that a service on another machine can implement it. Events are
polled with a cursor; byte streams are named by a `StreamEndpoint` that the caller opens itself
(`harness.hcs.streams`).

Lifecycle of a system, as `SystemState` names it (HCS has the same)::

    create ──> CREATED ──start──> RUNNING ──exit, shutdown, terminate──> STOPPED ──close──> gone
                   └───────────────── terminate ─────────────────────────┘
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness.hcs.document import ComputeSystem, ModifySettingRequest

BRIDGE_PORT = 0x40000000  # hcsshim internal/gcs/prot: LinuxGcsVsockPort
ENTROPY_PORT = 1
LOG_PORT = 109
FIRST_STDIO_PORT = 0x40000001


class SystemState(enum.StrEnum):
    """State of a compute system, spelled as HCS spells it."""

    CREATED = "Created"
    RUNNING = "Running"
    STOPPED = "Stopped"


class ExitType(enum.StrEnum):
    """Why a system stopped (HCS `SystemExitStatus.ExitType`)."""

    GRACEFUL = "GracefulExit"
    FORCED = "ForcedExit"
    UNEXPECTED = "UnexpectedExit"


class EventType(enum.StrEnum):
    """Kinds of events a service reports."""

    STARTED = "SystemStarted"
    EXITED = "SystemExited"
    CRASHED = "SystemCrashReport"
    PAUSED = "SystemPaused"
    """It waits for what the host lacks: `Reason`, and the `Path` of the disk if it is known."""
    RESUMED = "SystemResumed"
    """It goes on: `Seconds` that it waited."""


@dataclass(frozen=True, slots=True)
class SystemEvent:
    """One event; `sequence` is the cursor for the next poll, `time` is Unix time in seconds."""

    sequence: int
    system_id: str
    type: EventType
    time: float
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AttachedDisk:
    """A disk that the virtual machine sees."""

    controller: int
    lun: int
    path: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class SystemProperties:
    """What a service knows about a system."""

    id: str
    owner: str
    runtime_id: str
    state: SystemState
    exit_type: ExitType | None = None
    disks: tuple[AttachedDisk, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    """Facts of this kind of service: process id, accelerator, versions."""


@dataclass(frozen=True, slots=True)
class StreamEndpoint:
    """Where the host end of a guest's stream is; transport is `unix`, `tcp` or `hvsock`."""

    transport: str
    address: str


class ComputeService(Protocol):
    """Creates, changes and ends compute systems; every method may be called from any thread.

    Raises ComputeServiceError or one of its children: SystemNotFoundError (no such id),
    SystemExitedError (it stopped), LaunchError, ComputeTimeoutError (outcome unknown).
    """

    @property
    def name(self) -> str:
        """`qemu`, `hcs` or `model`."""
        ...

    def create(self, system_id: str, document: ComputeSystem) -> SystemProperties:
        """Create a system that does not run yet. On failure nothing is left."""
        ...

    def start(self, system_id: str, *, timeout_s: float = 60.0) -> None:
        """Start it; returns once the virtual machine runs (its guest may still boot)."""
        ...

    def modify(
        self, system_id: str, request: ModifySettingRequest, *, timeout_s: float = 30.0
    ) -> None:
        """Apply one change; returns once the virtual machine has it."""
        ...

    def modify_batch(
        self, system_id: str, requests: Sequence[ModifySettingRequest], *, timeout_s: float = 30.0
    ) -> None:
        """Apply changes in order, waiting once where the service can; stops at a failure."""
        ...

    def properties(self, system_id: str) -> SystemProperties:
        """Return what is known of a system."""
        ...

    def enumerate(self, *, owner: str | None = None) -> Sequence[SystemProperties]:
        """Return every system that was not closed, or those of one owner."""
        ...

    def listen(self, system_id: str, port: int) -> StreamEndpoint:
        """Make the host end of a guest's stream to `port`; the guest may connect from now on.

        The bridge's port must be listened on before `start`. One stream a call.
        """
        ...

    def unlisten(self, system_id: str, port: int) -> None:
        """Give up a port that the guest has not connected to; unknown ports are fine."""
        ...

    def events(
        self, system_id: str, *, after: int = 0, timeout_s: float = 0.0
    ) -> Sequence[SystemEvent]:
        """Return events with a sequence above `after`; waits up to `timeout_s` for the first."""
        ...

    def console(self, system_id: str) -> str:
        """Return the last 64 KiB the guest wrote to its serial console."""
        ...

    def terminate(self, system_id: str, *, timeout_s: float = 10.0) -> None:
        """Stop it at once, as pulling the plug does; returns once it stopped. Stopped is fine."""
        ...

    def close(self, system_id: str) -> None:
        """Forget a system, terminating it first where needed; nothing of it is left on the host."""
        ...

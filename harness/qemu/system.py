"""One compute system on QEMU: its machine, its disks, its streams, and how it ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from harness.errors import ComputeServiceError, SystemExitedError
from harness.hcs.document import ComputeSystem, ModifySettingRequest
from harness.hcs.service import (
    BRIDGE_PORT,
    EventType,
    ExitType,
    StreamEndpoint,
    SystemProperties,
    SystemState,
)
from harness.qemu.clones import ReadyMachine
from harness.qemu.fullvolume import FullVolume
from harness.qemu.hostfacts import HostFacts
from harness.qemu.loop import IoLoop
from harness.qemu.machine import Machine
from harness.qemu.ports import PortTable
from harness.qemu.qmp import QmpCommand, QmpEvent
from harness.qemu.slots import INVALID_STATE, SlotTable
from harness.qemu.supervisor import describe_exit
from harness.qemu.translate import (
    AttachDisk,
    DetachDisk,
    ParityItem,
    attachment_parity,
    plan_change,
)

ReportEvent = Callable[[EventType, Mapping[str, Any]], None]

_HCS_E_UNEXPECTED_EXIT: Final = -1070137082  # 0xC0370106 as the int32 of the exit document
_HCS_E_TERMINATED: Final = -1070137081  # 0xC0370107
_LAST_WORDS_S: Final = 1.0
_RESUME_S: Final = 10.0
_OUTPUT_SHOWN: Final = 2000


class QemuSystem:
    """A system from `create` to `close`; every method may be called from any thread."""

    def __init__(
        self,
        system_id: str,
        document: ComputeSystem,
        ready: ReadyMachine,
        *,
        host: HostFacts,
        loop: IoLoop,
        directory: Path,
        report: ReportEvent,
    ) -> None:
        """Own a machine; `report` is called in the I/O thread, or in the one that starts it."""
        self.id = system_id
        self.directory = directory
        self._document = document
        self._ready = ready
        self._host = host
        self._report = report
        self._full_volume = FullVolume(
            self._resume,
            paused=self._paused,
            resumed=lambda seconds: report(EventType.RESUMED, {"Seconds": seconds}),
        )
        self._machine = ready.machine
        self._slots = SlotTable(self._machine.qmp, controllers=self._machine.plan.controllers)
        self._ports = PortTable(loop, directory, gcs=self._machine.gcs, stdio=self._machine.stdio)
        self._lock = threading.Lock()
        self._state: SystemState | None = None  # None: being created
        self._exit_type: ExitType | None = None
        self._exit_reason = ""
        self._shutdown_reason = ""
        self._panic = ""
        self._forced = False
        self._parity: tuple[ParityItem, ...] = self._machine.plan.parity

    @property
    def owner(self) -> str:
        """Owner that the document names."""
        return self._document.owner

    def create(self, *, deadline: float) -> None:
        """Attach the document's disks. On failure nothing is left.

        Raises LaunchError, or the error of a disk that cannot be attached.
        """
        try:
            self._machine.adopt(
                on_event=self._qmp_event, on_panic=self._panicked, on_exit=self._ended
            )
            for (controller, lun), attachment in sorted(self._document.attachments().items()):
                self._slots.attach(AttachDisk(controller, lun, attachment), deadline=deadline)
        except BaseException:
            self.close()
            raise
        with self._lock:
            if self._state is None:
                self._state = SystemState.CREATED
                return
        error = self._machine.launch_error("QEMU ended at once")
        self.close()
        raise error

    def start(self, *, deadline: float) -> None:
        """Let the machine run. Raises ComputeServiceError (0x80370105) if it does already."""
        with self._lock:
            self._check_alive()
            if self._state is SystemState.RUNNING:
                raise ComputeServiceError(
                    f"system {self.id} is running already", hresult=INVALID_STATE
                )
            self._state = SystemState.RUNNING
        # Reported before the machine runs: what it may do next is reported after it.
        self._report(EventType.STARTED, {})
        self._ports.start()
        if self._ready.runs:
            return
        try:
            self._machine.qmp.execute(QmpCommand("cont"), deadline=deadline)
        except SystemExitedError as error:
            raise self._machine.launch_error("QEMU ended as it was started") from error

    def apply(self, requests: Sequence[ModifySettingRequest], *, deadline: float) -> None:
        """Apply changes in order; detachments that follow each other wait once."""
        changes = [plan_change(request) for request in requests]
        with self._lock:
            self._check_alive()
        detachments: list[DetachDisk] = []
        for change in changes:
            if isinstance(change, DetachDisk):
                detachments.append(change)
                continue
            self._detach(detachments, deadline)
            detachments = []
            self._slots.attach(change, deadline=deadline)
            new = attachment_parity(change.controller, change.lun, change.attachment)
            with self._lock:
                self._parity = tuple(dict.fromkeys(self._parity + new))
        self._detach(detachments, deadline)

    def listen(self, port: int) -> StreamEndpoint:
        """Return where the consumer of the guest's stream to `port` connects."""
        with self._lock:
            self._check_alive()
            if port == BRIDGE_PORT and self._state is SystemState.RUNNING:
                raise ComputeServiceError(
                    "the bridge's port must be listened on before the system is started",
                    hresult=INVALID_STATE,
                )
        return self._ports.listen(port)

    def unlisten(self, port: int) -> None:
        """Give up a port that the guest has not dialed."""
        self._ports.unlisten(port)

    def console(self) -> str:
        """Return the last 64 KiB of the serial console."""
        return self._machine.console.text()

    def properties(self) -> SystemProperties:
        """Return what is known of the system."""
        with self._lock:
            state, exit_type = self._state or SystemState.CREATED, self._exit_type
            details: dict[str, Any] = {
                "accelerator": str(self._host.accelerator),
                "accelerator_reason": self._host.accelerator_reason,
                "qemu_version": self._host.version,
                "from": str(self._ready.origin),
                "from_notes": list(self._ready.notes),
                "pid": self._machine.pid,
                "argv": list(self._machine.plan.argv),
                "kernel_command_line": self._machine.plan.command_line,
                "parity": [
                    {"field": item.field, "treatment": str(item.treatment), "reason": item.reason}
                    for item in self._parity
                ],
            }
            if state is SystemState.STOPPED:
                details |= {
                    "exit_code": self._machine.exit_code,
                    "exit_reason": self._exit_reason,
                }
        disks = () if state is SystemState.STOPPED else self._slots.disks()
        return SystemProperties(
            self.id, self.owner, self._ready.runtime_id, state, exit_type, disks, details
        )

    def terminate(self, *, timeout_s: float) -> None:
        """Stop the machine as pulling the plug does for its guest; its disk files are closed.

        Raises ComputeTimeoutError for a process that does not end.
        """
        with self._lock:
            if self._state is SystemState.STOPPED:
                return
            self._forced = True
        self._machine.stop(timeout_s=timeout_s)

    def close(self) -> None:
        """Stop the machine and release all that belongs to it; may be repeated."""
        with self._lock:
            self._forced = True
        self._machine.close()
        self._ports.close()

    def _detach(self, changes: Sequence[DetachDisk], deadline: float) -> None:
        if changes:
            self._slots.detach(changes, deadline=deadline)

    def _check_alive(self) -> None:
        if self._state is SystemState.STOPPED:
            raise SystemExitedError(f"system {self.id} has stopped: {self._exit_reason}")

    def _resume(self) -> None:
        self._machine.qmp.execute(QmpCommand("cont"), deadline=deadline_after(_RESUME_S))

    # -- in the I/O thread -----------------------------------------------------------------------

    def _paused(self, event: QmpEvent) -> None:
        data: dict[str, Any] = {"Reason": "the volume below a disk is full"}
        if path := self._slots.path_of(str(event.data.get("node-name", ""))):
            data |= {"Reason": f"the volume below {path} is full", "Path": path}
        self._report(EventType.PAUSED, data)

    def _qmp_event(self, event: QmpEvent) -> None:
        self._full_volume.event(event)
        if event.name == "SHUTDOWN":
            self._shutdown_reason = str(event.data.get("reason", ""))

    def _panicked(self, message: str) -> None:
        """The guest's kernel said its last words: whoever waits gets to know at once."""
        with self._lock:
            if self._panic or self._state is None or self._forced:
                return
            self._panic = message
        self._report(EventType.CRASHED, {"Message": message})
        # The rest of the trace still comes; a kernel that does not reset itself is ended then.
        ending = threading.Timer(_LAST_WORDS_S, self._machine.kill)
        ending.daemon = True
        ending.start()

    def _ended(self, machine: Machine) -> None:
        code = machine.exit_code
        assert code is not None
        with self._lock:
            was_created = self._state is not None
            self._state = SystemState.STOPPED
            if self._shutdown_reason == "guest-shutdown":
                self._exit_type, status = ExitType.GRACEFUL, 0
                self._exit_reason = "the guest powered itself off"
            elif self._forced:
                self._exit_type, status = ExitType.FORCED, _HCS_E_TERMINATED
                self._exit_reason = "it was terminated"
            else:
                self._exit_type, status = ExitType.UNEXPECTED, _HCS_E_UNEXPECTED_EXIT
                self._exit_reason = (
                    self._panic
                    if self._panic
                    else "the guest reset itself"
                    if self._shutdown_reason == "guest-reset"
                    else f"QEMU ended with {describe_exit(code)}"
                )
            data = {
                "Status": status,
                "ExitType": str(self._exit_type),
                "Reason": self._exit_reason,
                "ExitCode": code,
                "Output": machine.output[-_OUTPUT_SHOWN:],
            }
        self._slots.clear()
        self._ports.guest_gone()
        if was_created:
            self._report(EventType.EXITED, data)


def deadline_after(timeout_s: float) -> float:
    """Return the monotonic time at which a timeout ends."""
    return time.monotonic() + timeout_s

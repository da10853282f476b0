"""A utility VM: from an HCS document to a guest that answers, and back to nothing.

::

    boot:  create ─> listen (bridge, log) ─> start ─> guest dials ─> NegotiateProtocol ─> ready
    close: guest powers off, or terminate ─> close: nothing of it is left on the host

A failure on the way up takes everything down again and says what the guest last wrote to its
console. The bridge's port is listened on before the start (hcsshim #2723).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from typing import Self

from harness.errors import (
    BridgeClosedError,
    ComputeServiceError,
    ComputeTimeoutError,
    GuestError,
    HarnessError,
    InfrastructureError,
    SystemExitedError,
)
from harness.gcs.guest import GuestClient
from harness.hcs.document import ComputeSystem
from harness.hcs.service import (
    BRIDGE_PORT,
    LOG_PORT,
    ComputeService,
    EventType,
    ExitType,
    SystemEvent,
    SystemState,
)
from harness.hcs.streams import GuestStreams, ListenHyperV, StreamListener, listen_hyperv
from harness.processes import ProcessStarter
from harness.scsi import DiskClaims, ScsiManager, Slot
from harness.unfinished import Unfinished
from harness.uvmdisks import BridgeScsiGuest, ServiceScsiHost

BOOT_TIMEOUT_S = 60.0
_POWER_OFF_TIMEOUT_S = 5.0
_LOG_LINES = 500
_DYING_S = 2.0
_EVENT_POLL_S = 60.0
_REPORT_S = 2.0  # how long the report of a system's end may come after its streams end


class GuestLog(threading.Thread):
    """Keeps the last lines of the guest's own log (JSON lines on port 109)."""

    def __init__(self, listener: StreamListener) -> None:
        super().__init__(name="guest log", daemon=True)
        self._listener = listener
        self._lines: deque[str] = deque(maxlen=_LOG_LINES)

    def run(self) -> None:
        """Read until the guest closes the stream."""
        with (
            contextlib.suppress(OSError, HarnessError),
            self._listener,
            self._listener.accept(BOOT_TIMEOUT_S) as stream,
            stream.makefile("r", encoding="utf-8", errors="replace") as lines,
        ):
            for line in lines:
                self._lines.append(line.rstrip("\n"))

    def lines(self) -> tuple[str, ...]:
        """Return what is kept, oldest first."""
        return tuple(self._lines)

    def messages(self) -> tuple[str, ...]:
        """Return the `msg` of each line that is JSON, else the line itself."""
        found: list[str] = []
        for line in self.lines():
            try:
                record = json.loads(line)
            except ValueError:
                found.append(line)
            else:
                found.append(str(record.get("msg", line)) if isinstance(record, dict) else line)
        return tuple(found)


class _EventWatch(threading.Thread):
    """Ends the bridge as soon as the service reports a crash, and keeps what else it reports."""

    def __init__(self, service: ComputeService, system_id: str, guest: GuestClient) -> None:
        super().__init__(name="event watch", daemon=True)
        self._service = service
        self._system_id = system_id
        self._guest = guest
        self._pauses: list[str] = []
        self._ended = threading.Event()
        self._crash: SystemExitedError | None = None

    def why_ended(self) -> SystemExitedError | None:
        """Return the crash that ended the system, None for another end; waits a moment."""
        self._ended.wait(_REPORT_S)
        return self._crash

    @property
    def pauses(self) -> tuple[str, ...]:
        """Each time the service held the machine, in words."""
        return tuple(self._pauses)

    def run(self) -> None:
        """Watch until the system is closed."""
        try:
            self._follow()
        finally:
            self._ended.set()

    def _follow(self) -> None:
        cursor = 0
        with contextlib.suppress(ComputeServiceError):  # closed
            while True:
                events = self._service.events(
                    self._system_id, after=cursor, timeout_s=_EVENT_POLL_S
                )
                for event in events:
                    cursor = event.sequence
                    if not self._take(event):
                        return

    def _take(self, event: SystemEvent) -> bool:
        match event.type:
            case EventType.CRASHED:
                # Whoever waits for an answer gets to know why none comes.
                reason = str(event.data.get("Message", "the guest crashed"))
                self._crash = SystemExitedError(reason)
                self._guest.bridge.kill(self._crash)
                return False
            case EventType.EXITED:
                return False
            case EventType.PAUSED:
                self._pauses.append(f"it waits: {event.data.get('Reason', 'nobody knows why')}")
            case EventType.RESUMED if self._pauses:
                seconds = float(event.data.get("Seconds", 0.0))
                waited = self._pauses[-1].removeprefix("it waits: ")
                self._pauses[-1] = f"it waited {seconds:.1f} s: {waited}"
        return True


class UtilityVm:
    """A running utility VM; made by `boot`, a context manager whose exit leaves nothing."""

    def __init__(
        self,
        service: ComputeService,
        system_id: str,
        *,
        guest: GuestClient,
        streams: GuestStreams,
        log: GuestLog,
        document: ComputeSystem,
        boot_s: float,
        origin: str = "cold",
        claims: DiskClaims | None = None,
    ) -> None:
        """`origin` is where the machine comes from: `template`, `migration` or `cold`."""
        self.origin = origin
        self.document = document
        self.system_id = system_id
        self.service = service
        self.guest = guest
        self.log = log
        self.boot_s = boot_s
        self.processes = ProcessStarter(streams, guest)
        self.scsi = ScsiManager(
            ServiceScsiHost(service, system_id),
            BridgeScsiGuest(guest),
            controllers=_scsi_controllers(document),
            # What the document attaches (a root file system, say) is not ours to hand out.
            reserved=[Slot(controller, lun) for controller, lun in document.attachments()],
            claims=claims,
            machine=system_id,
        )
        self.unfinished = Unfinished()
        """Releases that failed on the way back of something that did not start."""
        self._closed = False
        self._killed = False
        self._watch = _EventWatch(service, system_id, guest)
        guest.bridge.explain_end(self._watch.why_ended)
        self._watch.start()

    @classmethod
    def boot(
        cls,
        service: ComputeService,
        document: ComputeSystem,
        *,
        timeout_s: float = BOOT_TIMEOUT_S,
        connect: Callable[[socket.socket], GuestClient] | None = None,
        claims: DiskClaims | None = None,
        listen: ListenHyperV = listen_hyperv,
    ) -> Self:
        """Create and start a system and return once its guest has negotiated the protocol.

        On failure nothing is left. Raises LaunchError (did not start), InfrastructureError (the
        guest did not answer; with the end of its console), or what the service raises.
        """
        system_id = str(uuid.uuid4())
        began = time.monotonic()
        with contextlib.ExitStack() as undo:
            made = service.create(system_id, document)
            undo.callback(service.close, system_id)
            streams = GuestStreams(service, system_id, listen)
            bridge_listener = undo.enter_context(streams.listen(BRIDGE_PORT))
            log = GuestLog(streams.listen(LOG_PORT))
            log.start()
            service.start(system_id, timeout_s=timeout_s)
            try:
                remaining = max(1.0, timeout_s - (time.monotonic() - began))
                guest = (connect or GuestClient.connect)(bridge_listener.accept(remaining))
                undo.callback(guest.close)
                guest.negotiate(timeout_s=remaining)
            except (
                BridgeClosedError,
                ComputeTimeoutError,
                GuestError,
                SystemExitedError,
            ) as error:
                gave_up = (
                    "ended before it answered"
                    if isinstance(error, SystemExitedError)
                    else f"did not answer within {timeout_s:.0f} s"
                )
                raise InfrastructureError(
                    f"the utility VM {gave_up}: {error}; "
                    f"its console ends: {_tail(service.console(system_id))}"
                ) from error
            undo.pop_all()
            bridge_listener.close()
        return cls(
            service,
            system_id,
            guest=guest,
            streams=streams,
            log=log,
            document=document,
            boot_s=time.monotonic() - began,
            origin=str(made.details.get("from", "cold")),
            claims=claims,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether the compute service says it runs."""
        try:
            return self.service.properties(self.system_id).state is SystemState.RUNNING
        except ComputeServiceError:
            return False

    @property
    def pauses(self) -> tuple[str, ...]:
        """Each time the host held the machine because it lacked something, in words."""
        return self._watch.pauses

    def console(self) -> str:
        """Return the last 64 KiB of the serial console."""
        return self.service.console(self.system_id)

    def kill(self) -> None:
        """Pull the plug: nothing is flushed, unmounted or released, in the guest or around it.

        Where the service names the process that is the machine it is killed, so that not even
        the virtual hardware can put its disks in order; else the service terminates the system.
        """
        self._killed = True
        pid = self.service.properties(self.system_id).details.get("pid")
        if isinstance(pid, int) and sys.platform != "win32":
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            if not self.wait_exit(timeout_s=_POWER_OFF_TIMEOUT_S):
                raise ComputeTimeoutError(f"process {pid} was killed but has not ended")
        else:
            self.service.terminate(self.system_id)
        self.guest.close()
        self.scsi.abandon()

    def reclaim(self) -> None:
        """Finish what failed ways back left, and take out every disk that nobody holds.

        Raises the first error; may be repeated.
        """
        if errors := self.unfinished.finish():
            raise errors[0]
        self.scsi.reclaim()

    def death(self) -> str:
        """Return why the machine ended without being asked to; "" where it runs or was asked."""
        if self._closed or self._killed:
            return ""
        try:
            if self.guest.bridge.closed:
                # The streams of a dying machine end a moment before the machine is known dead.
                self.wait_exit(timeout_s=_DYING_S)
            found = self.service.properties(self.system_id)
        except ComputeServiceError:
            return ""
        if found.state is not SystemState.STOPPED or found.exit_type is not ExitType.UNEXPECTED:
            return ""
        return str(found.details.get("exit_reason") or "nobody knows why")

    def wait_exit(self, *, timeout_s: float) -> bool:
        """Return whether the system exited within the time."""
        deadline = time.monotonic() + timeout_s
        cursor = 0
        while True:
            remaining = deadline - time.monotonic()
            events = self.service.events(
                self.system_id, after=cursor, timeout_s=max(0.0, remaining)
            )
            if any(event.type is EventType.EXITED for event in events):
                return True
            if remaining <= 0:
                return False
            cursor = max([cursor, *(event.sequence for event in events)])

    def close(self) -> None:
        """Power the guest off (or terminate it), and forget it; nothing is left on the host.

        A second call does nothing. What was still attached is abandoned with the machine.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self.running:
                with contextlib.suppress(HarnessError):
                    self.guest.shutdown()
                with contextlib.suppress(SystemExitedError):
                    if not self.wait_exit(timeout_s=_POWER_OFF_TIMEOUT_S):
                        self.service.terminate(self.system_id)
        finally:
            self.guest.close()
            self.scsi.abandon()
            self.service.close(self.system_id)
            self.log.join(1.0)
            self._watch.join(1.0)


def _scsi_controllers(document: ComputeSystem) -> int:
    machine = document.virtual_machine
    return len(machine.devices.scsi) if machine and machine.devices else 0


def _tail(console: str, lines: int = 12) -> str:
    kept = [line for line in console.splitlines() if line.strip()][-lines:]
    return " | ".join(kept) if kept else "(empty)"

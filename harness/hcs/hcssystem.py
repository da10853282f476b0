"""One system of Windows' HCS: its handle, what it went through, what it may open.

::

    create ─► CREATED ─ start ─► RUNNING ─ exit, crash, service gone ─► STOPPED ─ close ─► gone
                 └──────── terminate ──────────────────────────────────────┘

The handle is closed when nobody is inside of a call with it any more: HCS does not survive that.
What the machine has attached is what was asked for and granted; HCS has no query for it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from harness.errors import (
    ComputeServiceError,
    ComputeTimeoutError,
    HcsCallError,
    SystemExitedError,
    SystemNotFoundError,
)
from harness.hcs import computecore
from harness.hcs.document import (
    Attachment,
    ComputeSystem,
    ModifySettingRequest,
    RequestType,
    is_scsi_attachment_path,
    parse_scsi_attachment_path,
)
from harness.hcs.endings import crash_message_of, exit_reason_of, exit_type_of
from harness.hcs.grants import FileGrants
from harness.hcs.hcsapi import HcsApi
from harness.hcs.hcsdocument import for_hcs
from harness.hcs.hresult import (
    ALREADY_EXISTS,
    ELEMENT_NOT_FOUND,
    parse_document,
)
from harness.hcs.notifications import Notification
from harness.hcs.serialpipe import SerialConsole
from harness.hcs.service import (
    AttachedDisk,
    EventType,
    ExitType,
    StreamEndpoint,
    SystemEvent,
    SystemProperties,
    SystemState,
)
from harness.hcs.streams import hvsock_address
from harness.hcs.systems import EventLog, not_found
from harness.hcs.windowshost import WindowsHost

_CREATE_S: Final = 240.0  # hcsshim HCSSHIM_TIMEOUT_SYSTEMCREATE
_QUERY_S: Final = 30.0
_TERMINATE_S: Final = 30.0
_LOOK_S: Final = 0.5
_ENDED: Final = (SystemExitedError, SystemNotFoundError)


class HcsSystem:
    """One system; every method may be called from any thread."""

    def __init__(self, host: WindowsHost, system_id: str, document: ComputeSystem) -> None:
        """Makes nothing yet: `create` does."""
        self.id = system_id
        self.owner = document.owner
        self.runtime_id = ""
        self._host = host
        self._api: HcsApi = host.api
        self._document = for_hcs(system_id, document)
        self._grants = FileGrants(host.api, system_id)
        self._changed = threading.Condition()
        self._handle = 0
        self._users = 0
        self._closed = False
        self._closing = threading.Lock()
        self._subscription = 0
        self._state = SystemState.CREATED
        self._started = False
        self._exit_type: ExitType | None = None
        self._exit_reason = ""
        self._crash = ""
        self._forced = False
        self._events = EventLog(system_id)
        self._disks: dict[tuple[int, int], AttachedDisk] = {}
        self._doubtful: set[tuple[int, int]] = set()
        self._ports: set[int] = set()
        self._console = (
            SerialConsole(self._document.console, host.open_pipe, self._crashed)
            if self._document.console
            else None
        )

    @property
    def closed(self) -> bool:
        """Whether it was given back: nothing can be asked of it any more."""
        return self._closed

    def create(self) -> None:
        """Make the system with the document's disks. On failure nothing of it is left."""
        document = self._document
        disks = document.system.attachments()
        try:
            for file in document.boot_files:
                self._grants.grant(file)
            for attachment in disks.values():
                self._grants.grant(attachment.path)
            self._handle = self._api.create(self.id, document.system.to_json(), timeout_s=_CREATE_S)
            self._subscription = self._api.subscribe(self._handle, self._notified)
            known = self._api.properties(self._handle, timeout_s=_QUERY_S)
            self.runtime_id = str(known.get("RuntimeId") or self.id).lower()
            for (controller, lun), attachment in disks.items():
                self._disks[controller, lun] = AttachedDisk(
                    controller, lun, attachment.path, attachment.read_only
                )
        except BaseException as error:
            with contextlib.suppress(ComputeServiceError):
                self._abandon(already_there=_is_already_there(error))
            raise

    def start(self, *, timeout_s: float) -> None:
        """Power it on; returns once it runs. Raises ComputeServiceError, SystemExitedError."""
        with self._using() as handle:
            with self._changed:
                fresh, self._started = not self._started, True
            # Its pipe comes with the start, and the kernel's first words with it.
            if fresh and self._console is not None:
                self._console.start()
            self._api.start(handle, timeout_s=timeout_s)
            with self._changed:
                if self._state is SystemState.CREATED:  # else it has ended meanwhile
                    self._state = SystemState.RUNNING
                    self._report(EventType.STARTED, {})

    def modify(self, request: ModifySettingRequest, *, timeout_s: float) -> None:
        """Carry out one request; a disk is made readable for the machine first."""
        with self._using() as handle:
            if not is_scsi_attachment_path(request.resource_path):
                self._api.modify(handle, request.to_json(), timeout_s=timeout_s)
                return
            slot = parse_scsi_attachment_path(request.resource_path)
            if request.request_type is RequestType.REMOVE:
                self._detach(handle, slot, request, timeout_s)
            elif isinstance(request.settings, Attachment):
                self._attach(handle, slot, request, request.settings, timeout_s)
            else:
                self._api.modify(handle, request.to_json(), timeout_s=timeout_s)

    def _attach(
        self,
        handle: int,
        slot: tuple[int, int],
        request: ModifySettingRequest,
        settings: Attachment,
        timeout_s: float,
    ) -> None:
        self._grants.grant(settings.path)
        disk = AttachedDisk(*slot, settings.path, settings.read_only)
        try:
            self._api.modify(handle, request.to_json(), timeout_s=timeout_s)
        except ComputeTimeoutError:
            # It may have come about: the slot is taken until a removal says otherwise.
            with self._changed:
                self._disks.setdefault(slot, disk)
                self._doubtful.add(slot)
            raise
        except BaseException:
            with contextlib.suppress(ComputeServiceError):
                self._grants.give_back(settings.path)
            raise
        with self._changed:
            self._disks[slot] = disk
            self._doubtful.discard(slot)

    def _detach(
        self, handle: int, slot: tuple[int, int], request: ModifySettingRequest, timeout_s: float
    ) -> None:
        try:
            self._api.modify(handle, request.to_json(), timeout_s=timeout_s)
        except ComputeTimeoutError:
            with self._changed:
                if slot in self._disks:
                    self._doubtful.add(slot)
            raise
        except HcsCallError as error:
            if error.hresult != ELEMENT_NOT_FOUND or slot not in self._doubtful:
                raise
        with self._changed:
            self._doubtful.discard(slot)
            disk = self._disks.pop(slot, None)
        if disk is not None:
            # A DACL that keeps an entry is no reason to call a disk attached: close tries again.
            with contextlib.suppress(ComputeServiceError):
                self._grants.give_back(disk.path)

    def properties(self) -> SystemProperties:
        """Return what is known; HCS is asked as long as it has not said that it ended."""
        with self._using(stopped_too=True) as handle:
            if not self._has_stopped():
                self._ask(handle)
            with self._changed:
                details: dict[str, Any] = {"from": "cold"}
                if self._exit_reason:
                    details["exit_reason"] = self._exit_reason
                return SystemProperties(
                    self.id,
                    self.owner,
                    self.runtime_id,
                    self._state,
                    self._exit_type,
                    tuple(disk for _, disk in sorted(self._disks.items())),
                    details,
                )

    def _ask(self, handle: int) -> None:
        """Take over an end that no notification has told."""
        try:
            known = self._api.properties(handle, timeout_s=_QUERY_S)
        except _ENDED as error:
            self._exited(ExitType.UNEXPECTED, f"HCS knows it no more: {error}")
            return
        if known.get("Stopped") is True or known.get("State") == SystemState.STOPPED.value:
            self._exited(exit_type_of(known.get("ExitType")), "HCS says that it stopped")

    def listen(self, port: int) -> StreamEndpoint:
        """Return the address where the consumer of the guest's stream to `port` listens."""
        with self._changed:
            self._check_alive()
            if port in self._ports:
                raise ComputeServiceError(f"port {port:#x} is listened on already")
            endpoint = StreamEndpoint("hvsock", hvsock_address(self.runtime_id, port))
            self._ports.add(port)
            return endpoint

    def unlisten(self, port: int) -> None:
        """Give up a port; unknown ones are fine."""
        with self._changed:
            self._ports.discard(port)

    def events(self, *, after: int, timeout_s: float) -> Sequence[SystemEvent]:
        """Return events above `after`; waits up to `timeout_s` for the first."""
        return self._events.read(after=after, timeout_s=timeout_s)

    def console(self) -> str:
        """Return the last 64 KiB of the serial console; "" without one."""
        return self._console.text() if self._console is not None else ""

    def terminate(self, *, timeout_s: float) -> None:
        """Power it off; returns once HCS says that it ended. Stopped is fine.

        Raises ComputeTimeoutError when it did not end in time.
        """
        deadline = time.monotonic() + timeout_s
        with self._using(stopped_too=True) as handle:
            if self._has_stopped():
                return
            self._forced = True
            with contextlib.suppress(*_ENDED):
                self._api.terminate(handle, timeout_s=timeout_s)
            # What never ran tells no end; whatever was missed is seen by asking.
            look_s = _LOOK_S if self._started else 0.0
            while not self._ended_within(look_s):
                self._ask(handle)
                if not self._has_stopped() and time.monotonic() >= deadline:
                    raise ComputeTimeoutError(
                        f"system {self.id} was terminated, and has not ended after {timeout_s:g} s"
                    )
                look_s = _LOOK_S

    def _ended_within(self, wait_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(self._has_stopped, wait_s)

    def close(self) -> None:
        """Power it off and forget it: no handle, no grant, no thread stays. May be repeated.

        Raises ComputeServiceError for what could not be undone; a system that does not end stays
        known.
        """
        with self._closing:
            if self._closed:
                return
            self.terminate(timeout_s=_TERMINATE_S)
            self._abandon()

    def _abandon(self, *, already_there: bool = False) -> None:
        """Give back everything; for a system that has ended, or never came to be."""
        with self._changed:
            self._closed = True
            self._events.close()
            self._changed.notify_all()
            while self._users:
                self._changed.wait()
        if self._console is not None:
            self._console.finish()
        if self._subscription:
            self._api.unsubscribe(self._subscription)
        if self._handle:
            # The last handle: what still runs ends with it.
            self._api.close(self._handle)
            self._handle = 0
        if not already_there:  # else the entries are those of the system that has the id
            self._grants.give_all_back()

    @contextlib.contextmanager
    def _using(self, *, stopped_too: bool = False) -> Iterator[int]:
        """Hold the handle open. Raises SystemNotFoundError once closed, else SystemExitedError."""
        with self._changed:
            if self._closed:
                raise not_found(self.id)
            if not stopped_too:
                self._check_alive()
            self._users += 1
        try:
            yield self._handle
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def _has_stopped(self) -> bool:
        return self._state is SystemState.STOPPED

    def _check_alive(self) -> None:
        if self._closed:
            raise not_found(self.id)
        if self._has_stopped():
            raise SystemExitedError(f"system {self.id} has stopped: {self._exit_reason}")

    def _notified(self, notification: Notification) -> None:
        """Take a notification of HCS, in one of its threads."""
        document = parse_document(notification.document)
        match notification.type:
            case computecore.EventType.SYSTEM_EXITED:
                self._exited(exit_type_of(document.get("ExitType")), exit_reason_of(document))
            case (
                computecore.EventType.SYSTEM_CRASH_INITIATED
                | computecore.EventType.SYSTEM_CRASH_REPORT
            ):
                self._crashed(crash_message_of(document), document)
            case computecore.EventType.SERVICE_DISCONNECT:
                self._exited(
                    ExitType.UNEXPECTED, "the Host Compute Service (vmcompute) ended, and it too"
                )

    def _crashed(self, message: str, document: Mapping[str, Any] | None = None) -> None:
        """Note a crash, once: HCS tells of its begin and of its report, the console as well."""
        with self._changed:
            if not self._crash and not self._has_stopped():
                self._crash = message
                self._report(EventType.CRASHED, {**(document or {}), "Message": message})

    def _exited(self, exit_type: ExitType, reason: str) -> None:
        with self._changed:
            if self._has_stopped():
                return
            self._state = SystemState.STOPPED
            if self._forced:
                exit_type = ExitType.FORCED
            elif self._crash:
                exit_type, reason = ExitType.UNEXPECTED, f"{self._crash}; {reason}"
            self._exit_type, self._exit_reason = exit_type, reason
            self._report(EventType.EXITED, {"ExitType": exit_type.value, "Reason": reason})

    def _report(self, kind: EventType, data: Mapping[str, Any]) -> None:
        """Add an event; the caller holds the lock."""
        self._events.report(kind, data)
        self._changed.notify_all()


def _is_already_there(error: BaseException) -> bool:
    return isinstance(error, ComputeServiceError) and error.hresult == ALREADY_EXISTS

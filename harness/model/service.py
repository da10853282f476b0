"""The compute service in memory: HCS documents and requests, and the real guest agent in process.

Implements `harness.hcs.service.ComputeService`. Disks are real files, opened and locked; streams
are real sockets; the agent is the one that runs in every utility VM. What is played is the
operating system below the agent (`harness.model.guestos`).
"""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import shutil
import tempfile
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from harness.errors import ComputeServiceError, SystemExitedError
from harness.guest.agent import Agent
from harness.guest.log import Log
from harness.guest.transport import SocketConnection, SocketStream
from harness.hcs.document import (
    ROOT_SLOT,
    Attachment,
    ComputeSystem,
    ModifySettingRequest,
    RequestType,
    parse_scsi_attachment_path,
)
from harness.hcs.service import (
    AttachedDisk,
    EventType,
    ExitType,
    StreamEndpoint,
    SystemEvent,
    SystemProperties,
    SystemState,
)
from harness.hcs.systems import EventLog, SystemTable
from harness.model.disks import DiskStore
from harness.model.machine import ModelMachine
from harness.model.streams import ModelPorts

_INVALID_STATE: Final = 0x80370105  # HCS_E_INVALID_STATE
_CONSOLE_MAX: Final = 64 * 1024


class _System:
    """One system; every method but the constructor is called with the service's lock free."""

    def __init__(
        self, system_id: str, document: ComputeSystem, *, folder: Path, store: DiskStore
    ) -> None:
        self.id = system_id
        self.owner = document.owner
        self.runtime_id = str(uuid.uuid4())
        self.folder = folder
        self.lock = threading.RLock()
        self.state = SystemState.CREATED
        self.exit_type: ExitType | None = None
        self.started = False
        self.events = EventLog(system_id)
        self.console = ""
        self.ports = ModelPorts(folder)
        self.has_root_disk = document.root_is_disk
        self.init_options = document.init_options
        devices = document.virtual_machine and document.virtual_machine.devices
        self.machine = ModelMachine(
            store,
            controllers=len(devices.scsi) if devices else 0,
            dial=lambda port: SocketConnection(self.ports.dial(port)),
            power_off=lambda: self.stop(ExitType.GRACEFUL),
        )
        self.stopped = threading.Event()
        self._told = False

    def attach(self, controller: int, lun: int, attachment: Attachment) -> None:
        """Give the machine a disk. Raises ComputeServiceError."""
        with self.lock:
            self.check_alive()
            self.machine.attach(controller, lun, attachment)

    def detach(self, controller: int, lun: int) -> None:
        """Take a disk away. Raises ComputeServiceError for an empty slot."""
        with self.lock:
            self.check_alive()
            self.machine.detach(controller, lun)

    def serve(self) -> None:
        """Run the guest: its agent answers on the bridge, and nobody's host means power off."""

        def write(line: str) -> None:
            self.console = (self.console + line + "\n")[-_CONSOLE_MAX:]

        log = Log(write)
        if self.has_root_disk:
            try:
                self.machine.os.boot_from_disk(*ROOT_SLOT, writable="-w" in self.init_options)
            except OSError as error:
                write(f"Kernel panic - not syncing: {error.strerror}")
                self.stop(ExitType.UNEXPECTED)
                return
        agent = Agent(self.machine.os, log)
        write("lcowlab: a model's guest")
        try:
            connected = self.ports.bridge()
        except OSError as error:
            write(f"no bridge: {error}")
            return
        with connected:
            agent.serve(SocketStream(connected))
        if "-s" in self.init_options:
            write("agent: the host is gone, staying")
            return
        self.stop(ExitType.GRACEFUL)
        log.info("the host is gone")  # whoever forwards the log finds out by this line

    def stop(self, exit_type: ExitType) -> None:
        """End it at once; what was not synced is lost unless the guest powered off by itself."""
        with self.lock:
            if self.state is SystemState.STOPPED:
                return
            self.state = SystemState.STOPPED
            self.exit_type = exit_type
            self.machine.stop(flushed=exit_type is ExitType.GRACEFUL)
        self.ports.close()
        self.stopped.set()

    def terminate(self) -> None:
        """Pull the plug; returns once the end is reported, where it ever ran. Stopped is fine."""
        self.stop(ExitType.FORCED)
        if self.started:
            self.await_exit()

    def await_exit(self) -> None:
        """Report the end, once, when it has come."""
        self.stopped.wait()
        with self.lock:
            if not self._told:
                self._told = True
                exit_type = self.exit_type.value if self.exit_type else ""
                self.events.report(EventType.EXITED, {"ExitType": exit_type})

    def check_alive(self) -> None:
        """Raise SystemExitedError once it stopped."""
        if self.state is SystemState.STOPPED:
            raise SystemExitedError(f"system {self.id} has stopped")

    def properties(self) -> SystemProperties:
        """Return what is known of it."""
        with self.lock:
            disks = tuple(
                AttachedDisk(controller, lun, disk.path, disk.read_only)
                for (controller, lun), disk in self.machine.disks()
            )
            return SystemProperties(
                self.id, self.owner, self.runtime_id, self.state, self.exit_type, disks
            )


class ModelComputeService:
    """A compute service whose systems live in this process. A context manager."""

    def __init__(self) -> None:
        self._systems: SystemTable[_System] = SystemTable()
        self._store = DiskStore()
        self._lock = threading.Lock()
        self._folder: Path | None = None

    @property
    def name(self) -> str:
        """`model`."""
        return "model"

    @property
    def disks(self) -> DiskStore:
        """Every disk that was ever attached, with its content."""
        return self._store

    def prepare(self) -> None:
        """Do nothing: the service itself holds nothing."""

    def create(self, system_id: str, document: ComputeSystem) -> SystemProperties:
        """Create a system with the document's disks. On failure nothing is left."""
        with self._systems.creating(system_id):
            with self._lock:
                if self._folder is None:
                    self._folder = Path(tempfile.mkdtemp(prefix="lcowlab-model-"))
                folder = Path(tempfile.mkdtemp(dir=self._folder, prefix=""))
            system = _System(system_id, document, folder=folder, store=self._store)
            try:
                for (controller, lun), attachment in sorted(document.attachments().items()):
                    system.attach(controller, lun, attachment)
            except BaseException:
                self._close(system)
                raise
            self._systems.add(system_id, system, close=self._close)
        return system.properties()

    def start(self, system_id: str, *, timeout_s: float = 60.0) -> None:
        """Start it: the agent runs in a thread. Raises ComputeServiceError (0x80370105) twice."""
        del timeout_s
        system = self._system(system_id)
        with system.lock:
            system.check_alive()
            if system.state is SystemState.RUNNING:
                raise ComputeServiceError(
                    f"system {system_id} is running already", hresult=_INVALID_STATE
                )
            system.state = SystemState.RUNNING
            system.started = True
            system.events.report(EventType.STARTED, {})
        for name, target in (("guest", system.serve), ("exit", system.await_exit)):
            threading.Thread(target=target, name=f"model {name}", daemon=True).start()

    def modify(
        self, system_id: str, request: ModifySettingRequest, *, timeout_s: float = 30.0
    ) -> None:
        """Attach or detach a disk."""
        del timeout_s
        system = self._system(system_id)
        controller, lun = parse_scsi_attachment_path(request.resource_path)
        if request.request_type is RequestType.ADD and isinstance(request.settings, Attachment):
            system.attach(controller, lun, request.settings)
        elif request.request_type is RequestType.REMOVE:
            system.detach(controller, lun)
        else:
            raise ComputeServiceError(
                f"{request.request_type} of {request.resource_path}", hresult=0x80004001
            )

    def modify_batch(
        self, system_id: str, requests: Sequence[ModifySettingRequest], *, timeout_s: float = 30.0
    ) -> None:
        """Apply changes in order; stops at a failure."""
        for request in requests:
            self.modify(system_id, request, timeout_s=timeout_s)

    def properties(self, system_id: str) -> SystemProperties:
        """Return what is known of a system."""
        return self._system(system_id).properties()

    def enumerate(self, *, owner: str | None = None) -> Sequence[SystemProperties]:
        """Return every system that was not closed, or those of one owner."""
        systems = self._systems.all()
        return [each.properties() for each in systems if owner in (None, each.owner)]

    def listen(self, system_id: str, port: int) -> StreamEndpoint:
        """Return the Unix socket where the consumer of the guest's stream to `port` connects."""
        return self._system(system_id).ports.listen(port)

    def unlisten(self, system_id: str, port: int) -> None:
        """Give up a port that the guest has not dialed; unknown ports are fine."""
        self._system(system_id).ports.unlisten(port)

    def events(
        self, system_id: str, *, after: int = 0, timeout_s: float = 0.0
    ) -> Sequence[SystemEvent]:
        """Return events with a sequence above `after`; waits up to `timeout_s` for the first."""
        return self._system(system_id).events.read(after=after, timeout_s=timeout_s)

    def console(self, system_id: str) -> str:
        """Return the last 64 KiB of the guest's console."""
        return self._system(system_id).console

    def terminate(self, system_id: str, *, timeout_s: float = 10.0) -> None:
        """Stop it at once, as pulling the plug does. Stopped is fine."""
        del timeout_s
        self._system(system_id).terminate()

    def close(self, system_id: str) -> None:
        """Forget a system, terminating it first where needed; nothing of it is left."""
        self._close(self._system(system_id))

    def _close(self, system: _System) -> None:
        system.terminate()
        shutil.rmtree(system.folder, ignore_errors=True)
        system.events.close()
        self._systems.forget(system.id)

    def close_all(self) -> None:
        """Close every system and the service; may be repeated."""
        self._systems.close(self._close)
        with self._lock:
            self._store.close()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close_all()

    def _system(self, system_id: str) -> _System:
        return self._systems.find(system_id)

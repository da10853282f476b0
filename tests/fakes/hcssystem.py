"""The systems of the library that stands in for computecore.dll: the model's machines.

Their guest is the real agent, which dials Hyper-V sockets as it does on Windows: it redials its
bridge for ever, and ends only with its machine.
"""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import contextlib
import errno
import itertools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from harness.errors import ComputeServiceError
from harness.guest.agent import Agent
from harness.guest.log import Log
from harness.guest.transport import SocketConnection, SocketStream
from harness.hcs.document import Attachment
from harness.model.disks import DiskStore
from harness.model.machine import ModelMachine

E_NOTIMPL: Final = 0x80004001
INVALID_STATE: Final = 0x80370105

CONTROLLERS: Final = (
    "df6d0690-79e5-55b6-a5ec-c1e2f77f580a",
    "0110f83b-de10-5172-a266-78bca56bf50a",
    "b5d2d8d4-3a75-51bf-945b-3444dc6b8579",
    "305891a9-b251-5dfe-91a2-c25d9212275b",
)
_BRIDGE: Final = 0x40000000
_REDIAL_S: Final = 0.01


class RefusedError(Exception):
    """What HCS answers instead of doing it: an HRESULT and the events of its document."""

    def __init__(self, hresult: int, *events: str) -> None:
        super().__init__(f"{hresult:#x}", *events)
        self.hresult = hresult
        self.document = (
            json.dumps(
                {
                    "Error": hresult - (1 << 32),
                    "ErrorMessage": "The operation failed.",
                    "ErrorEvents": [{"Message": text, "EventId": 1} for text in events],
                }
            )
            if events
            else ""
        )


class HyperVSockets:
    """Hyper-V sockets between the stand-in's machines and this process."""

    def __init__(self, folder: Path) -> None:
        """`folder` must be short: socket paths have 107 bytes."""
        self._folder = folder
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._listening: dict[tuple[str, str], Path] = {}

    def listen(self, runtime_id: str, service_id: str) -> socket.socket:
        """Bind and listen, as on AF_HYPERV with (machine, service)."""
        where = (str(uuid.UUID(runtime_id)), str(uuid.UUID(service_id)))
        listener = socket.socket(socket.AF_UNIX)
        with self._lock:
            path = self._folder / str(next(self._numbers))
            listener.bind(os.fspath(path))
            listener.listen(1)
            self._listening[where] = path
        return listener

    def dial(self, runtime_id: str, port: int) -> socket.socket:
        """Connect as the guest's vsock does. Raises ConnectionRefusedError."""
        service = f"{port:08x}-facb-11e6-bd58-64006a7986d3"
        with self._lock:
            path = self._listening.get((runtime_id, service))
        if path is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"nobody listens on {port:#x}")
        connected = socket.socket(socket.AF_UNIX)
        try:
            connected.connect(os.fspath(path))
        except OSError as error:
            connected.close()
            raise ConnectionRefusedError(errno.ECONNREFUSED, str(error)) from error
        path.unlink(missing_ok=True)
        return connected


class Hypervisor(Protocol):
    """What a system needs of the library."""

    disks: DiskStore
    sockets: HyperVSockets
    boots: bool

    def check_access(self, system_id: str, file: str) -> None:
        """Raise RefusedError unless the machine's account may read a file that is there."""
        ...

    def notify(self, system: StandInSystem, kind: int, document: object) -> None:
        """Call back for every handle of a system."""
        ...


class StandInSystem:
    """One compute system, and the machine that it is."""

    def __init__(self, library: Hypervisor, system_id: str, document: Mapping[str, Any]) -> None:
        self.id = system_id
        self.document = document
        self.owner = str(document.get("Owner", ""))
        self.runtime_id = str(uuid.uuid4())
        self.state = "Created"
        self.exit_type = ""
        self.lock = threading.RLock()
        self._library = library
        self._streams: list[socket.socket] = []
        devices = document["VirtualMachine"].get("Devices", {})
        self.pipe = str(devices.get("ComPorts", {}).get("0", {}).get("NamedPipe", ""))
        self.console_read, self._console_write = os.pipe()
        self.console_opened = False
        self.machine = ModelMachine(
            library.disks,
            controllers=len(devices.get("Scsi", {})),
            dial=lambda port: SocketConnection(self._dial(port)),
            power_off=lambda: self.stop("GracefulExit"),
        )
        for guid, controller in devices.get("Scsi", {}).items():
            for lun, attachment in controller.get("Attachments", {}).items():
                self.attach(CONTROLLERS.index(guid), int(lun), attachment)

    def attach(self, controller: int, lun: int, settings: Mapping[str, Any]) -> None:
        """Attach a disk that the machine's account may read. Raises RefusedError."""
        path = str(settings.get("Path", ""))
        self._library.check_access(self.id, path)
        try:
            self.machine.attach(controller, lun, Attachment.from_json(settings))
        except ComputeServiceError as error:
            raise RefusedError(
                error.hresult or E_NOTIMPL, f"'Virtual Machine': Attachment '{path}': {error}"
            ) from error

    def start(self) -> None:
        """Power it on."""
        with self.lock:
            if self.state != "Created":
                raise RefusedError(INVALID_STATE, f"the state is {self.state}")
            self.state = "Running"
        threading.Thread(target=self._run_guest, name="stand-in guest", daemon=True).start()

    def stop(self, exit_type: str, *, status: int = 0, told: bool = True) -> None:
        """End it, at once; whoever asked for notifications gets SystemExited."""
        with self.lock:
            if self.state == "Stopped":
                return
            self.state, self.exit_type = "Stopped", exit_type
            self.machine.stop(flushed=exit_type == "GracefulExit")
            for stream in self._streams:
                with contextlib.suppress(OSError):
                    stream.shutdown(socket.SHUT_RDWR)
                stream.close()
            os.close(self._console_write)
            if not self.console_opened:
                os.close(self.console_read)
        if told:
            self._library.notify(self, 1, {"Status": status, "ExitType": exit_type})

    def crash(self, log: str) -> None:
        """End it by a kernel's panic: two crash notifications, then the exit."""
        report = {"SystemId": self.id, "CrashParameters": [1, 2, 3, 4, 5], "CrashLog": log}
        self._library.notify(self, 2, report)
        self._library.notify(self, 3, report)
        self.stop("UnexpectedExit", status=0x80370106 - (1 << 32))

    def properties(self) -> dict[str, Any]:
        """What HcsGetComputeSystemProperties answers."""
        with self.lock:
            found: dict[str, Any] = {
                "Id": self.id,
                "SystemType": "VirtualMachine",
                "Owner": self.owner,
                "RuntimeId": self.runtime_id.upper(),
                "State": self.state,
            }
            if self.state == "Stopped":
                found |= {"Stopped": True, "ExitType": self.exit_type}
            return found

    def say(self, text: str) -> None:
        """Write to the serial console."""
        with contextlib.suppress(OSError):
            os.write(self._console_write, text.encode() + b"\r\n")

    def _dial(self, port: int) -> socket.socket:
        with self.lock:
            if self.state != "Running":
                raise ConnectionRefusedError(errno.ECONNREFUSED, "the machine has ended")
            connected = self._library.sockets.dial(self.runtime_id, port)
            self._streams = [each for each in self._streams if each.fileno() >= 0]
            self._streams.append(connected)
            return connected

    def _run_guest(self) -> None:
        """Boot: the agent redials its bridge for ever, as VsockTransport does."""
        self.say("lcowlab: a stand-in's guest")
        if not self._library.boots:
            return
        agent = Agent(self.machine.os, Log(self.say))
        while self.state == "Running":
            try:
                bridge = self._dial(_BRIDGE)
            except OSError:
                time.sleep(_REDIAL_S)
                continue
            with bridge:
                agent.serve(SocketStream(bridge))

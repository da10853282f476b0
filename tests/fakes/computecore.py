"""A library that stands in for computecore.dll: C functions that behave as documented.

Real ctypes calls arrive here: strings, out parameters and callbacks cross as they would on Windows.
Systems go through HCS' states; what a caller must not do (a closed handle, a string never freed, an
operation used twice, a handle closed under a call) is counted in `mistakes`. The machine behind a
system is the model's: its guest is the real agent, which dials Hyper-V sockets.
Source: MicrosoftDocs `virtualization/api/hcs/Reference`, AsyncModel.
"""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import ctypes
import errno
import io
import itertools
import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from harness.errors import ComputeServiceError
from harness.model.disks import DiskStore
from tests.fakes.hcsoperations import E_HANDLE, S_OK, OperationTable, Out
from tests.fakes.hcssystem import (
    CONTROLLERS,
    E_NOTIMPL,
    INVALID_STATE,
    HyperVSockets,
    RefusedError,
    StandInSystem,
)

E_ACCESSDENIED: Final = 0x80070005
E_NOT_FOUND: Final = 0x80070490
FILE_NOT_FOUND: Final = 0x80070002
INVALID_JSON: Final = 0x8037010D
SYSTEM_NOT_FOUND: Final = 0x8037010E
ALREADY_EXISTS: Final = 0x8037010F
ALREADY_STOPPED: Final = 0x80370110
CALLBACK_ALREADY_SET: Final = 0x80370119

_CAPITAL: Final = re.compile(r"(?<!^)([A-Z])")
_SLOT: Final = re.compile(r"VirtualMachine/Devices/Scsi/([^/]+)/Attachments/(\d+)")

_P = ctypes.c_void_p
_W = ctypes.c_wchar_p
_OUT = ctypes.POINTER(ctypes.c_void_p)
_D = ctypes.c_uint32
_HR = ctypes.c_int32
# By hand from the documentation, not from the code under test.
_SIGNATURES: Final[dict[str, tuple[Any, ...]]] = {
    "HcsCreateOperation": (_P, _P, _P),
    "HcsCloseOperation": (None, _P),
    "HcsCancelOperation": (_HR, _P),
    "HcsGetOperationResult": (_HR, _P, _OUT),
    "HcsWaitForOperationResult": (_HR, _P, _D, _OUT),
    "HcsCreateComputeSystem": (_HR, _W, _W, _P, _P, _OUT),
    "HcsOpenComputeSystem": (_HR, _W, _D, _OUT),
    "HcsCloseComputeSystem": (None, _P),
    "HcsStartComputeSystem": (_HR, _P, _P, _W),
    "HcsShutDownComputeSystem": (_HR, _P, _P, _W),
    "HcsTerminateComputeSystem": (_HR, _P, _P, _W),
    "HcsModifyComputeSystem": (_HR, _P, _P, _W, _P),
    "HcsGetComputeSystemProperties": (_HR, _P, _P, _W),
    "HcsEnumerateComputeSystems": (_HR, _W, _P),
    "HcsSetComputeSystemCallback": (_HR, _P, _D, _P, _P),
    "HcsGetServiceProperties": (_HR, _W, _OUT),
    "HcsGrantVmAccess": (_HR, _W, _W),
    "HcsRevokeVmAccess": (_HR, _W, _W),
}


class _Event(ctypes.Structure):
    _fields_ = (("Type", ctypes.c_uint32), ("EventData", ctypes.c_void_p), ("Operation", _P))


_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Event), _P)


@dataclass(eq=False)
class _Handle:
    system: StandInSystem | None
    callback: Any = None
    context: int = 0
    users: int = 0


class StandInHcs:
    """The library; its functions are its attributes, as `ctypes.WinDLL` has them."""

    def __init__(self, folder: Path) -> None:
        self.disks = DiskStore()
        self.sockets = HyperVSockets(folder)
        self.systems: dict[str, StandInSystem] = {}
        self.grants: set[tuple[str, str]] = set()
        self.calls: list[str] = []
        self.operations = OperationTable()
        self.mistakes = self.operations.mistakes
        self.boots = True
        self.on_start: Callable[[StandInSystem], object] = lambda _: None
        self.schema_versions = [(2, 1), (2, 5)]
        self._lock = threading.RLock()
        self._numbers = itertools.count(0x7FF000001000, 0x10)
        self._handles: dict[int, _Handle] = {}
        self._late: list[_Handle] = []
        self._functions = {
            name: ctypes.CFUNCTYPE(*signature)(self._guarded(name, signature[0] is not None))
            for name, signature in _SIGNATURES.items()
        }

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - a foreign function
        functions = self.__dict__["_functions"]
        if name not in functions:
            raise AttributeError(name)
        return functions[name]

    # -- what a test does with it ----------------------------------------------------------------

    def open_pipe(self, name: str) -> BinaryIO:
        """Open a machine's serial pipe. Raises FileNotFoundError while it does not run."""
        with self._lock:
            systems = [each for each in self.systems.values() if each.pipe == name]
        for system in systems:
            with system.lock:
                if system.state == "Running":
                    if system.console_opened:
                        raise OSError(errno.EBUSY, "all pipe instances are busy")
                    system.console_opened = True
                    return io.FileIO(system.console_read, "rb")
        raise FileNotFoundError(errno.ENOENT, "there is no such pipe", name)

    def disconnect_service(self) -> None:
        """End the service: its systems end with it, and tell only that it is gone."""
        for system in list(self.systems.values()):
            system.stop("ForcedExit", told=False)
            self.notify(system, 0x02000000, None)

    def late_notification(self) -> int:
        """Call back for every handle that was closed, and return how many those were."""
        for handle in self._late:
            self._call_back(handle, 1, {"Status": 0, "ExitType": "GracefulExit"})
        return len(self._late)

    def leaks(self) -> list[str]:
        """Return what is still held, and every mistake that was made."""
        with self._lock:
            return [
                *self.mistakes,
                *self.operations.leaks(),
                *(f"handle {number:#x}" for number in self._handles),
                *(f"system {name}" for name in self.systems),
                *(f"grant of {file} to {who}" for who, file in sorted(self.grants)),
            ]

    def check_access(self, system_id: str, file: str) -> None:
        """Raise RefusedError unless the machine's account may read a file that is there."""
        if not os.path.exists(file):
            raise RefusedError(FILE_NOT_FOUND, f"'{file}' is not there")
        if (system_id, file) not in self.grants:
            raise RefusedError(
                E_ACCESSDENIED, f"'{system_id}' does not have permission for '{file}'"
            )

    def notify(self, system: StandInSystem, kind: int, document: object) -> None:
        """Call back for every handle of a system, in a thread of the library."""
        with self._lock:
            handles = [each for each in self._handles.values() if each.system is system]
        for handle in handles:
            if handle.callback is not None:
                thread = threading.Thread(
                    target=self._call_back, args=(handle, kind, document), daemon=True
                )
                thread.start()
                thread.join(10)  # in order, as HCS calls back

    def _call_back(self, handle: _Handle, kind: int, document: object) -> None:
        text = None
        event = _Event(Type=kind)
        if document is not None:
            text = ctypes.create_unicode_buffer(json.dumps(document))
            event.EventData = ctypes.addressof(text)
        handle.callback(ctypes.byref(event), handle.context)
        if text is not None:  # valid only while the callback runs
            ctypes.memset(ctypes.addressof(text), 0, ctypes.sizeof(text))

    # -- handles ---------------------------------------------------------------------------------

    def _guarded(self, name: str, has_result: bool) -> Callable[..., int | None]:
        spelled = _CAPITAL.sub(r"_\1", name).lower()
        owner = self.operations if hasattr(self.operations, spelled) else self
        body: Callable[..., int | None] = getattr(owner, spelled)

        def call(*arguments: object) -> int | None:
            self.calls.append(name)
            try:
                result = body(*arguments)
            except RefusedError as refused:
                result = refused.hresult
            except Exception as error:  # noqa: BLE001 - no exception crosses C
                self.mistakes.append(f"{name}: {error!r}")
                result = E_NOTIMPL
            if not has_result or result is None:
                return None
            return result - (1 << 32) if result & (1 << 31) and result < 1 << 32 else result

        return call

    def _held(self, handle: int) -> _Handle:
        with self._lock:
            held = self._handles.get(handle)
        if held is None:
            self.mistakes.append("a call with a closed handle")
            raise RefusedError(E_HANDLE)
        return held

    def _system(self, handle: int) -> StandInSystem:
        system = self._held(handle).system
        if system is None:
            raise RefusedError(INVALID_STATE)
        return system

    # -- systems ---------------------------------------------------------------------------------

    def hcs_create_compute_system(
        self, name: str, text: str, operation: int, security: int, out: Out
    ) -> int:
        if security:
            self.mistakes.append("a security descriptor: it must be NULL")
        try:
            document = json.loads(text)
            machine = document["VirtualMachine"]
        except (ValueError, KeyError):
            return INVALID_JSON

        with self._lock:
            number = next(self._numbers)
            handle = self._handles[number] = _Handle(None)

        def create() -> None:
            with self._lock:
                if name in self.systems:
                    raise RefusedError(ALREADY_EXISTS, f"'{name}' is there already")
                if number not in self._handles:
                    return  # the last handle went before the system came
            direct = machine["Chipset"].get("LinuxKernelDirect", {})
            for file in (direct.get("KernelFilePath"), direct.get("InitRdPath")):
                if file:
                    self.check_access(name, file)
            system = StandInSystem(self, name, document)
            with self._lock:
                self.systems[name] = handle.system = system

        hresult = self.operations.begin("HcsCreateComputeSystem", operation, create)
        if hresult == S_OK:
            out[0] = number  # the handle is there before the system is
        else:
            del self._handles[number]
        return hresult

    def hcs_open_compute_system(self, name: str, access: int, out: Out) -> int:
        with self._lock:
            system = self.systems.get(name)
            if system is None:
                return SYSTEM_NOT_FOUND
            handle = next(self._numbers)
            self._handles[handle] = _Handle(system)
            out[0] = handle
        return S_OK if access == 0x10000000 else E_ACCESSDENIED

    def hcs_close_compute_system(self, number: int) -> None:
        with self._lock:
            handle = self._handles.pop(number, None)
            if handle is None:
                self.mistakes.append("HcsCloseComputeSystem of a closed handle")
                return
            if handle.users:
                self.mistakes.append("HcsCloseComputeSystem under a call with it")
            if handle.callback is not None:
                self._late.append(handle)
            system = handle.system
            last = not any(each.system is system for each in self._handles.values())
            if system is None:
                return
            known = self.systems.get(system.id) is system
        if last and known:
            if system.state != "Stopped" and system.document.get(
                "ShouldTerminateOnLastHandleClosed"
            ):
                system.stop("ForcedExit", told=False)
            if system.state == "Stopped":
                with self._lock:
                    del self.systems[system.id]

    def hcs_start_compute_system(self, handle: int, operation: int, none: str | None) -> int:
        self._no_options(none)
        system = self._system(handle)

        def start() -> None:
            system.start()
            self.on_start(system)

        return self.operations.begin("HcsStartComputeSystem", operation, start, self._held(handle))

    def hcs_shut_down_compute_system(self, handle: int, operation: int, none: str | None) -> int:
        self._no_options(none)

        def refuse() -> None:
            raise RefusedError(0x80370110, "there is no guest connection to ask through")

        return self.operations.begin(
            "HcsShutDownComputeSystem", operation, refuse, self._held(handle)
        )

    def hcs_terminate_compute_system(self, handle: int, operation: int, none: str | None) -> int:
        self._no_options(none)
        system = self._system(handle)

        def terminate() -> None:
            if system.state == "Stopped":
                raise RefusedError(ALREADY_STOPPED)
            # What never ran ends without a word.
            system.stop("ForcedExit", told=system.state == "Running")

        return self.operations.begin(
            "HcsTerminateComputeSystem", operation, terminate, self._held(handle)
        )

    def hcs_modify_compute_system(
        self, handle: int, operation: int, text: str, identity: int
    ) -> int:
        system = self._system(handle)
        request = json.loads(text)

        def modify() -> None:
            if system.state == "Stopped":
                raise RefusedError(ALREADY_STOPPED)
            match = _SLOT.fullmatch(request["ResourcePath"])
            if match is None:
                raise RefusedError(E_NOTIMPL, f"nobody knows {request['ResourcePath']}")
            slot = CONTROLLERS.index(match[1]), int(match[2])
            if request["RequestType"] == "Add":
                system.attach(*slot, request["Settings"])
            else:
                try:
                    system.machine.detach(*slot)
                except ComputeServiceError as error:
                    raise RefusedError(E_NOT_FOUND, str(error)) from error

        return self.operations.begin(
            "HcsModifyComputeSystem", operation, modify, self._held(handle)
        )

    def hcs_get_compute_system_properties(self, handle: int, operation: int, text: str) -> int:
        system = self._system(handle)
        assert json.loads(text) == {"PropertyTypes": []}
        return self.operations.begin(
            "HcsGetComputeSystemProperties", operation, system.properties, self._held(handle)
        )

    def hcs_enumerate_compute_systems(self, text: str | None, operation: int) -> int:
        query = json.loads(text or "{}")

        def enumerate_() -> object:
            with self._lock:
                systems = list(self.systems.values())
            listed = [each.properties() for each in systems]
            for field_name, key in (("Ids", "Id"), ("Owners", "Owner"), ("Types", "SystemType")):
                if field_name in query:
                    listed = [each for each in listed if each[key] in query[field_name]]
            return listed

        return self.operations.begin("HcsEnumerateComputeSystems", operation, enumerate_)

    def hcs_set_compute_system_callback(
        self, number: int, options: int, context: int, callback: int
    ) -> int:
        handle = self._held(number)
        if handle.callback is not None:
            return CALLBACK_ALREADY_SET
        handle.context = context
        handle.callback = _CALLBACK(callback)
        return S_OK if options == 0 else E_NOTIMPL

    def hcs_get_service_properties(self, text: str, out: Out) -> int:
        assert json.loads(text) == {"PropertyTypes": ["Basic"]}
        versions = [{"Major": major, "Minor": minor} for major, minor in self.schema_versions]
        out[0] = self.operations.string(
            json.dumps({"Properties": [{"SupportedSchemaVersions": versions}]})
        )
        return S_OK

    def hcs_grant_vm_access(self, who: str, file: str) -> int:
        self._meet_at_once("HcsGrantVmAccess")
        if not os.path.exists(file):
            return FILE_NOT_FOUND
        self.grants.add((who, file))
        return S_OK

    def hcs_revoke_vm_access(self, who: str, file: str) -> int:
        self._meet_at_once("HcsRevokeVmAccess")
        self.grants.discard((who, file))
        return S_OK if os.path.exists(file) else FILE_NOT_FOUND

    def _meet_at_once(self, function: str) -> None:
        if (refusal := self.operations.trouble_of(function).refusal) is not None:
            raise refusal

    def _no_options(self, none: str | None) -> None:
        if none is not None:
            self.mistakes.append(f"options {none!r}: they must be NULL")

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
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from harness.errors import ComputeServiceError
from harness.model.disks import DiskStore
from tests.fakes.hcssystem import (
    CONTROLLERS,
    E_NOTIMPL,
    INVALID_STATE,
    HyperVSockets,
    RefusedError,
    StandInSystem,
)

S_OK: Final = 0
E_HANDLE: Final = 0x80070006
E_ACCESSDENIED: Final = 0x80070005
E_NOT_FOUND: Final = 0x80070490
FILE_NOT_FOUND: Final = 0x80070002
INVALID_JSON: Final = 0x8037010D
SYSTEM_NOT_FOUND: Final = 0x8037010E
ALREADY_EXISTS: Final = 0x8037010F
ALREADY_STOPPED: Final = 0x80370110
NOT_STARTED: Final = 0x80370115
ALREADY_STARTED: Final = 0x80370116
PENDING: Final = 0x80370117
TIMEOUT: Final = 0x80370118
CALLBACK_ALREADY_SET: Final = 0x80370119

_CAPITAL: Final = re.compile(r"(?<!^)([A-Z])")
_SLOT: Final = re.compile(r"VirtualMachine/Devices/Scsi/([^/]+)/Attachments/(\d+)")

Out = ctypes.Array[Any]  # a pointer to one address, as far as types go
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


@dataclass(frozen=True, slots=True)
class Trouble:
    """What the next call of a function meets: `at_once` or in its operation; `wait` holds it up."""

    refusal: RefusedError | None = None
    at_once: bool = False
    wait: threading.Event | None = None
    carried_out: bool = False
    """With a refusal: it is done all the same, and the answer is the refusal."""


@dataclass(eq=False)
class _Operation:
    started: bool = False
    done: threading.Event = field(default_factory=threading.Event)
    hresult: int = S_OK
    document: str = ""
    waiters: int = 0


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
        self.mistakes: list[str] = []
        self.boots = True
        self.on_start: Callable[[StandInSystem], object] = lambda _: None
        self._working: list[threading.Thread] = []
        self.schema_versions = [(2, 1), (2, 5)]
        self._troubles: defaultdict[str, deque[Trouble]] = defaultdict(deque)
        self._lock = threading.RLock()
        self._numbers = itertools.count(0x7FF000001000, 0x10)
        self._operations: dict[int, _Operation] = {}
        self._handles: dict[int, _Handle] = {}
        self._strings: dict[int, Any] = {}
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

    def meet(self, function: str, trouble: Trouble) -> None:
        """Have the next call of a function meet a trouble; several wait in line."""
        self._troubles[function].append(trouble)

    def local_free(self, address: int) -> None:
        """LocalFree."""
        with self._lock:
            if self._strings.pop(address, None) is None:
                self.mistakes.append(f"LocalFree of {address:#x}, which is no string of ours")

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

    def quiet(self) -> None:
        """Return when every operation that was begun has come to its end."""
        with self._lock:
            working = list(self._working)
        for each in working:
            each.join(30)

    def leaks(self) -> list[str]:
        """Return what is still held, and every mistake that was made."""
        with self._lock:
            return [
                *self.mistakes,
                *(f"operation {number:#x}" for number in self._operations),
                *(f"handle {number:#x}" for number in self._handles),
                *(f"string {each.value!r}" for each in self._strings.values()),
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

    # -- operations ------------------------------------------------------------------------------

    def _guarded(self, name: str, has_result: bool) -> Callable[..., int | None]:
        body: Callable[..., int | None] = getattr(self, "_" + _CAPITAL.sub(r"_\1", name).lower())

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

    def _hcs_create_operation(self, context: int, callback: int) -> int:
        if callback:
            self.mistakes.append("an operation callback: nobody here has one")
        with self._lock:
            number = next(self._numbers)
            self._operations[number] = _Operation()
            return number

    def _hcs_close_operation(self, number: int) -> None:
        with self._lock:
            operation = self._operations.pop(number, None)
            if operation is None:
                self.mistakes.append("HcsCloseOperation of a closed operation")
            elif operation.waiters:
                self.mistakes.append("HcsCloseOperation under somebody who waits for it")

    def _hcs_cancel_operation(self, number: int) -> int:
        self._operation(number)
        return E_NOTIMPL

    def _hcs_get_operation_result(self, number: int, out: Out) -> int:
        return self._result(self._operation(number), out)

    def _hcs_wait_for_operation_result(self, number: int, wait_ms: int, out: Out) -> int:
        operation = self._operation(number)
        if operation.started:
            with self._lock:
                operation.waiters += 1
            finished = operation.done.wait(wait_ms / 1000)
            with self._lock:
                operation.waiters -= 1
            if not finished:
                return TIMEOUT
        return self._result(operation, out)

    def _result(self, operation: _Operation, out: Out) -> int:
        if not operation.started:
            return NOT_STARTED
        if not operation.done.is_set():
            return PENDING
        if operation.document:
            out[0] = self._string(operation.document)
        return operation.hresult

    def _string(self, text: str) -> int:
        buffer = ctypes.create_unicode_buffer(text)
        with self._lock:
            self._strings[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def _operation(self, number: int) -> _Operation:
        with self._lock:
            operation = self._operations.get(number)
        if operation is None:
            self.mistakes.append("a call with a closed operation")
            raise RefusedError(E_HANDLE)
        return operation

    def _begin(
        self, function: str, number: int, work: Callable[[], object], handle: int | None = None
    ) -> int:
        """Start an operation: `work` runs in a thread, and what it returns is the document."""
        operation = self._operation(number)
        if operation.started:
            self.mistakes.append(f"{function} with an operation that was used before")
            return ALREADY_STARTED
        trouble = self._troubles[function].popleft() if self._troubles[function] else Trouble()
        if trouble.refusal and trouble.at_once:
            return trouble.refusal.hresult
        held = self._held(handle) if handle is not None else None
        operation.started = True

        def carry_out() -> None:
            try:
                if trouble.wait is not None:
                    trouble.wait.wait(30)
                if trouble.refusal and not trouble.carried_out:
                    raise trouble.refusal
                answer = work()
                if trouble.refusal:
                    raise trouble.refusal
                operation.document = json.dumps(answer) if answer is not None else ""
            except RefusedError as refused:
                operation.hresult, operation.document = refused.hresult, refused.document
            except Exception as error:  # noqa: BLE001 - no exception crosses C
                self.mistakes.append(f"{function}: {error!r}")
                operation.hresult = E_NOTIMPL
            finally:
                if held is not None:
                    with self._lock:
                        held.users -= 1
                operation.done.set()

        if held is not None:
            with self._lock:
                held.users += 1
        working = threading.Thread(target=carry_out, name=function, daemon=True)
        with self._lock:
            self._working = [each for each in self._working if each.is_alive()]
            self._working.append(working)
        working.start()
        return S_OK

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

    def _hcs_create_compute_system(
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

        hresult = self._begin("HcsCreateComputeSystem", operation, create)
        if hresult == S_OK:
            out[0] = number  # the handle is there before the system is
        else:
            del self._handles[number]
        return hresult

    def _hcs_open_compute_system(self, name: str, access: int, out: Out) -> int:
        with self._lock:
            system = self.systems.get(name)
            if system is None:
                return SYSTEM_NOT_FOUND
            handle = next(self._numbers)
            self._handles[handle] = _Handle(system)
            out[0] = handle
        return S_OK if access == 0x10000000 else E_ACCESSDENIED

    def _hcs_close_compute_system(self, number: int) -> None:
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

    def _hcs_start_compute_system(self, handle: int, operation: int, none: str | None) -> int:
        self._no_options(none)
        system = self._system(handle)

        def start() -> None:
            system.start()
            self.on_start(system)

        return self._begin("HcsStartComputeSystem", operation, start, handle)

    def _hcs_shut_down_compute_system(self, handle: int, operation: int, none: str | None) -> int:
        self._no_options(none)

        def refuse() -> None:
            raise RefusedError(0x80370110, "there is no guest connection to ask through")

        return self._begin("HcsShutDownComputeSystem", operation, refuse, handle)

    def _hcs_terminate_compute_system(self, handle: int, operation: int, none: str | None) -> int:
        self._no_options(none)
        system = self._system(handle)

        def terminate() -> None:
            if system.state == "Stopped":
                raise RefusedError(ALREADY_STOPPED)
            # What never ran ends without a word.
            system.stop("ForcedExit", told=system.state == "Running")

        return self._begin("HcsTerminateComputeSystem", operation, terminate, handle)

    def _hcs_modify_compute_system(
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

        return self._begin("HcsModifyComputeSystem", operation, modify, handle)

    def _hcs_get_compute_system_properties(self, handle: int, operation: int, text: str) -> int:
        system = self._system(handle)
        assert json.loads(text) == {"PropertyTypes": []}
        return self._begin("HcsGetComputeSystemProperties", operation, system.properties, handle)

    def _hcs_enumerate_compute_systems(self, text: str | None, operation: int) -> int:
        query = json.loads(text or "{}")

        def enumerate_() -> object:
            with self._lock:
                systems = list(self.systems.values())
            listed = [each.properties() for each in systems]
            for field_name, key in (("Ids", "Id"), ("Owners", "Owner"), ("Types", "SystemType")):
                if field_name in query:
                    listed = [each for each in listed if each[key] in query[field_name]]
            return listed

        return self._begin("HcsEnumerateComputeSystems", operation, enumerate_)

    def _hcs_set_compute_system_callback(
        self, number: int, options: int, context: int, callback: int
    ) -> int:
        handle = self._held(number)
        if handle.callback is not None:
            return CALLBACK_ALREADY_SET
        handle.context = context
        handle.callback = _CALLBACK(callback)
        return S_OK if options == 0 else E_NOTIMPL

    def _hcs_get_service_properties(self, text: str, out: Out) -> int:
        assert json.loads(text) == {"PropertyTypes": ["Basic"]}
        versions = [{"Major": major, "Minor": minor} for major, minor in self.schema_versions]
        out[0] = self._string(json.dumps({"Properties": [{"SupportedSchemaVersions": versions}]}))
        return S_OK

    def _hcs_grant_vm_access(self, who: str, file: str) -> int:
        self._meet_at_once("HcsGrantVmAccess")
        if not os.path.exists(file):
            return FILE_NOT_FOUND
        self.grants.add((who, file))
        return S_OK

    def _hcs_revoke_vm_access(self, who: str, file: str) -> int:
        self._meet_at_once("HcsRevokeVmAccess")
        self.grants.discard((who, file))
        return S_OK if os.path.exists(file) else FILE_NOT_FOUND

    def _meet_at_once(self, function: str) -> None:
        if self._troubles[function]:
            refusal = self._troubles[function].popleft().refusal
            assert refusal is not None
            raise refusal

    def _no_options(self, none: str | None) -> None:
        if none is not None:
            self.mistakes.append(f"options {none!r}: they must be NULL")

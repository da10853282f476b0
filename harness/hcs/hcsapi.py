"""HCS as Python calls: each has an operation of its own, waits for it, and raises what it says.

::

    create operation ─► call ─┬─ refused at once ─► its document ─┐
                              └─ started ─► wait ─┬─ failed ──────┴─► typed error
                                                  ├─ deadline ─► ComputeTimeoutError
                                                  └─ done ─► document
    in every case: the operation is closed, and no string of the library's stays

The HRESULT of a call says only that it was started. No thread is ever left inside the library while
a handle that it uses is closed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from harness.errors import ComputeServiceError, ComputeTimeoutError
from harness.hcs.computecore import GENERIC_ALL, ComputeCore
from harness.hcs.hresult import OPERATION_TIMEOUT, failed, hcs_error, parse_document
from harness.hcs.notifications import Notifications, Sink

# An interrupt is noticed between two waits: one inside of the library would hide it.
_LONGEST_WAIT_S: Final = 0.5


class HcsApi:
    """The functions of HCS; systems are handles, `timeout_s` bounds each call."""

    def __init__(self, core: ComputeCore) -> None:
        self._core = core
        self._notifications = Notifications()

    def create(self, system_id: str, document: Mapping[str, Any], *, timeout_s: float) -> int:
        """Return the handle of a new system; on failure nothing of it is left, not even a handle.

        After ComputeTimeoutError as well: what may have come about is terminated.
        """
        handle = 0

        def begin(operation: int) -> int:
            nonlocal handle
            hresult, handle = self._core.call_for_handle(
                "HcsCreateComputeSystem", system_id, json.dumps(document), operation, None
            )
            return hresult

        try:
            self._carry_out("HcsCreateComputeSystem", begin, timeout_s)
        except BaseException as error:
            if handle:
                refused = isinstance(error, ComputeServiceError)
                if not refused or isinstance(error, ComputeTimeoutError):
                    self._end_quietly(handle, timeout_s)
                self.close(handle)
            raise
        return handle

    def open(self, system_id: str) -> int:
        """Return a handle of a system that somebody else made. Raises SystemNotFoundError."""
        hresult, handle = self._core.call_for_handle("HcsOpenComputeSystem", system_id, GENERIC_ALL)
        if failed(hresult):
            raise hcs_error("HcsOpenComputeSystem", hresult, "")
        return handle

    def start(self, system: int, *, timeout_s: float) -> None:
        """Power a system on."""
        self._on_system("HcsStartComputeSystem", system, None, timeout_s=timeout_s)

    def shut_down(self, system: int, *, timeout_s: float) -> None:
        """Ask a system's guest to shut down; it needs HCS's own guest connection."""
        self._on_system("HcsShutDownComputeSystem", system, None, timeout_s=timeout_s)

    def terminate(self, system: int, *, timeout_s: float) -> None:
        """Power a system off."""
        self._on_system("HcsTerminateComputeSystem", system, None, timeout_s=timeout_s)

    def modify(self, system: int, request: Mapping[str, Any], *, timeout_s: float) -> None:
        """Carry out a ModifySettingRequest."""
        text = json.dumps(request)
        self._on_system("HcsModifyComputeSystem", system, text, None, timeout_s=timeout_s)

    def properties(self, system: int, *, timeout_s: float) -> Mapping[str, Any]:
        """Return what HCS always knows: Id, SystemType, Owner, RuntimeId, State, Stopped, …"""
        text = json.dumps({"PropertyTypes": []})
        return parse_document(
            self._on_system("HcsGetComputeSystemProperties", system, text, timeout_s=timeout_s)
        )

    def enumerate(
        self, query: Mapping[str, Sequence[str]], *, timeout_s: float
    ) -> tuple[Mapping[str, Any], ...]:
        """Return the properties of the systems that a SystemQuery (Ids, Owners, Types) finds."""
        text = json.dumps(query)
        answer = self._carry_out(
            "HcsEnumerateComputeSystems",
            lambda operation: self._core.call("HcsEnumerateComputeSystems", text, operation),
            timeout_s,
        )
        found = json.loads(answer) if answer else []
        return tuple(each for each in found or () if isinstance(each, dict))

    def service_properties(self) -> Mapping[str, Any]:
        """Return what the service says of itself: the schema versions that it takes."""
        text = json.dumps({"PropertyTypes": ["Basic"]})
        hresult, document = self._core.call_for_text("HcsGetServiceProperties", text)
        if failed(hresult):
            raise hcs_error("HcsGetServiceProperties", hresult, document)
        return parse_document(document)

    def subscribe(self, system: int, sink: Sink) -> int:
        """Have a system's notifications handed to `sink`; return a number for `unsubscribe`."""
        number = self._notifications.subscribe(sink)
        hresult = self._core.call(
            "HcsSetComputeSystemCallback", system, 0, number, self._notifications.callback
        )
        if failed(hresult):
            self._notifications.unsubscribe(number)
            raise hcs_error("HcsSetComputeSystemCallback", hresult, "")
        return number

    def unsubscribe(self, number: int) -> None:
        """Drop what still comes for a system; may be repeated."""
        self._notifications.unsubscribe(number)

    def close(self, system: int) -> None:
        """Give a handle back; nobody may be inside of a call with it."""
        self._core.close_system(system)

    def grant_access(self, system_id: str, file: str) -> None:
        """Let the account of a virtual machine read and write a file (one entry in its DACL)."""
        self._access("HcsGrantVmAccess", system_id, file)

    def revoke_access(self, system_id: str, file: str) -> None:
        """Take that entry away."""
        self._access("HcsRevokeVmAccess", system_id, file)

    def _access(self, name: str, system_id: str, file: str) -> None:
        hresult = self._core.call(name, system_id, file)
        if failed(hresult):
            raise hcs_error(f"{name} {file}", hresult, "")

    def _end_quietly(self, system: int, timeout_s: float) -> None:
        try:
            self.terminate(system, timeout_s=timeout_s)
        except ComputeServiceError:
            return  # the handle's close ends it: ShouldTerminateOnLastHandleClosed

    def _on_system(self, name: str, system: int, *arguments: object, timeout_s: float) -> str:
        return self._carry_out(
            name, lambda operation: self._core.call(name, system, operation, *arguments), timeout_s
        )

    def _carry_out(self, call: str, begin: Callable[[int], int], timeout_s: float) -> str:
        """Return the result document of a call. Raises ComputeServiceError or a child."""
        operation = self._core.create_operation()
        try:
            hresult = begin(operation)
            if failed(hresult):
                # Its document may say why, or that it was never started.
                _, document = self._core.call_for_text("HcsGetOperationResult", operation)
                raise hcs_error(call, hresult, document)
            return self._await(call, operation, timeout_s)
        finally:
            self._core.close_operation(operation)

    def _await(self, call: str, operation: int, timeout_s: float) -> str:
        deadline = time.monotonic() + timeout_s
        while True:
            left = max(0.0, deadline - time.monotonic())
            wait_ms = round(min(left, _LONGEST_WAIT_S) * 1000)
            hresult, document = self._core.call_for_text(
                "HcsWaitForOperationResult", operation, wait_ms
            )
            if hresult != OPERATION_TIMEOUT:
                break
            if time.monotonic() >= deadline:
                self._core.call("HcsCancelOperation", operation)  # E_NOTIMPL, until it is not
                raise ComputeTimeoutError(
                    f"{call}: no answer of HCS within {timeout_s:g} s; what became of it is unknown"
                )
        if failed(hresult):
            raise hcs_error(call, hresult, document)
        return document

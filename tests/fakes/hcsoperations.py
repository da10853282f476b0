"""The operations and strings of the library that stands in for computecore.dll.

An operation is used once, waited for, and closed by nobody while somebody waits; a string belongs
to the caller, who frees it once. What goes against that is counted in `mistakes`.
Source: MicrosoftDocs `virtualization/api/hcs/AsyncModel`.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from tests.fakes.hcssystem import E_NOTIMPL, RefusedError

S_OK: Final = 0
E_HANDLE: Final = 0x80070006
NOT_STARTED: Final = 0x80370115
ALREADY_STARTED: Final = 0x80370116
PENDING: Final = 0x80370117
TIMEOUT: Final = 0x80370118

Out = ctypes.Array[Any]  # a pointer to one address, as far as types go


class Used(Protocol):
    """A handle that counts who is inside of a call with it."""

    users: int


@dataclass(frozen=True, slots=True)
class Trouble:
    """What the next call of a function meets: `at_once` or in its operation; `wait` holds it up."""

    refusal: RefusedError | None = None
    at_once: bool = False
    wait: threading.Event | None = None
    carried_out: bool = False
    """With a refusal: it is done all the same, and the answer is the refusal."""


@dataclass(eq=False)
class Operation:
    started: bool = False
    done: threading.Event = field(default_factory=threading.Event)
    hresult: int = S_OK
    document: str = ""
    waiters: int = 0


class OperationTable:
    """Every operation and string that was given out."""

    def __init__(self) -> None:
        self.mistakes: list[str] = []
        self._lock = threading.RLock()
        self._numbers = itertools.count(0x7FE000001000, 0x10)
        self._operations: dict[int, Operation] = {}
        self._strings: dict[int, Any] = {}
        self._troubles: defaultdict[str, deque[Trouble]] = defaultdict(deque)
        self._working: list[threading.Thread] = []

    def meet(self, function: str, trouble: Trouble) -> None:
        """Have the next call of a function meet a trouble; several wait in line."""
        self._troubles[function].append(trouble)

    def trouble_of(self, function: str) -> Trouble:
        """Return what the call of a function meets, once."""
        waiting = self._troubles[function]
        return waiting.popleft() if waiting else Trouble()

    def local_free(self, address: int) -> None:
        """LocalFree."""
        with self._lock:
            if self._strings.pop(address, None) is None:
                self.mistakes.append(f"LocalFree of {address:#x}, which is no string of ours")

    def quiet(self) -> None:
        """Return when every operation that was begun has come to its end."""
        with self._lock:
            working = list(self._working)
        for each in working:
            each.join(30)

    def leaks(self) -> list[str]:
        """Return what was not given back."""
        with self._lock:
            return [
                *(f"operation {number:#x}" for number in self._operations),
                *(f"string {each.value!r}" for each in self._strings.values()),
            ]

    def hcs_create_operation(self, context: int, callback: int) -> int:
        if callback:
            self.mistakes.append("an operation callback: nobody here has one")
        with self._lock:
            number = next(self._numbers)
            self._operations[number] = Operation()
            return number

    def hcs_close_operation(self, number: int) -> None:
        with self._lock:
            operation = self._operations.pop(number, None)
            if operation is None:
                self.mistakes.append("HcsCloseOperation of a closed operation")
            elif operation.waiters:
                self.mistakes.append("HcsCloseOperation under somebody who waits for it")

    def hcs_cancel_operation(self, number: int) -> int:
        self._operation(number)
        return E_NOTIMPL

    def hcs_get_operation_result(self, number: int, out: Out) -> int:
        return self._result(self._operation(number), out)

    def hcs_wait_for_operation_result(self, number: int, wait_ms: int, out: Out) -> int:
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

    def _result(self, operation: Operation, out: Out) -> int:
        if not operation.started:
            return NOT_STARTED
        if not operation.done.is_set():
            return PENDING
        if operation.document:
            out[0] = self.string(operation.document)
        return operation.hresult

    def string(self, text: str) -> int:
        """Return the address of a string that the caller must free."""
        buffer = ctypes.create_unicode_buffer(text)
        with self._lock:
            self._strings[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def _operation(self, number: int) -> Operation:
        with self._lock:
            operation = self._operations.get(number)
        if operation is None:
            self.mistakes.append("a call with a closed operation")
            raise RefusedError(E_HANDLE)
        return operation

    def begin(
        self,
        function: str,
        number: int,
        work: Callable[[], object],
        handle: Used | None = None,
    ) -> int:
        """Start an operation: `work` runs in a thread, and what it returns is the document.

        A `handle` is in use until it has run.
        """
        operation = self._operation(number)
        if operation.started:
            self.mistakes.append(f"{function} with an operation that was used before")
            return ALREADY_STARTED
        trouble = self.trouble_of(function)
        if trouble.refusal and trouble.at_once:
            return trouble.refusal.hresult
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
                if handle is not None:
                    with self._lock:
                        handle.users -= 1
                operation.done.set()

        if handle is not None:
            with self._lock:
                handle.users += 1
        working = threading.Thread(target=carry_out, name=function, daemon=True)
        with self._lock:
            self._working = [each for each in self._working if each.is_alive()]
            self._working.append(working)
        working.start()
        return S_OK

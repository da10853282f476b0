r"""The named pipes of a Windows computer, played by socketpairs behind kernel32's functions.

As Microsoft documents them:

- the first instance with FILE_FLAG_FIRST_PIPE_INSTANCE where the name is taken, or an account
  that the first instance's access list does not name: ERROR_ACCESS_DENIED;
- more instances than the first one allowed, or a client that finds none listening:
  ERROR_PIPE_BUSY; a name without an instance: ERROR_FILE_NOT_FOUND;
- a client that came before ConnectNamedPipe: ERROR_PIPE_CONNECTED, one that has left as well:
  ERROR_NO_DATA;
- a transfer that cannot end at once: ERROR_IO_PENDING, and GetOverlappedResult waits for it;
- a client that has closed: ERROR_BROKEN_PIPE for who reads, ERROR_NO_DATA for who writes;
- CancelIoEx: what is under way ends in ERROR_OPERATION_ABORTED, what starts later does not.

What a program must never do (an unknown handle, two transfers on one event, a handle closed under
a transfer) is kept in `misuse`.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import select
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from snapshotter.platform import winerror
from snapshotter.platform.kernel32 import INVALID_HANDLE
from snapshotter.platform.pipecalls import (
    FILE_FLAG_FIRST_PIPE_INSTANCE,
    FILE_FLAG_OVERLAPPED,
    PIPE_ACCESS_DUPLEX,
    PIPE_REJECT_REMOTE_CLIENTS,
    Overlapped,
    PipeCalls,
    SecurityAttributes,
)
from snapshotter.platform.winerror import windows_error
from tests.fakes.foreign import ForeignLibrary

INVALID_HANDLE_ERROR: Final = 6
_PENDING = -1


@dataclass(eq=False)
class _Instance:
    """One instance of a pipe: `end` is the server's, once a client has come."""

    name: str
    sddl: str
    most: int
    end: socket.socket | None = None
    connecting: _Transfer | None = None


@dataclass(eq=False)
class _Transfer:
    """An overlapped transfer: `step` does what can be done now, and says whether that was all."""

    handle: int
    event: int
    step: Callable[[], int]
    direction: int
    wake: int = field(default_factory=lambda: os.eventfd(0, os.EFD_CLOEXEC))
    count: int = 0
    cancelled: bool = False


class FakePipes:
    """One computer. `account` is the one that calls; clients come by `dial`."""

    def __init__(self, *, account: str = "BA", always_pending: bool = False) -> None:
        self.account = account
        self.always_pending = always_pending
        self.failing: dict[str, list[int]] = {}
        self.misuse: list[str] = []
        self.created: list[str] = []
        """The security descriptor of each instance that was ever made."""
        self._lock = threading.RLock()
        self._numbers = itertools.count(1000)
        self._instances: dict[int, _Instance] = {}
        self._events: dict[int, bool] = {}
        self._descriptors: dict[int, str] = {}
        self._transfers: dict[int, _Transfer] = {}
        self._error = threading.local()

    def calls(self) -> PipeCalls:
        """The calls of a program on this computer."""
        library = ForeignLibrary(self)
        return PipeCalls(library, library, lambda: int(self._error.code))

    @property
    def left(self) -> list[str]:
        """What the program holds: pipe instances, events, security descriptors."""
        with self._lock:
            return [
                *(instance.name for instance in self._instances.values()),
                *("event" for _ in self._events),
                *self._descriptors.values(),
            ]

    def instances(self, path: str) -> int:
        """How many instances a pipe has."""
        with self._lock:
            return len(self._named(path))

    def clients(self, path: str) -> int:
        """How many clients a pipe has, served or not."""
        with self._lock:
            return sum(each.end is not None for each in self._named(path))

    def dial(self, path: str, *, through: socket.socket | None = None) -> socket.socket:
        """CreateFile of a client: its end of the pipe. Raises OSError as Windows does.

        With `through`, that connection is the pipe, and whoever is at its other end the client.
        """
        with self._lock:
            named = self._named(path)
            if not named:
                raise windows_error(winerror.FILE_NOT_FOUND, path)
            free = [instance for instance in named if instance.end is None]
            if not free:
                raise windows_error(winerror.PIPE_BUSY, path)
            ours, theirs = (through, through) if through is not None else socket.socketpair()
            ours.setblocking(False)
            free[0].end = ours
            if free[0].connecting is not None:
                os.eventfd_write(free[0].connecting.wake, 1)
            return theirs

    # -- kernel32 and advapi32

    def ConvertStringSecurityDescriptorToSecurityDescriptorW(  # noqa: N802
        self, sddl: str, revision: int, found: ctypes.c_void_p, size: None
    ) -> int:
        assert (revision, size) == (1, None)
        with self._lock:
            if self._fails("ConvertStringSecurityDescriptorToSecurityDescriptorW"):
                return 0
            address = next(self._numbers)
            self._descriptors[address] = sddl
            found.value = address
            return 1

    def LocalFree(self, address: int) -> None:  # noqa: N802
        with self._lock:
            del self._descriptors[address]

    def CreateNamedPipeW(  # noqa: N802
        self,
        path: str,
        open_mode: int,
        pipe_mode: int,
        most: int,
        out_size: int,
        in_size: int,
        timeout: int,
        security: SecurityAttributes,
    ) -> int | None:
        assert open_mode & ~FILE_FLAG_FIRST_PIPE_INSTANCE == (
            PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED
        )
        assert pipe_mode == PIPE_REJECT_REMOTE_CLIENTS
        assert (security.nLength, security.bInheritHandle) == (ctypes.sizeof(security), 0)
        assert 1 <= most <= 255
        assert out_size == in_size > 0
        del timeout
        with self._lock:
            sddl = self._descriptors[security.lpSecurityDescriptor]
            named = self._named(path)
            first = bool(open_mode & FILE_FLAG_FIRST_PIPE_INSTANCE)
            if self._fails("CreateNamedPipeW"):
                return INVALID_HANDLE
            if named and (first or f";;;{self.account})" not in named[0].sddl):
                self._error.code = winerror.ACCESS_DENIED
                return INVALID_HANDLE
            if named and len(named) >= named[0].most:
                self._error.code = winerror.PIPE_BUSY
                return INVALID_HANDLE
            self.created.append(sddl)
            handle = next(self._numbers)
            self._instances[handle] = _Instance(path.lower(), sddl, most)
            return handle

    def CreateEventW(  # noqa: N802
        self, security: None, manual: int, initial: int, name: None
    ) -> int | None:
        assert (security, manual, initial, name) == (None, 1, 0, None)
        with self._lock:
            if self._fails("CreateEventW"):
                return None
            handle = next(self._numbers)
            self._events[handle] = False
            return handle

    def ConnectNamedPipe(self, handle: int, overlapped: Overlapped) -> int:  # noqa: N802
        with self._lock:
            instance = self._instance(handle)
            if instance is None or self._fails("ConnectNamedPipe"):
                return 0
            if instance.end is not None:
                gone = _has_closed(instance.end)
                self._error.code = winerror.NO_DATA if gone else winerror.PIPE_CONNECTED
                return 0

            def step() -> int:
                return _PENDING if instance.end is None else 0

            started = self._start(handle, overlapped, step, direction=0)
            instance.connecting = self._transfers.get(ctypes.addressof(overlapped))
            return started

    def ReadFile(  # noqa: N802
        self,
        handle: int,
        buffer: ctypes.Array[ctypes.c_char],
        length: int,
        count: None,
        overlapped: Overlapped,
    ) -> int:
        target = _view(buffer, length, count)
        with self._lock:
            end = self._connected(handle, "ReadFile")
            if end is None:
                return 0

            def step() -> int:
                try:
                    received = end.recv_into(target)
                except BlockingIOError:
                    return _PENDING
                except OSError:
                    return winerror.BROKEN_PIPE
                transfer.count = received
                return 0 if received else winerror.BROKEN_PIPE

            transfer = self._transfer(handle, overlapped, step, direction=select.POLLIN)
            return self._begin(transfer, overlapped)

    def WriteFile(  # noqa: N802
        self,
        handle: int,
        buffer: ctypes.Array[ctypes.c_char],
        length: int,
        count: None,
        overlapped: Overlapped,
    ) -> int:
        source = _view(buffer, length, count)
        with self._lock:
            end = self._connected(handle, "WriteFile")
            if end is None:
                return 0

            def step() -> int:
                while transfer.count < length:
                    try:
                        transfer.count += end.send(source[transfer.count :])
                    except BlockingIOError:
                        return _PENDING
                    except OSError:
                        return winerror.NO_DATA
                return 0

            transfer = self._transfer(handle, overlapped, step, direction=select.POLLOUT)
            return self._begin(transfer, overlapped)

    def GetOverlappedResult(  # noqa: N802
        self, handle: int, overlapped: Overlapped, count: ctypes.c_ulong, wait: int
    ) -> int:
        assert wait == 1
        with self._lock:
            transfer = self._transfers[ctypes.addressof(overlapped)]
            assert transfer.handle == handle
        code = self._wait(transfer)
        with self._lock:
            del self._transfers[ctypes.addressof(overlapped)]
            if transfer.event in self._events:
                self._events[transfer.event] = True
            os.close(transfer.wake)
            instance = self._instances.get(handle)
            if instance is not None and instance.connecting is transfer:
                instance.connecting = None
        count.value = transfer.count
        self._error.code = code
        return int(not code)

    def CancelIoEx(self, handle: int, overlapped: None) -> int:  # noqa: N802
        assert overlapped is None
        with self._lock:
            if self._instance(handle) is None:
                return 0
            found = [each for each in self._transfers.values() if each.handle == handle]
            for transfer in found:
                transfer.cancelled = True
                os.eventfd_write(transfer.wake, 1)
            self._error.code = winerror.NOT_FOUND
            return int(bool(found))

    def CloseHandle(self, handle: int) -> int:  # noqa: N802
        with self._lock:
            if self._events.pop(handle, None) is not None:
                return 1
            instance = self._instance(handle)
            if instance is None:
                return 0
            if any(each.handle == handle for each in self._transfers.values()):
                self.misuse.append("a handle is closed under a transfer")
            del self._instances[handle]
            if instance.end is not None:
                instance.end.close()
            return 1

    # -- inside

    def _named(self, path: str) -> list[_Instance]:
        return [each for each in self._instances.values() if each.name == path.lower()]

    def _instance(self, handle: int) -> _Instance | None:
        instance = self._instances.get(handle)
        if instance is None:
            self.misuse.append("a handle is used that is not open")
            self._error.code = INVALID_HANDLE_ERROR
        return instance

    def _connected(self, handle: int, call: str) -> socket.socket | None:
        """The server's end of a pipe; None where the handle is none or `call` is to fail."""
        instance = self._instance(handle)
        if instance is None or self._fails(call):
            return None
        assert instance.end is not None, "nobody has connected"
        return instance.end

    def _fails(self, name: str) -> bool:
        codes = self.failing.get(name, [])
        if codes:
            self._error.code = codes.pop(0)
            return True
        return False

    def _start(
        self, handle: int, overlapped: Overlapped, step: Callable[[], int], *, direction: int
    ) -> int:
        return self._begin(
            self._transfer(handle, overlapped, step, direction=direction), overlapped
        )

    def _transfer(
        self, handle: int, overlapped: Overlapped, step: Callable[[], int], *, direction: int
    ) -> _Transfer:
        event = int(overlapped.hEvent or 0)
        if event not in self._events:
            self.misuse.append("a transfer has no event")
        if any(each.event == event for each in self._transfers.values()):
            self.misuse.append("two transfers have one event")
        self._events[event] = False
        return _Transfer(handle, event, step, direction)

    def _begin(self, transfer: _Transfer, overlapped: Overlapped) -> int:
        code = _PENDING if self.always_pending else transfer.step()
        if code > 0:
            os.close(transfer.wake)
            self._error.code = code
            return 0
        if code == 0:
            transfer.step = lambda: 0
        self._transfers[ctypes.addressof(overlapped)] = transfer
        self._error.code = winerror.IO_PENDING
        return int(code == 0)

    def _wait(self, transfer: _Transfer) -> int:
        while True:
            with self._lock:
                code = transfer.step()
                if code != _PENDING:
                    return code
                if transfer.cancelled:
                    return winerror.OPERATION_ABORTED
                instance = self._instances[transfer.handle]
                watched = select.poll()
                watched.register(transfer.wake, select.POLLIN)
                if instance.end is not None:
                    watched.register(instance.end, transfer.direction)
            watched.poll()


def _view(buffer: ctypes.Array[ctypes.c_char], length: int, count: None) -> memoryview:
    """The bytes of an overlapped transfer, whose call gives no place for their count."""
    assert count is None
    view = memoryview(buffer).cast("B")
    assert len(view) == length
    return view


def _has_closed(end: socket.socket) -> bool:
    try:
        return not end.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True

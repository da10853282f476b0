"""The host's end of the GCS bridge over a connected socket.

Any number of threads call at once; answers come in any order and are paired by id. Life::

    OPEN ──close, end of stream, protocol violation, a call's deadline──> CLOSED

A closed bridge stays closed: every call that waits, and every later one, gets BridgeClosedError
with the cause chained. A call whose deadline passes closes the bridge, because what the guest
does with the request is unknown from then on (hcsshim internal/gcs does the same).

Two threads own the socket, a reader and a writer, so a guest that does not read holds up no
caller beyond its deadline.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from harness.errors import BridgeClosedError, GuestError, ProtocolError, UsageError
from harness.gcs.codec import (
    HOST_MAX_FRAME,
    Frame,
    FrameDecoder,
    FrameError,
    MessageError,
    decode_body,
    encode_body,
    encode_frame,
    from_json,
    to_json,
)
from harness.gcs.prot import (
    CONTAINER_NOTIFICATION,
    NULL_ID,
    ContainerNotification,
    Kind,
    Request,
    RequestBase,
    ResponseBase,
    kind_of,
)

DEFAULT_TIMEOUT_S = 300.0  # hcsshim's deadline of a bridge call
_READ_SIZE = 64 * 1024


class PendingCall:
    """A request that was sent; made by `Bridge.send`."""

    def __init__(self, bridge: Bridge, request: Request, deadline: float | None) -> None:
        self._bridge = bridge
        self._request = request
        self._deadline = deadline
        self._done = threading.Event()
        self._answer: Mapping[str, object] | None = None
        self._status = ResponseBase()

    @property
    def request(self) -> Request:
        """What was asked."""
        return self._request

    @property
    def answered(self) -> bool:
        """Whether there is an answer, or there will be none."""
        return self._done.is_set()

    def result(self) -> Mapping[str, object]:
        """Return the answer's JSON object once it is there.

        Raises GuestError (the guest refused), BridgeClosedError.
        """
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        if not self._done.wait(left):
            self._bridge.kill(TimeoutError(f"{self._request.name}: no answer in time"))
        self._done.wait()
        if self._answer is None:
            raise self._bridge.closed_error()
        if self._status.result:
            raise GuestError(
                self._status.error_message or "no reason given",
                hresult=self._status.result,
                request=self._request.name,
            )
        return self._answer

    def complete(self, status: ResponseBase, answer: Mapping[str, object]) -> None:
        """Note the answer; called by the bridge."""
        self._status, self._answer = status, answer
        self._done.set()

    def abandon(self) -> None:
        """Note that there will be no answer; called by the bridge."""
        self._done.set()


class Bridge:
    """Calls to the guest, and its notifications. Use it as a context manager."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._lock = threading.Condition()
        self._cause: Exception | None = None
        self._why_gone: Callable[[], Exception | None] = lambda: None
        self._closed = False
        self._next_id = 0
        self._pending: dict[int, PendingCall] = {}
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._notifications: dict[str, list[ContainerNotification]] = {}
        self._threads = [
            threading.Thread(target=self._read, name="gcs-read", daemon=True),
            threading.Thread(target=self._write, name="gcs-write", daemon=True),
        ]

    def start(self) -> None:
        """Start the two threads."""
        self._socket.settimeout(None)
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Bridge:
        """Start and return the bridge."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the bridge."""
        self.close()

    def close(self) -> None:
        """Close the bridge and release everybody; may be repeated."""
        self._shut(None)
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join()

    @property
    def closed(self) -> bool:
        """Whether the bridge is closed."""
        return self._closed

    def kill(self, cause: Exception) -> None:
        """Close the bridge for a reason that everybody who waits gets to know."""
        self._shut(cause)

    def explain_end(self, why_gone: Callable[[], Exception | None]) -> None:
        """Have `why_gone` asked, once, when the guest's end closes by itself.

        The stream's end may overtake the report of what ended the guest. Whoever waits is told
        what `why_gone` returns, when it returns; it must not take long.
        """
        self._why_gone = why_gone

    def closed_error(self) -> BridgeClosedError:
        """Return the error of a closed bridge, with its cause chained."""
        error = BridgeClosedError(f"the bridge to the guest is closed: {self._cause or 'by us'}")
        error.__cause__ = self._cause
        return error

    # -- calls -----------------------------------------------------------------------------------

    def send(
        self,
        request: Request,
        message: object | None = None,
        *,
        container_id: str = NULL_ID,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
    ) -> PendingCall:
        """Send a request and return what to wait on. Raises BridgeClosedError."""
        body = to_json(RequestBase(container_id=container_id, activity_id=NULL_ID))
        if message is not None:
            body |= to_json(message)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        call = PendingCall(self, request, deadline)
        with self._lock:
            if self._closed:
                raise self.closed_error()
            ident = self._next_id
            self._next_id += 1
            self._pending[ident] = call
            self._outgoing.put(encode_frame(Frame(request, ident, encode_body(body))))
        return call

    def call(
        self,
        request: Request,
        message: object | None = None,
        *,
        container_id: str = NULL_ID,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
    ) -> Mapping[str, object]:
        """Return the answer's JSON object. Raises GuestError, BridgeClosedError."""
        return self.send(request, message, container_id=container_id, timeout_s=timeout_s).result()

    # -- notifications ---------------------------------------------------------------------------

    def expect_notifications(self, container_id: str) -> None:
        """Keep the container's notifications; call it before the container is created."""
        with self._lock:
            self._notifications.setdefault(container_id, [])

    def forget_notifications(self, container_id: str) -> None:
        """Forget what was told of an earlier container of that id: there is a new one."""
        with self._lock:
            self._notifications[container_id] = []

    def wait_notification(
        self, container_id: str, *, timeout_s: float | None = None
    ) -> ContainerNotification:
        """Return the container's first notification, which stays for others to see.

        Raises TimeoutError, BridgeClosedError, UsageError for one that was not created here.
        """
        with self._lock:
            kept = self._notifications.get(container_id)
            if kept is None:
                raise UsageError(f"container {container_id} was not created on this bridge")
            if not self._lock.wait_for(lambda: kept or self._closed, timeout_s):
                raise TimeoutError(f"container {container_id} has not exited")
            if not kept:
                raise self.closed_error()
            return kept[0]

    # -- the socket ------------------------------------------------------------------------------

    def _read(self) -> None:
        decoder = FrameDecoder(max_frame=HOST_MAX_FRAME)
        try:
            while data := self._socket.recv(_READ_SIZE):
                for frame in decoder.feed(data):
                    self._take(frame)
            end = "the guest is gone" if decoder.at_boundary else "the guest went inside a message"
            self._shut(self._why_gone() or ConnectionResetError(end))
        except FrameError as error:
            self._shut(ProtocolError(str(error)))
        except MessageError as error:
            self._shut(ProtocolError(f"the guest sent what cannot be decoded: {error}"))
        except ConnectionError as error:
            end = f"the guest is gone: {error.strerror}"
            self._shut(self._why_gone() or ConnectionResetError(end))
        except (ProtocolError, OSError) as error:
            self._shut(error)

    def _take(self, frame: Frame) -> None:
        if frame.type == CONTAINER_NOTIFICATION:
            self._take_notification(from_json(ContainerNotification, decode_body(frame.body)))
            return
        if kind_of(frame.type) is not Kind.RESPONSE:
            raise ProtocolError(f"the guest sent a message of type {frame.type:#010x}")
        with self._lock:
            call = self._pending.pop(frame.id, None)
        if call is None or call.request.response != frame.type:
            if call is not None:
                call.abandon()
            raise ProtocolError(f"the guest answered {frame.id} ({frame.type:#010x}) unasked")
        try:
            body = decode_body(frame.body)
            status = from_json(ResponseBase, body)
        except MessageError:
            call.abandon()
            raise
        if status.result and not status.error_message and status.error_records:
            status = replace(status, error_message=status.error_records[0].message)
        call.complete(status, body)

    def _take_notification(self, notification: ContainerNotification) -> None:
        with self._lock:
            kept = self._notifications.get(notification.container_id)
            if kept is None:
                raise ProtocolError(
                    f"the guest notified of container {notification.container_id}, never created"
                )
            kept.append(notification)
            self._lock.notify_all()

    def _write(self) -> None:
        while (data := self._outgoing.get()) is not None:
            try:
                self._socket.sendall(data)
            except ConnectionError:
                return  # the reader finds the end, too, and why
            except OSError as error:
                self._shut(error)
                return

    def _shut(self, cause: Exception | None) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._cause = cause
            pending = list(self._pending.values())
            self._pending.clear()
            self._lock.notify_all()
        self._outgoing.put(None)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the threads
        self._socket.close()
        for call in pending:
            call.abandon()

"""The host's end of the multiplex on the port `stdio`: joins channels and their consumers.

The guest dials a port; if someone listens there the channel is accepted and joined to the
consumer's socket. Loop thread only.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from harness.gcs.mux import (
    ChannelGoneError,
    CreditGranted,
    DataReceived,
    Dialed,
    MuxEndpoint,
    MuxEvent,
    MuxRole,
    MuxViolationError,
    PeerFinished,
    PeerReset,
)
from harness.qemu.loop import READ, WRITE, IoLoop
from harness.qemu.relay import CHUNK, Outbox, receive

_FROM_GUEST: Final = 4 * CHUNK
_QUEUED_TO_GUEST: Final = 4 * CHUNK  # beyond it consumers are not read

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DialAnswer:
    """Whether somebody listens on a port, and the consumer's socket if it has connected."""

    accepted: bool
    consumer: socket.socket | None = None


@dataclass(slots=True)
class _Channel:
    number: int
    consumer: socket.socket | None = None  # None: it did not connect yet
    to_consumer: Outbox = field(default_factory=Outbox)
    consumer_ended: bool = False
    guest_ended: bool = False  # no more data will come: half closed, reset, or the machine is gone
    half_closed: bool = False  # and the consumer was told


class MuxHost:
    """Serves the guest's dials. Owns the port's socket and the consumers given to it."""

    def __init__(
        self, loop: IoLoop, guest: socket.socket, *, on_dial: Callable[[int, int], DialAnswer]
    ) -> None:
        """`on_dial(port, channel)` answers for a port that the guest dials."""
        self._loop = loop
        self._guest = guest
        self._on_dial = on_dial
        self._mux = MuxEndpoint(MuxRole.HOST)
        self._to_guest = Outbox()
        self._channels: dict[int, _Channel] = {}
        self._open = True
        self._throttled = False

    def start(self) -> None:
        """Begin to serve."""
        self._guest.setblocking(False)
        self._update_guest()

    def join(self, channel: int, consumer: socket.socket) -> None:
        """Join a channel that was accepted and the socket of its consumer."""
        state = self._channels.get(channel)
        if state is None:
            consumer.close()
            return
        self._connect(state, consumer)
        self._flush_to_guest()

    def close(self) -> None:
        """Close everything at once; may be repeated."""
        self._close_guest()
        for state in list(self._channels.values()):
            self._forget(state)

    # -- the guest's side ------------------------------------------------------------------------

    def _guest_ready(self, events: int) -> None:
        if events & READ:
            data = receive(self._guest, _FROM_GUEST)
            if data == b"":
                self._lose_guest()
                return
            if data:
                try:
                    received = self._mux.receive(data)
                except MuxViolationError as error:
                    _log.error("the guest broke the stdio multiplex, which is closed: %s", error)
                    self._lose_guest()
                    return
                for event in received:
                    self._handle(event)
        self._flush_to_guest()

    def _handle(self, event: MuxEvent) -> None:
        if isinstance(event, Dialed):
            self._answer(event)
            return
        state = self._channels.get(event.channel)
        if state is None:
            return
        match event:
            case DataReceived(data=data):
                state.to_consumer.add(data)
            case PeerFinished():
                state.guest_ended = True
            case PeerReset():
                state.guest_ended = True
            case CreditGranted():
                pass
        self._advance(state)

    def _answer(self, dialed: Dialed) -> None:
        answer = self._on_dial(dialed.port, dialed.channel)
        if not answer.accepted:
            self._mux.refuse(dialed.channel)
            return
        self._mux.accept(dialed.channel)
        state = _Channel(dialed.channel)
        self._channels[dialed.channel] = state
        if answer.consumer is not None:
            self._connect(state, answer.consumer)

    def _flush_to_guest(self) -> None:
        if not self._open:
            return
        self._to_guest.add(self._mux.data_to_send())
        try:
            self._to_guest.flush(self._guest)
        except OSError:
            self._lose_guest()
            return
        self._update_guest()
        if self._throttled and len(self._to_guest) < _QUEUED_TO_GUEST:
            self._throttled = False
            for state in list(self._channels.values()):
                self._advance(state)
            self._to_guest.add(self._mux.data_to_send())  # a reset for a consumer that is gone
            self._update_guest()

    def _update_guest(self) -> None:
        self._loop.watch(self._guest, READ | (WRITE if self._to_guest else 0), self._guest_ready)

    def _lose_guest(self) -> None:
        """The stream below has ended: consumers get what came, then the end."""
        self._close_guest()
        for event in self._mux.receive_eof():
            self._handle(event)

    def _close_guest(self) -> None:
        if self._open:
            self._open = False
            self._loop.unwatch(self._guest)
            self._guest.close()

    # -- the consumers' side ---------------------------------------------------------------------

    def _connect(self, state: _Channel, consumer: socket.socket) -> None:
        consumer.setblocking(False)
        state.consumer = consumer
        self._advance(state)

    def _consumer_ready(self, state: _Channel, events: int) -> None:
        if events & READ and state.consumer is not None:
            room = min(CHUNK, self._mux.credit(state.number))
            data = receive(state.consumer, room) if room else None
            # The guest may have reset the channel in this round of the loop.
            with contextlib.suppress(ChannelGoneError):
                if data:
                    self._mux.send(state.number, data)
            if data == b"":
                state.consumer_ended = True
                self._mux.finish(state.number)
        self._advance(state)
        self._flush_to_guest()

    def _advance(self, state: _Channel) -> None:
        """Move what can be moved towards the consumer, and watch for what can come next."""
        consumer = state.consumer
        if consumer is None:
            return
        try:
            taken = state.to_consumer.flush(consumer)
            self._mux.consumed(state.number, taken)
            if state.guest_ended and not state.to_consumer and not state.half_closed:
                state.half_closed = True
                consumer.shutdown(socket.SHUT_WR)
        except OSError:
            # The consumer has gone: the guest's next write fails, as on a socket.
            self._mux.reset(state.number)
            self._forget(state)
            return
        alive = self._mux.is_open(state.number)
        if state.half_closed and not alive:
            self._forget(state)
            return
        events = WRITE if state.to_consumer else 0
        if alive and not state.consumer_ended:
            if len(self._to_guest) >= _QUEUED_TO_GUEST:
                self._throttled = True
            elif self._mux.credit(state.number):
                events |= READ
        self._loop.watch(consumer, events, functools.partial(self._consumer_ready, state))

    def _forget(self, state: _Channel) -> None:
        self._channels.pop(state.number, None)
        if state.consumer is not None:
            self._loop.unwatch(state.consumer)
            state.consumer.close()

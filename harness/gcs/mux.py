"""Many byte streams on one: what stands for vsock dials on a virtual machine without vsock.

A sans-IO protocol between the guest, which dials ports, and the host, which answers. The bytes go
over one reliable ordered stream (the virtio-serial port `stdio`); each end owns a `MuxEndpoint`,
feeds it what it read, acts on the events, and writes what `data_to_send` returns. An endpoint is
not thread-safe: its owner holds one lock around every call.

A frame is 8 bytes, little-endian, and a payload: u8 type, u8 zero, u16 payload size, u32 channel.

=======  ====  =========================  =================================================
type     code  payload                    meaning
=======  ====  =========================  =================================================
DIAL     1     u32 port, u32 credit       guest only: open a channel; the host may send credit
ACCEPT   2     u32 credit                 host only: the channel is open
REFUSE   3     none                       host only: nobody listens on that port
DATA     4     1 to 32760 bytes           within the credit that the peer granted
CREDIT   5     u32 bytes                  the peer may send that many more bytes
EOF      6     none                       half close: no more DATA from this end
RESET    7     none                       this end forgets the channel at once
BULK     8     u32 bytes                  so many bytes of the channel follow, outside of frames
=======  ====  =========================  =================================================

BULK is for an end that moves bytes which it does not see, out of a pipe: they are within the
credit as DATA is, and nothing comes in between.

Life of a channel, at either end::

    guest: dial ──> DIALING ──ACCEPT──> OPEN ──both ends EOF, or RESET──> gone
                       └────REFUSE, RESET────────────────────────────────> gone
    host:  DIAL ──> DIALING ──accept──> OPEN ──both ends EOF, or RESET──> gone
                       └────refuse, reset, RESET─────────────────────────> gone

Channel numbers rise and are never used again, so a frame that was under way when its channel went
is recognised and dropped; a frame for a number that never was is a violation.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TypeAlias

MAX_FRAME = 32 * 1024  # virtio_console hands on at most 32 KiB with one write
HEADER_SIZE = 8
MAX_DATA = MAX_FRAME - HEADER_SIZE
# Bytes that the peer may send ahead. To the host they are many: whenever an emulated guest runs
# out of credit its threads change twice, and 64 MiB with 512 KiB took four times the processor time
# that they take with 4 MiB or more. A guest has less memory to spare.
HOST_WINDOW = 8 * 1024 * 1024
GUEST_WINDOW = 512 * 1024
_MAX_CREDIT = 2**31 - 1

_HEADER = struct.Struct("<BBHI")
_U32 = struct.Struct("<I")
_DIAL = struct.Struct("<II")
assert _HEADER.size == HEADER_SIZE


class MuxRole(enum.Enum):
    """Which end this is: the guest dials, the host accepts or refuses."""

    GUEST = "guest"
    HOST = "host"


class MuxViolationError(Exception):
    """The peer broke the protocol; the stream cannot be used any more."""


class ChannelGoneError(Exception):
    """Data was offered to a channel that is not open: reset, refused, or finished by this end."""

    def __init__(self, channel: int) -> None:
        super().__init__(f"channel {channel} takes no data: it is not open")
        self.channel = channel


class _FrameType(enum.IntEnum):
    DIAL = 1
    ACCEPT = 2
    REFUSE = 3
    DATA = 4
    CREDIT = 5
    EOF = 6
    RESET = 7
    BULK = 8


# Payload sizes a type may have, as (least, most).
_PAYLOAD: dict[_FrameType, tuple[int, int]] = {
    _FrameType.DIAL: (_DIAL.size, _DIAL.size),
    _FrameType.ACCEPT: (_U32.size, _U32.size),
    _FrameType.REFUSE: (0, 0),
    _FrameType.DATA: (1, MAX_DATA),
    _FrameType.CREDIT: (_U32.size, _U32.size),
    _FrameType.EOF: (0, 0),
    _FrameType.RESET: (0, 0),
    _FrameType.BULK: (_U32.size, _U32.size),
}


@dataclass(frozen=True, slots=True)
class Dialed:
    """Host: the guest dials `port`; answer with `accept` or `refuse`."""

    channel: int
    port: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """Guest: the channel is open; `send` has credit from now on."""

    channel: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Guest: nobody listens on the port; the channel is gone."""

    channel: int


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Bytes of the peer, in order; call `consumed` once they are dealt with."""

    channel: int
    data: bytes


@dataclass(frozen=True, slots=True)
class CreditGranted:
    """The peer takes more bytes: a `send` that fell short can go on."""

    channel: int


@dataclass(frozen=True, slots=True)
class PeerFinished:
    """The peer sends no more data; this end still may. Gone if this end had finished, too."""

    channel: int


@dataclass(frozen=True, slots=True)
class PeerReset:
    """The peer forgot the channel, or the stream below ended; the channel is gone."""

    channel: int


MuxEvent: TypeAlias = (
    Dialed | Accepted | Refused | DataReceived | CreditGranted | PeerFinished | PeerReset
)


class _State(enum.Enum):
    DIALING = "dialing"
    OPEN = "open"


@dataclass(slots=True)
class _Channel:
    """One channel: what this end may send, and what it granted to the peer."""

    receive_credit: int  # granted to the peer and not used by it
    state: _State = _State.DIALING
    send_credit: int = 0
    unconsumed: int = 0  # received and not yet reported as consumed
    ungranted: int = 0  # consumed and not yet granted again
    finished: bool = False
    peer_finished: bool = False


class MuxEndpoint:
    """One end of the multiplexed stream."""

    def __init__(self, role: MuxRole) -> None:
        self._role = role
        self._window = HOST_WINDOW if role is MuxRole.HOST else GUEST_WINDOW
        self._grant_step = self._window // 4  # consumed bytes gather to it before they are granted
        self._channels: dict[int, _Channel] = {}
        self._last = 0  # highest channel number ever used
        self._received = bytearray()
        self._outgoing: list[bytes] = []
        self._bulk_channel = 0
        self._bulk_left = 0  # bytes of the peer's BULK that have not come yet

    # -- what this end asks for ------------------------------------------------------------------

    def dial(self, port: int) -> int:
        """Return a new channel to `port`; guest only. `Accepted` or `Refused` follows."""
        assert self._role is MuxRole.GUEST, "the host does not dial"
        self._last += 1
        self._channels[self._last] = _Channel(self._window)
        self._queue(_FrameType.DIAL, self._last, _DIAL.pack(port, self._window))
        return self._last

    def accept(self, channel: int) -> None:
        """Open a channel that the guest dialed; does nothing if the guest gave it up meanwhile."""
        if state := self._dialing(channel):
            state.state = _State.OPEN
            self._queue(_FrameType.ACCEPT, channel, _U32.pack(self._window))

    def refuse(self, channel: int) -> None:
        """Turn away a channel that the guest dialed; nothing happens if it is gone already."""
        if self._dialing(channel):
            del self._channels[channel]
            self._queue(_FrameType.REFUSE, channel)

    def send(self, channel: int, data: bytes | bytearray | memoryview) -> int:
        """Queue what the peer's credit allows and return how many bytes that was, perhaps 0.

        `CreditGranted` says when the rest can be offered again. Raises ChannelGoneError.
        """
        state = self._channels.get(channel)
        if state is None or state.state is not _State.OPEN or state.finished:
            raise ChannelGoneError(channel)
        view = memoryview(data)[: state.send_credit]
        for start in range(0, len(view), MAX_DATA):
            self._queue(_FrameType.DATA, channel, view[start : start + MAX_DATA])
        state.send_credit -= len(view)
        return len(view)

    def promise(self, channel: int, size: int) -> bytes:
        """Return the BULK frame for `size` bytes, within the credit, that the caller writes next.

        What was queued before is written before it. Raises ChannelGoneError.
        """
        state = self._channels.get(channel)
        if state is None or state.state is not _State.OPEN or state.finished:
            raise ChannelGoneError(channel)
        assert 0 < size <= state.send_credit, "more promised than the peer takes"
        state.send_credit -= size
        return _HEADER.pack(_FrameType.BULK, 0, _U32.size, channel) + _U32.pack(size)

    def credit(self, channel: int) -> int:
        """Return how many bytes `send` would take now; 0 for a channel that takes none."""
        state = self._channels.get(channel)
        return 0 if state is None or state.finished else state.send_credit

    def finish(self, channel: int) -> None:
        """Half-close: no more data from this end. Repeating it, or a gone channel, is fine."""
        state = self._channels.get(channel)
        if state is None or state.finished:
            return
        if state.state is not _State.OPEN:
            self.reset(channel)
            return
        state.finished = True
        self._queue(_FrameType.EOF, channel)
        self._drop_if_done(channel, state)

    def reset(self, channel: int) -> None:
        """Forget a channel at once and tell the peer; a channel that is gone is fine."""
        if self._channels.pop(channel, None) is not None:
            self._queue(_FrameType.RESET, channel)

    def consumed(self, channel: int, count: int) -> None:
        """Report that `count` received bytes are dealt with, which lets the peer send as many more.

        A channel that is gone is fine.
        """
        state = self._channels.get(channel)
        if state is None:
            return
        assert 0 <= count <= state.unconsumed, "more consumed than received"
        state.unconsumed -= count
        state.ungranted += count
        if state.ungranted >= self._grant_step and not state.peer_finished:
            self._queue(_FrameType.CREDIT, channel, _U32.pack(state.ungranted))
            state.receive_credit += state.ungranted
            state.ungranted = 0

    def is_open(self, channel: int) -> bool:
        """Whether the channel is known: being dialed, open, or half closed."""
        return channel in self._channels

    @property
    def channels(self) -> frozenset[int]:
        """The channels that are known, as `is_open` says."""
        return frozenset(self._channels)

    # -- bytes -----------------------------------------------------------------------------------

    def data_to_send(self) -> bytes:
        """Return all that is queued, whole frames, and forget it; b"" when there is nothing.

        Whoever writes may cut it anywhere, as long as nothing comes in between.
        """
        return b"".join(self.frames_to_send())

    @property
    def has_frames(self) -> bool:
        """Whether anything is queued."""
        return bool(self._outgoing)

    def frames_to_send(self) -> list[bytes]:
        """Return all that is queued as one item a frame, and forget it."""
        out = self._outgoing
        self._outgoing = []
        return out

    def receive(self, data: bytes | bytearray | memoryview) -> list[MuxEvent]:
        """Return what the peer's bytes mean; they may be cut anywhere. Raises MuxViolationError."""
        events: list[MuxEvent] = []
        if self._bulk_left:
            assert not self._received
            part = data[: self._bulk_left]  # all of it, mostly, and then no copy
            self._take_bulk(bytes(part), events)
            data = data[len(part) :]
        self._received += data
        at = 0
        while len(self._received) - at >= HEADER_SIZE:
            code, zero, size, channel = _HEADER.unpack_from(self._received, at)
            kind = self._check_header(code, zero, size)
            end = at + HEADER_SIZE + size
            if len(self._received) < end:
                break
            payload = bytes(memoryview(self._received)[at + HEADER_SIZE : end])
            event = self._handle(kind, channel, payload)
            if event is not None:
                events.append(event)
            at = end
            if self._bulk_left:
                with memoryview(self._received)[at : at + self._bulk_left] as rest:
                    part = bytes(rest)
                self._take_bulk(part, events)
                at += len(part)
        if at:
            del self._received[:at]
        return events

    def receive_eof(self) -> list[MuxEvent]:
        """Return a `PeerReset` for every channel: the stream below has ended. Queues nothing."""
        gone = sorted(self._channels)
        self._channels.clear()
        self._received.clear()
        self._bulk_left = 0
        return [PeerReset(channel) for channel in gone]

    # -- frames ----------------------------------------------------------------------------------

    def _queue(self, kind: _FrameType, channel: int, payload: bytes | memoryview = b"") -> None:
        self._outgoing.append(b"".join((_HEADER.pack(kind, 0, len(payload), channel), payload)))

    @staticmethod
    def _check_header(code: int, zero: int, size: int) -> _FrameType:
        try:
            kind = _FrameType(code)
        except ValueError:
            raise MuxViolationError(f"unknown frame type {code}") from None
        least, most = _PAYLOAD[kind]
        if zero or not least <= size <= most:
            raise MuxViolationError(f"{kind.name} frame with reserved byte {zero}, payload {size}")
        return kind

    def _handle(self, kind: _FrameType, channel: int, payload: bytes) -> MuxEvent | None:
        if kind is _FrameType.DIAL:
            return self._handle_dial(channel, payload)
        if kind is _FrameType.BULK:
            self._bulk_channel = channel
            (self._bulk_left,) = _U32.unpack(payload)
            if not self._bulk_left:
                raise MuxViolationError("BULK frame of 0 bytes")
        if not 0 < channel <= self._last:
            raise MuxViolationError(f"{kind.name} for channel {channel}, which was never dialed")
        state = self._channels.get(channel)
        if state is None:
            return None  # under way when this end forgot the channel
        if kind is _FrameType.RESET:
            del self._channels[channel]
            return PeerReset(channel)
        if kind in (_FrameType.ACCEPT, _FrameType.REFUSE):
            return self._handle_answer(kind, channel, state, payload)
        if state.state is not _State.OPEN:
            raise MuxViolationError(f"{kind.name} before channel {channel} was accepted")
        if kind is _FrameType.CREDIT:
            return self._handle_credit(channel, state, payload)
        if state.peer_finished:
            raise MuxViolationError(f"{kind.name} after the EOF of channel {channel}")
        if kind is _FrameType.EOF:
            state.peer_finished = True
            self._drop_if_done(channel, state)
            return PeerFinished(channel)
        size = self._bulk_left if kind is _FrameType.BULK else len(payload)
        if size > state.receive_credit:
            raise MuxViolationError(
                f"{size} bytes on channel {channel}, credit {state.receive_credit}"
            )
        state.receive_credit -= size
        if kind is _FrameType.BULK:
            return None
        state.unconsumed += size
        return DataReceived(channel, payload)

    def _take_bulk(self, part: bytes, events: list[MuxEvent]) -> None:
        self._bulk_left -= len(part)
        state = self._channels.get(self._bulk_channel)
        if part and state is not None:  # else this end forgot the channel
            state.unconsumed += len(part)
            events.append(DataReceived(self._bulk_channel, part))

    def _handle_dial(self, channel: int, payload: bytes) -> MuxEvent:
        if self._role is not MuxRole.HOST:
            raise MuxViolationError("the host dialed")
        if channel <= self._last:
            raise MuxViolationError(f"channel {channel} dialed after channel {self._last}")
        port, credit = _DIAL.unpack(payload)
        self._last = channel
        self._channels[channel] = _Channel(self._window, send_credit=min(credit, _MAX_CREDIT))
        return Dialed(channel, port)

    def _handle_answer(
        self, kind: _FrameType, channel: int, state: _Channel, payload: bytes
    ) -> MuxEvent:
        if self._role is not MuxRole.GUEST or state.state is not _State.DIALING:
            raise MuxViolationError(f"{kind.name} for channel {channel}, which is not being dialed")
        if kind is _FrameType.REFUSE:
            del self._channels[channel]
            return Refused(channel)
        state.state = _State.OPEN
        (credit,) = _U32.unpack(payload)
        state.send_credit = min(credit, _MAX_CREDIT)
        return Accepted(channel)

    @staticmethod
    def _handle_credit(channel: int, state: _Channel, payload: bytes) -> MuxEvent:
        (credit,) = _U32.unpack(payload)
        if state.send_credit + credit > _MAX_CREDIT:
            raise MuxViolationError(f"credit of channel {channel} beyond {_MAX_CREDIT}")
        state.send_credit += credit
        return CreditGranted(channel)

    def _dialing(self, channel: int) -> _Channel | None:
        assert self._role is MuxRole.HOST, "the guest does not answer dials"
        state = self._channels.get(channel)
        return state if state is not None and state.state is _State.DIALING else None

    def _drop_if_done(self, channel: int, state: _Channel) -> None:
        if state.finished and state.peer_finished:
            del self._channels[channel]

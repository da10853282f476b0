"""The stream multiplexer: two endpoints wired together, and a peer that breaks the rules."""

from __future__ import annotations

import struct
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from harness.gcs.mux import (
    HOST_WINDOW,
    MAX_DATA,
    MAX_FRAME,
    Accepted,
    ChannelGoneError,
    CreditGranted,
    DataReceived,
    Dialed,
    MuxEndpoint,
    MuxRole,
    MuxViolationError,
    PeerFinished,
    PeerReset,
    Refused,
)

PORT = 0x40000001


def pair() -> tuple[MuxEndpoint, MuxEndpoint]:
    return MuxEndpoint(MuxRole.GUEST), MuxEndpoint(MuxRole.HOST)


def opened() -> tuple[MuxEndpoint, MuxEndpoint, int]:
    guest, host = pair()
    channel = guest.dial(PORT)
    host.receive(guest.data_to_send())
    host.accept(channel)
    guest.receive(host.data_to_send())
    return guest, host, channel


def frame(code: int, channel: int, payload: bytes = b"", *, reserved: int = 0) -> bytes:
    return struct.pack("<BBHI", code, reserved, len(payload), channel) + payload


def test_a_dial_is_seen_with_its_port_and_accepted() -> None:
    guest, host = pair()
    channel = guest.dial(PORT)
    assert host.receive(guest.data_to_send()) == [Dialed(channel, PORT)]
    host.accept(channel)
    assert guest.receive(host.data_to_send()) == [Accepted(channel)]


def test_a_refused_channel_is_gone_at_both_ends() -> None:
    guest, host = pair()
    channel = guest.dial(PORT)
    host.receive(guest.data_to_send())
    host.refuse(channel)
    assert guest.receive(host.data_to_send()) == [Refused(channel)]
    assert not guest.channels
    assert not host.channels


def test_data_before_the_accept_waits_for_credit() -> None:
    guest, _ = pair()
    channel = guest.dial(PORT)
    with pytest.raises(ChannelGoneError):
        guest.send(channel, b"early")
    assert guest.credit(channel) == 0


def test_a_send_takes_no_more_than_the_credit_until_the_peer_consumed() -> None:
    guest, host, channel = opened()
    assert guest.send(channel, b"x" * (HOST_WINDOW + 1000)) == HOST_WINDOW
    assert guest.send(channel, b"x") == 0
    host.receive(guest.data_to_send())
    host.consumed(channel, HOST_WINDOW)
    assert guest.receive(host.data_to_send()) == [CreditGranted(channel)]
    assert guest.send(channel, b"x" * 1000) == 1000


def test_frames_stay_within_one_virtio_write() -> None:
    guest, _, channel = opened()
    guest.send(channel, b"x" * HOST_WINDOW)
    data, sizes = guest.data_to_send(), []
    while data:
        size = 8 + struct.unpack_from("<H", data, 2)[0]
        sizes.append(size)
        data = data[size:]
    assert max(sizes) <= MAX_FRAME
    assert sum(size - 8 for size in sizes) == HOST_WINDOW


def test_a_half_closed_channel_still_carries_the_other_direction() -> None:
    guest, host, channel = opened()
    guest.finish(channel)
    guest.finish(channel)
    assert host.receive(guest.data_to_send()) == [PeerFinished(channel)]
    host.send(channel, b"answer")
    assert guest.receive(host.data_to_send()) == [DataReceived(channel, b"answer")]
    host.finish(channel)
    assert guest.receive(host.data_to_send()) == [PeerFinished(channel)]
    assert not guest.channels
    assert not host.channels


def test_sending_after_the_own_end_is_the_callers_fault() -> None:
    guest, _, channel = opened()
    guest.finish(channel)
    with pytest.raises(ChannelGoneError) as failure:
        guest.send(channel, b"late")
    assert failure.value.channel == channel


def test_frames_under_way_to_a_reset_channel_are_dropped() -> None:
    guest, host, channel = opened()
    host.send(channel, b"on its way")
    late = host.data_to_send()
    guest.reset(channel)
    assert guest.receive(late) == []
    assert host.receive(guest.data_to_send()) == [PeerReset(channel)]
    guest.consumed(channel, 10)
    guest.finish(channel)
    assert guest.data_to_send() == b""


def test_an_accept_that_crosses_the_guests_reset_is_dropped() -> None:
    guest, host = pair()
    channel = guest.dial(PORT)
    host.receive(guest.data_to_send())
    host.accept(channel)
    guest.reset(channel)
    assert guest.receive(host.data_to_send()) == []
    assert host.receive(guest.data_to_send()) == [PeerReset(channel)]


def test_finishing_a_channel_that_is_still_dialed_gives_it_up() -> None:
    guest, host = pair()
    channel = guest.dial(PORT)
    guest.finish(channel)
    assert host.receive(guest.data_to_send()) == [Dialed(channel, PORT), PeerReset(channel)]
    host.accept(channel)
    host.refuse(channel)
    assert host.data_to_send() == b""


def test_the_end_of_the_stream_ends_every_channel() -> None:
    guest, _, first = opened()
    second = guest.dial(PORT + 1)
    assert guest.receive_eof() == [PeerReset(first), PeerReset(second)]
    assert not guest.channels


@pytest.mark.parametrize(
    ("to_host", "data"),
    [
        (True, frame(0, 1)),
        (True, frame(8, 1)),
        (True, frame(9, 1)),
        (True, frame(8, 1, struct.pack("<I", 0))),
        (True, frame(8, 1, struct.pack("<I", HOST_WINDOW + 1))),
        (True, frame(8, 7, struct.pack("<I", 1))),
        (True, frame(6, 1) + frame(8, 1, struct.pack("<I", 1))),
        (True, frame(4, 1, b"data", reserved=1)),
        (True, frame(4, 1)),
        (True, frame(6, 1, b"payload")),
        (True, frame(5, 1, b"\1\0")),
        (True, struct.pack("<BBHI", 4, 0, MAX_DATA + 1, 1)),
        (True, frame(4, 7, b"never dialed")),
        (True, frame(2, 1, struct.pack("<I", 1))),
        (True, frame(1, 1, struct.pack("<II", PORT, 1))),
        (True, frame(5, 1, struct.pack("<I", 2**31 - 1))),
        (True, frame(6, 1) + frame(4, 1, b"after the end")),
        (False, frame(1, 9, struct.pack("<II", PORT, 1))),
        (False, frame(2, 1, struct.pack("<I", 1))),
        (False, frame(3, 1)),
    ],
)
def test_a_violation_is_the_peers_fault(to_host: bool, data: bytes) -> None:
    guest, host, _ = opened()
    with pytest.raises(MuxViolationError):
        (host if to_host else guest).receive(data)


def test_a_peer_that_ignores_its_credit_is_caught() -> None:
    _, host, channel = opened()
    host.receive(frame(4, channel, b"x" * MAX_DATA) * (HOST_WINDOW // MAX_DATA))
    with pytest.raises(MuxViolationError, match="credit"):
        host.receive(frame(4, channel, b"x" * MAX_DATA))


def test_announced_bytes_are_data_however_they_are_cut_and_frames_go_on_behind_them() -> None:
    guest, host, channel = opened()
    stream = guest.promise(channel, 10) + b"0123456789"
    guest.finish(channel)
    stream += guest.data_to_send()
    for size in range(1, len(stream) + 1):
        events = [e for at in range(0, len(stream), size) for e in host.receive(stream[at:][:size])]
        assert events[-1] == PeerFinished(channel)
        data = b"".join(each.data for each in events if isinstance(each, DataReceived))
        assert data == b"0123456789"
        guest, host, channel = opened()
        guest.promise(channel, 10)
        guest.finish(channel)
        guest.data_to_send()


def test_announced_bytes_of_a_channel_that_was_given_up_are_dropped() -> None:
    guest, host, channel = opened()
    host.receive(guest.promise(channel, 10) + b"0123")
    host.reset(channel)
    other = guest.dial(PORT)
    assert host.receive(b"456789" + guest.data_to_send()) == [Dialed(other, PORT)]


def test_announced_bytes_use_up_credit_and_give_it_back() -> None:
    guest, host, channel = opened()
    host.receive(guest.promise(channel, HOST_WINDOW) + bytes(HOST_WINDOW))
    assert guest.credit(channel) == 0
    host.consumed(channel, HOST_WINDOW)
    assert guest.receive(host.data_to_send()) == [CreditGranted(channel)]
    assert guest.credit(channel) == HOST_WINDOW


def test_data_on_a_channel_that_was_not_accepted_is_a_violation() -> None:
    guest, host = pair()
    channel = guest.dial(PORT)
    host.receive(guest.data_to_send())
    with pytest.raises(MuxViolationError, match="before"):
        host.receive(frame(4, channel, b"early"))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_cut_of_the_bytes_gives_the_same_events(data: st.DataObject) -> None:
    guest, _, channel = opened()
    guest.send(channel, b"a" * 40_000)
    guest.dial(PORT + 1)
    guest.send(channel, b"b" * 3)
    guest.finish(channel)
    stream = guest.data_to_send()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    _, whole, _ = opened()
    _, pieces, _ = opened()
    events = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        events += pieces.receive(stream[start:end])
    assert events == whole.receive(stream)


class TwoEndpoints(RuleBasedStateMachine):
    """Two endpoints with bytes under way: nothing is lost, reordered or beyond credit."""

    channels: Bundle[int] = Bundle("channels")

    def __init__(self) -> None:
        super().__init__()
        self.ends = dict(zip(("guest", "host"), pair(), strict=True))
        self.wire: dict[str, bytes] = {"guest": b"", "host": b""}  # on the way to that end
        self.sent: defaultdict[tuple[str, int], bytes] = defaultdict(bytes)
        self.got: defaultdict[tuple[str, int], bytes] = defaultdict(bytes)
        self.held: defaultdict[tuple[str, int], int] = defaultdict(int)
        self.dialed: list[int] = []
        self.reset: set[int] = set()
        self.finished: set[tuple[str, int]] = set()

    @staticmethod
    def other(end: str) -> str:
        return "host" if end == "guest" else "guest"

    @rule(target=channels)
    def dial(self) -> int:
        return self.ends["guest"].dial(PORT)

    @rule(accept=st.booleans())
    def answer(self, accept: bool) -> None:
        if self.dialed:
            channel = self.dialed.pop(0)
            if accept:
                self.ends["host"].accept(channel)
            else:
                self.ends["host"].refuse(channel)
                self.reset.add(channel)

    @rule(end=st.sampled_from(["guest", "host"]), channel=channels, size=st.integers(1, 300_000))
    def send(self, end: str, channel: int, size: int) -> None:
        data = bytes([size % 251]) * size
        try:
            taken = self.ends[end].send(channel, data)
        except ChannelGoneError:
            return
        assert taken <= HOST_WINDOW
        self.sent[end, channel] += data[:taken]

    @rule(channel=channels, size=st.integers(1, 300_000))
    def send_unseen(self, channel: int, size: int) -> None:
        guest = self.ends["guest"]
        if count := min(size, guest.credit(channel)):
            data = bytes([size % 241]) * count
            self.wire["host"] += guest.data_to_send() + guest.promise(channel, count) + data
            self.sent["guest", channel] += data

    @rule(end=st.sampled_from(["guest", "host"]), channel=channels)
    def consume(self, end: str, channel: int) -> None:
        self.ends[end].consumed(channel, self.held.pop((end, channel), 0))

    @rule(end=st.sampled_from(["guest", "host"]), channel=channels)
    def finish(self, end: str, channel: int) -> None:
        self.ends[end].finish(channel)
        self.finished.add((end, channel))

    @rule(end=st.sampled_from(["guest", "host"]), channel=consumes(channels))
    def drop(self, end: str, channel: int) -> None:
        self.ends[end].reset(channel)
        self.reset.add(channel)

    @rule(end=st.sampled_from(["guest", "host"]), share=st.floats(0, 1))
    def deliver(self, end: str, share: float) -> None:
        self.wire[end] += self.ends[self.other(end)].data_to_send()
        count = int(len(self.wire[end]) * share) + 1
        data, self.wire[end] = self.wire[end][:count], self.wire[end][count:]
        for event in self.ends[end].receive(data):
            if isinstance(event, Dialed):
                self.dialed.append(event.channel)
            elif isinstance(event, DataReceived):
                self.got[end, event.channel] += event.data
                self.held[end, event.channel] += len(event.data)

    @invariant()
    def what_came_is_what_was_sent(self) -> None:
        for (end, channel), data in self.got.items():
            assert self.sent[self.other(end), channel].startswith(data)

    def teardown(self) -> None:
        for _ in range(200):  # let everything arrive
            for end in self.ends:
                self.deliver(end, 1.0)
                for channel in list(self.ends[end].channels):
                    self.consume(end, channel)
        for (end, channel), data in self.sent.items():
            if channel not in self.reset and channel in self.ends["guest"].channels:
                assert self.got[self.other(end), channel] == data


TwoEndpoints.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestTwoEndpoints = TwoEndpoints.TestCase

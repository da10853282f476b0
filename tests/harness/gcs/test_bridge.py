"""The host's end of the bridge against a guest that the test plays message by message."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from harness.errors import (
    BridgeClosedError,
    GuestError,
    ProtocolError,
    SystemExitedError,
    UsageError,
)
from harness.gcs.bridge import Bridge
from harness.gcs.codec import Frame, FrameDecoder, encode_body, encode_frame
from harness.gcs.guest import GuestClient
from harness.gcs.prot import CONTAINER_NOTIFICATION, HResult, Request


class PlayedGuest:
    """The other end of the bridge's socket."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.socket.settimeout(5)
        self._decoder = FrameDecoder(max_frame=1 << 20)
        self._frames: list[Frame] = []

    def take(self) -> Frame:
        while not self._frames:
            data = self.socket.recv(65536)
            assert data, "the host closed the bridge"
            self._frames += self._decoder.feed(data)
        return self._frames.pop(0)

    def answer(self, frame: Frame, body: dict[str, object]) -> None:
        self.send(frame.type + 0x10000000, frame.id, body)

    def send(self, type_word: int, ident: int, body: dict[str, object]) -> None:
        self.socket.sendall(encode_frame(Frame(type_word, ident, encode_body(body))))

    def notify(self, container_id: str) -> None:
        body: dict[str, object] = {"ContainerId": container_id, "Type": "GracefulExit"}
        self.send(CONTAINER_NOTIFICATION, 0, body)


@pytest.fixture
def ends() -> Iterator[tuple[Bridge, PlayedGuest]]:
    host, guest = socket.socketpair()
    with Bridge(host) as bridge, guest:
        yield bridge, PlayedGuest(guest)


def test_a_request_carries_its_container_and_ids_count_up(
    ends: tuple[Bridge, PlayedGuest],
) -> None:
    bridge, guest = ends
    bridge.send(Request.START, container_id="one")
    bridge.send(Request.DELETE_CONTAINER_STATE, container_id="two")
    first, second = guest.take(), guest.take()
    assert (first.type, first.id, second.type, second.id) == (0x10100201, 0, 0x10100D01, 1)
    assert json.loads(first.body)["ContainerId"] == "one"
    assert json.loads(second.body)["ContainerId"] == "two"


def test_answers_in_any_order_reach_their_callers(ends: tuple[Bridge, PlayedGuest]) -> None:
    bridge, guest = ends
    calls = [bridge.send(Request.EXECUTE_PROCESS, container_id=str(i)) for i in range(20)]
    frames = [guest.take() for _ in calls]
    for frame in reversed(frames):
        guest.answer(frame, {"Result": 0, "ProcessId": frame.id})
    assert [call.result()["ProcessId"] for call in calls] == list(range(20))


def test_a_refusal_carries_hresult_message_and_request(ends: tuple[Bridge, PlayedGuest]) -> None:
    bridge, guest = ends
    call = bridge.send(Request.START, container_id="gone")
    guest.answer(guest.take(), {"Result": -1070137074, "ErrorMessage": "no container gone"})
    with pytest.raises(
        GuestError, match=r"START: no container gone \(HRESULT 0xc037010e\)"
    ) as info:
        call.result()
    assert info.value.hresult == HResult.SYSTEM_NOT_FOUND
    assert not bridge.closed


def test_a_refusal_without_a_message_takes_the_first_record(
    ends: tuple[Bridge, PlayedGuest],
) -> None:
    bridge, guest = ends
    call = bridge.send(Request.START)
    record = {"Result": -2147467259, "Message": "from the record", "Line": 7}
    guest.answer(guest.take(), {"Result": -2147467259, "ErrorRecords": [record]})
    with pytest.raises(GuestError, match="from the record"):
        call.result()


def test_a_deadline_closes_the_bridge_for_everybody(ends: tuple[Bridge, PlayedGuest]) -> None:
    bridge, _ = ends
    bystander = bridge.send(Request.WAIT_FOR_PROCESS, timeout_s=None)
    started = time.monotonic()
    with pytest.raises(BridgeClosedError, match="MODIFY_SETTINGS: no answer") as info:
        bridge.call(Request.MODIFY_SETTINGS, timeout_s=0.05)
    assert time.monotonic() - started < 2
    assert isinstance(info.value.__cause__, TimeoutError)
    with pytest.raises(BridgeClosedError):
        bystander.result()
    with pytest.raises(BridgeClosedError):
        bridge.send(Request.START)


def test_a_guest_that_does_not_read_holds_nobody_beyond_the_deadline(
    ends: tuple[Bridge, PlayedGuest],
) -> None:
    bridge, guest = ends
    guest.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(40):
        bridge.send(Request.START, container_id="x" * 60_000)
    with pytest.raises(BridgeClosedError):
        bridge.call(Request.START, timeout_s=0.05)


def test_the_guests_death_releases_every_waiter(ends: tuple[Bridge, PlayedGuest]) -> None:
    bridge, guest = ends
    bridge.expect_notifications("c")
    failures: list[BaseException] = []

    def wait(action: object) -> None:
        try:
            assert callable(action)
            action()
        except BridgeClosedError as error:
            failures.append(error)

    actions = [bridge.send(Request.WAIT_FOR_PROCESS, timeout_s=None).result for _ in range(3)]
    threads = [threading.Thread(target=wait, args=(action,)) for action in actions]
    threads.append(threading.Thread(target=wait, args=(lambda: bridge.wait_notification("c"),)))
    for thread in threads:
        thread.start()
    guest.socket.close()
    for thread in threads:
        thread.join(5)
    assert len(failures) == 4
    assert all("the guest is gone" in str(error) for error in failures)


def test_waiters_are_told_what_ended_the_guest_where_somebody_knows(
    ends: tuple[Bridge, PlayedGuest],
) -> None:
    bridge, guest = ends
    bridge.explain_end(lambda: SystemExitedError("Kernel panic"))
    call = bridge.send(Request.WAIT_FOR_PROCESS, timeout_s=None)
    guest.socket.close()
    with pytest.raises(BridgeClosedError, match="Kernel panic"):
        call.result()


def test_closing_releases_a_waiter_and_may_be_repeated(ends: tuple[Bridge, PlayedGuest]) -> None:
    bridge, _ = ends
    call = bridge.send(Request.WAIT_FOR_PROCESS, timeout_s=None)
    bridge.close()
    bridge.close()
    with pytest.raises(BridgeClosedError, match="by us"):
        call.result()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encode_frame(Frame(0x20100201, 5, b"{}")), "unasked"),
        (encode_frame(Frame(0x20100301, 0, b"{}")), "unasked"),
        (encode_frame(Frame(0x20100201, 0, b"no JSON")), "not JSON"),
        (encode_frame(Frame(0x20100201, 0, b'{"Result":"0"}')), "Result"),
        (encode_frame(Frame(0x30100201, 0, b"{}")), "0x30100201"),
        (encode_frame(Frame(0x10100201, 0, b"{}")), "0x10100201"),
        (encode_frame(Frame(CONTAINER_NOTIFICATION, 0, b'{"ContainerId":"x"}')), "never created"),
        (struct.pack("<IIQ", 0x20100201, 15, 0), "15 bytes"),
        (struct.pack("<IIQ", 0x20100201, 0x10001, 0), "65537 bytes"),
    ],
)
def test_a_guest_that_breaks_the_protocol_closes_the_bridge(
    ends: tuple[Bridge, PlayedGuest], data: bytes, reason: str
) -> None:
    bridge, guest = ends
    call = bridge.send(Request.START)
    guest.take()
    guest.socket.sendall(data)
    with pytest.raises(BridgeClosedError, match=reason) as info:
        call.result()
    assert isinstance(info.value.__cause__, ProtocolError)


def test_a_guest_that_goes_inside_a_message_is_told_from_one_that_just_goes(
    ends: tuple[Bridge, PlayedGuest],
) -> None:
    bridge, guest = ends
    call = bridge.send(Request.START)
    guest.take()
    guest.socket.sendall(b"\1\2\3")
    guest.socket.close()
    with pytest.raises(BridgeClosedError, match="inside a message"):
        call.result()


def test_notifications_wait_for_whoever_asks_later(ends: tuple[Bridge, PlayedGuest]) -> None:
    bridge, guest = ends
    bridge.expect_notifications("a")
    bridge.expect_notifications("b")
    guest.notify("b")
    assert bridge.wait_notification("b", timeout_s=5).type == "GracefulExit"
    assert bridge.wait_notification("b", timeout_s=5).container_id == "b"
    with pytest.raises(TimeoutError):
        bridge.wait_notification("a", timeout_s=0.02)


def test_a_container_that_nobody_created_has_no_exit_to_wait_for(
    ends: tuple[Bridge, PlayedGuest],
) -> None:
    bridge, _ = ends
    with pytest.raises(UsageError, match="container c9 was not created"):
        bridge.wait_notification("c9", timeout_s=5)


def test_an_answer_of_the_wrong_shape_closes_the_bridge(ends: tuple[Bridge, PlayedGuest]) -> None:
    bridge, guest = ends
    client = GuestClient(bridge)
    failures: list[BaseException] = []

    def execute() -> None:
        try:
            client.execute_process(None, args=["true"])
        except ProtocolError as error:
            failures.append(error)

    thread = threading.Thread(target=execute)
    thread.start()
    guest.answer(guest.take(), {"Result": 0, "ProcessId": "7"})
    thread.join(5)
    assert "ProcessId" in str(failures[0])
    assert bridge.closed


def test_settings_go_out_with_upstreams_names(ends: tuple[Bridge, PlayedGuest]) -> None:
    bridge, guest = ends
    client = GuestClient(bridge)
    thread = threading.Thread(target=client.eject_disk, kwargs={"controller": 0, "lun": 3})
    thread.start()
    frame = guest.take()
    assert json.loads(frame.body)["Request"] == {
        "RequestType": "Remove",
        "ResourceType": "SCSIDevice",
        "Settings": {"Lun": 3},
    }
    guest.answer(frame, {"Result": 0})
    thread.join(5)

"""The QMP client against a peer that is scripted here."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import ComputeTimeoutError, ProtocolError, SystemExitedError
from harness.qemu.loop import IoLoop
from harness.qemu.qmp import QmpCommand, QmpError, QmpParser
from tests.harness.qemu.qmppeer import Peer, soon


@pytest.fixture
def loop() -> Iterator[IoLoop]:
    made = IoLoop("test")
    made.start()
    yield made
    made.stop()


def test_a_command_returns_its_result(loop: IoLoop) -> None:
    peer = Peer(loop, lambda command: [{"return": command["arguments"]["x"] + 1}])
    assert peer.client.execute(QmpCommand("add", {"x": 1}), deadline=soon()) == 2
    peer.client.close()


def test_a_refusal_carries_class_and_description(loop: IoLoop) -> None:
    peer = Peer(loop, lambda _: [{"error": {"class": "DeviceNotFound", "desc": "no such"}}])
    with pytest.raises(QmpError, match="no such") as caught:
        peer.client.execute(QmpCommand("device_del"), deadline=soon())
    assert caught.value.error_class == "DeviceNotFound"
    peer.client.close()


def test_commands_that_go_together_are_answered_one_by_one(loop: IoLoop) -> None:
    def answer(command: dict[str, Any]) -> list[Any]:
        if command["arguments"]["x"] == 2:
            return [{"error": {"class": "GenericError", "desc": "not two"}}]
        return [{"return": command["arguments"]["x"]}]

    peer = Peer(loop, answer)
    first, second, third = peer.client.execute_all(
        [QmpCommand("echo", {"x": number}) for number in (1, 2, 3)], deadline=soon()
    )
    assert (first, third) == (1, 3)
    assert isinstance(second, QmpError)
    assert second.description == "not two"
    assert peer.client.execute_all([], deadline=soon()) == []
    peer.client.close()


def test_events_are_found_whether_they_came_before_or_come_later(loop: IoLoop) -> None:
    peer = Peer(loop, lambda _: [{"event": "GONE", "data": {"d": 1}}, {"return": {}}])
    before = peer.client.event_cursor
    peer.client.execute(QmpCommand("x"), deadline=soon())
    event = peer.client.wait_event(lambda e: e.name == "GONE", after=before, deadline=soon())
    assert event.data == {"d": 1}
    later = threading.Timer(0.05, lambda: peer.send({"event": "LATE", "data": {}}))
    later.start()
    peer.client.wait_event(lambda e: e.name == "LATE", after=event.sequence, deadline=soon())
    assert [e.name for e in peer.events] == ["GONE", "LATE"]
    peer.client.close()


def test_a_command_that_is_not_answered_times_out(loop: IoLoop) -> None:
    peer = Peer(loop, lambda _: [])
    with pytest.raises(ComputeTimeoutError, match="stuck"):
        peer.client.execute(QmpCommand("stuck"), deadline=soon(0.05))
    peer.client.close()


def test_a_peer_that_leaves_releases_every_caller(loop: IoLoop) -> None:
    peer = Peer(loop, lambda _: None)
    with pytest.raises(SystemExitedError):
        peer.client.execute(QmpCommand("x"), deadline=soon())
    with pytest.raises(SystemExitedError):
        peer.client.wait_event(lambda _: True, after=0, deadline=soon())
    peer.client.close()


def test_answers_reach_the_threads_that_asked(loop: IoLoop) -> None:
    peer = Peer(loop, lambda command: [{"return": command["arguments"]["n"]}])
    results: dict[int, int] = {}

    def ask(n: int) -> None:
        for _ in range(20):
            results[n] = peer.client.execute(QmpCommand("echo", {"n": n}), deadline=soon())
            assert results[n] == n

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: n for n in range(4)}
    peer.client.close()


@settings(max_examples=100, deadline=None)
@given(
    messages=st.lists(st.dictionaries(st.text(max_size=4), st.integers(), max_size=3), max_size=6),
    data=st.data(),
)
def test_messages_are_found_however_the_stream_is_cut(
    messages: list[dict[str, int]], data: st.DataObject
) -> None:
    stream = b"".join(json.dumps(message).encode() + b"\r\n" for message in messages)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    edges = [0, *sorted(cuts), len(stream)]
    parser = QmpParser()
    found: list[dict[str, Any]] = []
    for start, end in itertools.pairwise(edges):
        found += parser.receive(stream[start:end])
    assert found == messages


@pytest.mark.parametrize("line", [b"nonsense\n", b"[1]\n"])
def test_what_is_no_message_is_a_violation(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        QmpParser().receive(line)

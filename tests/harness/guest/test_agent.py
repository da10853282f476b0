"""The agent's manners on the bridge: negotiation, refusals, notifications, shutdown."""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import json
import socket
import threading

import pytest

from harness.errors import GuestError
from harness.gcs.codec import (
    HOST_MAX_FRAME,
    Frame,
    FrameDecoder,
    encode_body,
    encode_frame,
    to_json,
)
from harness.gcs.prot import (
    INFINITE,
    NULL_ID,
    HResult,
    LabRequest,
    MappedVirtualDisk,
    NegotiateProtocol,
    Request,
    RequestBase,
    Resume,
    WaitForProcess,
)
from harness.guest.log import Log
from tests.fakes.guest_os import SocketByteStream, wait_until
from tests.harness.guest.conftest import Guest, read_all


def exchange(guest: Guest, *parts: bytes, answers: int = 1) -> list[Frame]:
    """Send raw bytes on a bridge of their own and return what comes back.

    Each part but the first waits for the answer to the one before.
    """
    host, end = socket.socketpair()
    host.settimeout(5)
    thread = threading.Thread(target=guest.agent.serve, args=(SocketByteStream(end),))
    thread.start()
    frames: list[Frame] = []
    decoder = FrameDecoder(max_frame=HOST_MAX_FRAME)
    with host, end:
        for number, part in enumerate(parts, start=1):
            host.sendall(part)
            while len(frames) < (answers if number == len(parts) else number):
                frames += decoder.feed(host.recv(65536))
        host.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    return frames


NEGOTIATE = encode_frame(
    Frame(Request.NEGOTIATE_PROTOCOL, 0, b'{"MinimumVersion":4,"MaximumVersion":4}')
)


def test_negotiation_says_what_a_linux_guest_can(unnegotiated: Guest) -> None:
    can = unnegotiated.client.negotiate(timeout_s=5)
    assert can.runtime_os == "Linux"
    assert not can.send_host_create
    assert can.guest.delete_container_state
    assert can.guest.signal_process


@pytest.mark.parametrize(("least", "most"), [(5, 6), (1, 3), (0, 0)])
def test_other_versions_are_refused(unnegotiated: Guest, least: int, most: int) -> None:
    request = NegotiateProtocol(minimum_version=least, maximum_version=most)
    with pytest.raises(GuestError) as info:
        unnegotiated.client.bridge.call(Request.NEGOTIATE_PROTOCOL, request, timeout_s=5)
    assert info.value.hresult == HResult.UNSUPPORTED_PROTOCOL_VERSION
    with pytest.raises(GuestError, match="not negotiated"):
        unnegotiated.client.dump_stacks()


def test_nothing_is_done_before_the_negotiation(unnegotiated: Guest) -> None:
    unnegotiated.os.attach(0, 1)
    with pytest.raises(GuestError) as info:
        unnegotiated.client.mount_disk(MappedVirtualDisk(mount_path="/m", lun=1))
    assert info.value.hresult == HResult.NOT_IMPLEMENTED
    assert not unnegotiated.os.mounts


def test_a_new_bridge_negotiates_again(guest: Guest) -> None:
    client = guest.reconnect()
    with pytest.raises(GuestError, match="not negotiated"):
        client.dump_stacks()
    client.negotiate(timeout_s=5)
    assert "request-" in client.dump_stacks()


def test_an_unknown_request_is_refused_and_the_bridge_lives(guest: Guest) -> None:
    with pytest.raises(GuestError) as info:
        guest.client.bridge.call(Request.UPDATE_CONTAINER, timeout_s=5)
    assert info.value.hresult == HResult.UNKNOWN_MESSAGE
    assert guest.client.dump_stacks()


@pytest.mark.parametrize("body", [b"no JSON", b"[]", b'{"ContainerId":1}'])
def test_a_body_that_cannot_be_decoded_is_refused(guest: Guest, body: bytes) -> None:
    bad = encode_frame(Frame(Request.MODIFY_SETTINGS, 9, body))
    _, answer = exchange(guest, NEGOTIATE + bad, answers=2)
    assert (answer.type, answer.id) == (0x20100A01, 9)
    values = json.loads(answer.body)
    assert values["Result"] & 0xFFFFFFFF == HResult.INVALID_JSON
    assert values["ErrorRecords"][0]["ModuleName"] == "gcs"


def test_a_request_cut_into_bytes_is_answered_once(guest: Guest) -> None:
    host, end = socket.socketpair()
    thread = threading.Thread(target=guest.agent.serve, args=(SocketByteStream(end),))
    thread.start()
    with host, end:
        host.settimeout(5)
        for i in range(len(NEGOTIATE)):
            host.sendall(NEGOTIATE[i : i + 1])
        assert FrameDecoder(max_frame=HOST_MAX_FRAME).feed(host.recv(65536))[0].id == 0
        host.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_an_answer_repeats_the_requests_activity(guest: Guest) -> None:
    activity = "11111111-2222-3333-4444-555555555555"
    body = json.dumps({"ActivityId": activity, "MinimumVersion": 4, "MaximumVersion": 4})
    (answer,) = exchange(guest, encode_frame(Frame(Request.NEGOTIATE_PROTOCOL, 3, body.encode())))
    assert json.loads(answer.body)["ActivityId"] == activity


def test_a_frame_of_an_impossible_size_ends_the_bridge(guest: Guest) -> None:
    host, end = socket.socketpair()
    with host, end:
        host.sendall(b"\1\1\x10\x10\4\0\0\0" + bytes(8))
        guest.agent.serve(SocketByteStream(end))
    assert any("4 bytes" in line for line in guest.console)


def test_a_slow_request_holds_up_no_other(guest: Guest) -> None:
    slow = guest.client.execute_process(None, args=["sleep", "60"])
    wait = WaitForProcess(process_id=slow, timeout_ms=INFINITE)
    waiting = guest.client.bridge.send(Request.WAIT_FOR_PROCESS, wait, timeout_s=10)
    assert guest.run(None, ["true"])[0] == 0
    guest.client.signal_process(None, slow)
    assert waiting.result()["ExitCode"] == 128 + 9


def test_shutting_the_utility_vm_down_powers_it_off_without_an_answer(guest: Guest) -> None:
    guest.client.shutdown()
    assert guest.os.powered_off.wait(5)


def test_the_utility_vm_is_not_a_container(guest: Guest) -> None:
    null = "00000000-0000-0000-0000-000000000000"
    with pytest.raises(GuestError):
        guest.client.get_properties(null)
    with pytest.raises(GuestError):
        guest.client.create_container(null, {}, bundle="/run/gcs/c/x")


def test_an_answer_that_would_break_the_hosts_limit_becomes_an_error(guest: Guest) -> None:
    with pytest.raises(GuestError) as info:
        guest.client.execute_process(None, args=["x" * 50_000])
    assert len(str(info.value)) < 5000
    assert guest.client.dump_stacks()


def test_the_log_goes_to_the_host_that_listens(unnegotiated: Guest) -> None:
    end = unnegotiated.os.listen(109)
    unnegotiated.client.negotiate(timeout_s=5)
    with pytest.raises(GuestError):
        unnegotiated.client.start_container("nobody")
    end.settimeout(5)
    line = json.loads(end.recv(65536).splitlines()[0])
    assert line["level"] == "info"
    assert "nobody" in line["error"]
    end.close()


def test_a_log_nobody_reads_drops_lines_and_does_not_wait() -> None:
    lines: list[str] = []
    log = Log(lines.append)
    for number in range(3000):
        log.info(f"line {number}")
    log.error("bad", {"why": "test"})
    assert json.loads(lines[0])["why"] == "test"


def test_an_exit_without_a_bridge_is_told_to_the_next_one(guest: Guest) -> None:
    guest.client.create_container(
        "c1", {"process": {"args": ["sh", "-c", "read x; exit 3"]}}, bundle="/run/gcs/c/c1"
    )
    streams = guest.streams()
    guest.client.execute_process("c1", stdio=streams.ports)
    guest.client.close()
    streams.stdin.sendall(b"go\n")
    read_all(streams.stdout)
    read_all(streams.stderr)
    client = guest.reconnect()
    client.bridge.expect_notifications("c1")
    client.negotiate(timeout_s=5)
    assert client.wait_container_exit("c1", timeout_s=5).container_id == "c1"
    assert wait_until(lambda: client.bridge.closed is False)


def lab_frame(request: LabRequest, message: object | None = None) -> bytes:
    body = to_json(message) if message is not None else {}
    return encode_frame(Frame(request, 7, encode_body(body)))


def test_a_copy_takes_entropy_time_and_name_before_any_negotiation(guest: Guest) -> None:
    message = Resume(seed="5a" * 64, unix_s=1_800_000_000, unix_ns=5, host_name="uvm-1")
    (answer,) = exchange(guest, lab_frame(LabRequest.RESUME, message))
    assert (answer.type, answer.id) == (0x2FE00201, 7)
    assert json.loads(answer.body)["Result"] == 0
    assert guest.os.entropy == [b"\x5a" * 64]
    assert guest.os.clock_ns == 1_800_000_000_000_000_005
    assert guest.os.host_name == "uvm-1"


@pytest.mark.parametrize("seed", ["", "5a" * 8, "5a" * 33, "no hex"])
def test_a_copy_without_a_whole_seed_is_refused(guest: Guest, seed: str) -> None:
    message = Resume(seed=seed, unix_s=1, unix_ns=0, host_name="x")
    (answer,) = exchange(guest, lab_frame(LabRequest.RESUME, message))
    assert json.loads(answer.body)["Result"] & 0xFFFFFFFF == HResult.INVALID_JSON
    assert not guest.os.entropy
    assert guest.os.host_name == ""


def test_the_bridge_is_a_new_one_after_the_copy(guest: Guest) -> None:
    message = Resume(seed="5a" * 64, unix_s=1, unix_ns=0, host_name="x")
    stacks = encode_frame(Frame(Request.DUMP_STACKS, 9, b"{}"))
    frames = exchange(guest, NEGOTIATE + lab_frame(LabRequest.RESUME, message) + stacks, answers=3)
    refused = next(frame for frame in frames if frame.id == 9)
    assert json.loads(refused.body)["Result"] & 0xFFFFFFFF == HResult.NOT_IMPLEMENTED


def host_negotiation(version: int = 4) -> bytes:
    """The negotiation as our host sends it."""
    body = to_json(RequestBase(container_id=NULL_ID, activity_id=NULL_ID)) | to_json(
        NegotiateProtocol(minimum_version=version, maximum_version=version)
    )
    return encode_frame(Frame(Request.NEGOTIATE_PROTOCOL, 3, encode_body(body)))


def test_a_copy_answers_like_any_other_agent(guest: Guest) -> None:
    message = Resume(seed="5a" * 64, unix_s=1_800_000_000, unix_ns=5, host_name="uvm-1")
    stacks = encode_frame(Frame(Request.DUMP_STACKS, 9, b"{}"))
    asked = lab_frame(LabRequest.RESUME, message), host_negotiation()
    expected = exchange(guest, *asked, answers=2)
    exchange(guest, lab_frame(LabRequest.PREPARE))
    guest.os.entropy.clear()
    *answers, dumped = exchange(guest, *asked, stacks, answers=3)
    assert answers == expected
    assert json.loads(dumped.body)["Result"] == 0, "it is negotiated"
    assert guest.os.entropy == [b"\x5a" * 64]
    assert guest.os.clock_ns == 1_800_000_000_000_000_005
    assert guest.os.host_name == "uvm-1"


def test_a_copy_takes_frames_that_come_in_pieces(guest: Guest) -> None:
    message = Resume(seed="5a" * 64, unix_s=1, unix_ns=0, host_name="uvm-1")
    exchange(guest, lab_frame(LabRequest.PREPARE))
    whole = lab_frame(LabRequest.RESUME, message) + host_negotiation()
    answers = exchange(guest, whole, answers=2)
    assert [json.loads(answer.body)["Result"] for answer in answers] == [0, 0]
    assert guest.os.host_name == "uvm-1"


def test_a_copy_refuses_what_any_agent_refuses(guest: Guest) -> None:
    exchange(guest, lab_frame(LabRequest.PREPARE))
    guest.os.entropy.clear()
    bad = Resume(seed="5a" * 8, unix_s=1, unix_ns=0, host_name="x")
    answers = exchange(guest, lab_frame(LabRequest.RESUME, bad), host_negotiation(5), answers=2)
    results = [json.loads(answer.body)["Result"] & 0xFFFFFFFF for answer in answers]
    assert results == [HResult.INVALID_JSON, HResult.UNSUPPORTED_PROTOCOL_VERSION]
    assert not guest.os.entropy


@pytest.mark.parametrize("missing", ["Seed", "UnixSeconds", "UnixNanoseconds", "HostName"])
def test_a_copy_needs_every_field(guest: Guest, missing: str) -> None:
    body = to_json(Resume(seed="5a" * 64, unix_s=1, unix_ns=0, host_name="x"))
    del body[missing]
    (answer,) = exchange(guest, encode_frame(Frame(LabRequest.RESUME, 7, encode_body(body))))
    assert json.loads(answer.body)["Result"] & 0xFFFFFFFF == HResult.INVALID_JSON
    assert missing in json.loads(answer.body)["ErrorMessage"]
    assert not guest.os.entropy


def test_a_template_has_run_a_container_and_shows_nothing_of_it(guest: Guest) -> None:
    before = {path for path in guest.os.root.rglob("*") if path.is_file()}
    (answer,) = exchange(guest, lab_frame(LabRequest.PREPARE))
    assert json.loads(answer.body)["Result"] == 0, answer.body
    assert guest.os.commands[-1][-3:] == ["delete", "--force", "lcowlab-template"]
    assert not guest.os.mounts
    assert {path for path in guest.os.root.rglob("*") if path.is_file()} == before
    guest.client.negotiate(timeout_s=5)
    assert not guest.client.bridge.closed, "no notification of an unknown container came"

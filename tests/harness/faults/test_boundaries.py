"""Every boundary is one that a call meets, and each action does there what the grammar says."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from harness.errors import (
    BridgeClosedError,
    ComputeServiceError,
    ComputeTimeoutError,
    GuestError,
    HarnessError,
    SystemExitedError,
)
from harness.faults import BOUNDARIES, FaultPlan
from harness.faults.guest import faulty_connection
from harness.faults.service import FaultyComputeService
from harness.gcs.codec import Frame, FrameDecoder, encode_body, encode_frame
from harness.gcs.guest import GuestClient
from harness.gcs.prot import CombinedLayers, Kind, MappedVirtualDisk, Request
from harness.hcs.document import ComputeSystem, attach_request, detach_request
from harness.hcs.service import BRIDGE_PORT, ComputeService, SystemState
from tests.fakes.counting_service import CountingService

DISK = MappedVirtualDisk(mount_path="/m")
LAYERS = CombinedLayers(container_root_path="/r")
GUEST_CALLS: dict[str, Callable[[GuestClient], object]] = {
    "guest.negotiate-protocol": lambda guest: guest.negotiate(),
    "guest.add-mapped-virtual-disk": lambda guest: guest.mount_disk(DISK),
    "guest.remove-mapped-virtual-disk": lambda guest: guest.unmount_disk(DISK),
    "guest.remove-scsi-device": lambda guest: guest.eject_disk(controller=0, lun=1),
    "guest.add-combined-layers": lambda guest: guest.add_combined_layers(LAYERS),
    "guest.remove-combined-layers": lambda guest: guest.remove_combined_layers(LAYERS),
    "guest.create": lambda guest: guest.create_container("c", {}, bundle="/b"),
    "guest.start": lambda guest: guest.start_container("c"),
    "guest.shutdown-graceful": lambda guest: guest.shutdown_container("c"),
    "guest.shutdown-forced": lambda guest: guest.shutdown_container("c", force=True),
    "guest.delete-container-state": lambda guest: guest.delete_container_state("c"),
    "guest.get-properties": lambda guest: guest.get_properties("c"),
    "guest.execute-process": lambda guest: guest.execute_process("c"),
    "guest.wait-for-process": lambda guest: guest.wait_process("c", 1),
    "guest.signal-process": lambda guest: guest.signal_process("c", 1),
    "guest.resize-console": lambda guest: guest.resize_console("c", 1, height=2, width=3),
    "guest.dump-stacks": lambda guest: guest.dump_stacks(),
}
SERVICE_CALLS: dict[str, Callable[[ComputeService], object]] = {
    "service.create": lambda service: service.create("s", ComputeSystem()),
    "service.start": lambda service: service.start("s"),
    "service.attach": lambda service: service.modify("s", attach_request(0, 0, "d")),
    "service.detach": lambda service: service.modify("s", detach_request(0, 0)),
    "service.properties": lambda service: service.properties("s"),
    "service.terminate": lambda service: service.terminate("s"),
    "stream.listen": lambda service: service.listen("s", BRIDGE_PORT),
}


class Answering(threading.Thread):
    """A guest that says yes to everything, and keeps what it was asked."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__(daemon=True)
        self.asked: list[int] = []
        self._socket = connected

    def run(self) -> None:
        decoder = FrameDecoder(max_frame=1 << 20)
        with self._socket:
            while data := self._socket.recv(65536):
                for frame in decoder.feed(data):
                    self.asked.append(frame.type)
                    answer = Kind.RESPONSE | (frame.type & 0x0FFFFFFF)
                    body = encode_body({"Result": 0})
                    self._socket.sendall(encode_frame(Frame(answer, frame.id, body)))


class Ends:
    """A guest behind a plan of faults."""

    def __init__(self) -> None:
        self.plan = FaultPlan()
        host, end = socket.socketpair()
        self.guest = Answering(end)
        self.guest.start()
        self.client = faulty_connection(self.plan)(host)

    def close(self) -> None:
        self.client.close()
        self.guest.join(10)


@pytest.fixture
def ends() -> Iterator[Ends]:
    opened = Ends()
    yield opened
    opened.close()


def test_there_is_a_call_for_every_boundary() -> None:
    assert {*GUEST_CALLS, *SERVICE_CALLS} == set(BOUNDARIES)


@pytest.mark.parametrize("boundary", GUEST_CALLS)
def test_a_call_to_the_guest_meets_its_own_boundary(ends: Ends, boundary: str) -> None:
    ends.plan.add(boundary, "error(0xC037010E)")
    with pytest.raises(GuestError, match=boundary) as refused:
        GUEST_CALLS[boundary](ends.client)
    assert refused.value.hresult == 0xC037010E
    assert [met for met, _ in ends.plan.met] == [boundary]
    assert ends.guest.asked == [], "what is refused does not reach the guest"
    GUEST_CALLS[boundary](ends.client)
    assert len(ends.guest.asked) == 1, "the next one goes through"


def test_powering_the_machine_off_is_a_call_as_well(ends: Ends) -> None:
    ends.plan.add("guest.shutdown-graceful", "error(0x80004005)")
    with pytest.raises(GuestError, match="shutdown-graceful"):
        ends.client.shutdown()
    assert ends.guest.asked == []


def test_an_eject_of_many_is_the_boundary_of_one(ends: Ends) -> None:
    ends.client.negotiate()
    ends.plan.add("guest.remove-scsi-device", "ok->error(0x80004005)")
    refused = ends.client.eject_disks([(0, 0), (0, 1)])
    assert list(refused) == [(0, 1)]


@pytest.mark.parametrize(("spec", "reaches"), [("timeout", False), ("die", False), ("lost", True)])
def test_silence_of_the_guest_closes_the_bridge_as_a_deadline_does(
    ends: Ends, spec: str, reaches: bool
) -> None:
    ends.plan.add("guest.start", spec)
    with pytest.raises(BridgeClosedError, match="on purpose") as silent:
        ends.client.start_container("c")
    assert isinstance(silent.value.__cause__, TimeoutError)
    assert ends.guest.asked == ([Request.START] if reaches else [])
    assert ends.client.bridge.closed
    with pytest.raises(BridgeClosedError):
        ends.client.start_container("c")


def test_a_guest_that_hangs_answers_after_all(ends: Ends) -> None:
    ends.plan.add("guest.start", "hang(30ms)")
    began = time.monotonic()
    ends.client.start_container("c")
    assert time.monotonic() - began >= 0.03
    assert ends.guest.asked == [Request.START]


@pytest.mark.parametrize("boundary", SERVICE_CALLS)
@pytest.mark.parametrize(
    ("spec", "error", "happens"),
    [
        ("error(0x80070020)", ComputeServiceError, False),
        ("timeout", ComputeTimeoutError, False),
        ("lost", ComputeTimeoutError, True),
        ("hang(1ms)", None, True),
        ("ok", None, True),
    ],
)
def test_a_call_to_the_service_meets_its_own_boundary(
    boundary: str, spec: str, error: type[HarnessError] | None, happens: bool
) -> None:
    service, plan = CountingService(), FaultPlan.parse({boundary: spec})
    faulty = FaultyComputeService(service, plan)
    call = SERVICE_CALLS[boundary]
    if error is None:
        call(faulty)
    else:
        with pytest.raises(error) as met:
            call(faulty)
        assert type(met.value) is error
        assert boundary in str(met.value)
    assert service.calls == ([boundary] if happens else [])
    call(faulty)
    assert service.calls[-1] == boundary, "the next one goes through"


@pytest.mark.parametrize("boundary", [each for each in SERVICE_CALLS if each != "service.create"])
def test_a_system_that_dies_in_a_call_is_terminated(boundary: str) -> None:
    service = CountingService()
    faulty = FaultyComputeService(service, FaultPlan.parse({boundary: "die"}))
    with pytest.raises(SystemExitedError, match=boundary):
        SERVICE_CALLS[boundary](faulty)
    assert service.calls == ["service.terminate"]
    assert service.properties("s").state is SystemState.STOPPED


def test_a_batch_is_one_call() -> None:
    service = CountingService()
    faulty = FaultyComputeService(service, FaultPlan.parse({"service.detach": "error(0x80004005)"}))
    batch = [detach_request(0, 0), detach_request(0, 1)]
    with pytest.raises(ComputeServiceError):
        faulty.modify_batch("s", batch)
    faulty.modify_batch("s", batch)
    faulty.modify_batch("s", [])
    assert service.calls == ["service.detach"]


def test_closing_meets_no_fault() -> None:
    service = CountingService()
    everything = dict.fromkeys(BOUNDARIES, "99*error(0x80004005)")
    faulty = FaultyComputeService(service, FaultPlan.parse(everything))
    faulty.close("s")
    faulty.unlisten("s", 1)
    assert service.calls == ["service.close", "stream.unlisten"]

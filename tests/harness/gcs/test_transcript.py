"""Our host's frames are those of hcsshim's host, byte for byte; it takes the guest's answers."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.errors import GuestError
from harness.gcs.guest import GuestClient
from harness.gcs.prot import (
    CombinedLayers,
    Layer,
    MappedVirtualDisk,
    ProcessDetails,
    StdioPorts,
)
from tests.harness.gcs import transcript as said
from tests.harness.gcs.transcript import CONTAINER, POD, Exchange

PID = 4711
LAYER = MappedVirtualDisk(mount_path="/run/mounts/scsi/m0", lun=1, read_only=True, options=("ro",))
SCRATCH = MappedVirtualDisk(
    mount_path=POD, lun=3, controller=1, ensure_filesystem=True, filesystem="ext4"
)
LAYERS = CombinedLayers(
    container_id=CONTAINER,
    container_root_path=f"/run/gcs/c/{CONTAINER}/rootfs",
    layers=(Layer(path="/run/mounts/scsi/m0"),),
    scratch_path=f"{POD}/scratch/{CONTAINER}",
)
SPEC = {
    "ociVersion": "1.0.2",
    "process": {"args": ["sh", "-c", "exec sleep 60"], "cwd": "/"},
    "root": {"path": f"/run/gcs/c/{CONTAINER}/rootfs"},
}


def check_properties(guest: GuestClient) -> None:
    assert guest.get_properties(CONTAINER).process_list == (ProcessDetails(process_id=77),)


def check_refusal(call: Callable[[], object], hresult: int, words: str) -> None:
    with pytest.raises(GuestError, match=words) as refused:
        call()
    assert refused.value.hresult == hresult


LIFE: list[tuple[Exchange, Callable[[GuestClient], object]]] = [
    (said.NEGOTIATE, lambda guest: guest.negotiate()),
    (said.MOUNT_LAYER, lambda guest: guest.mount_disk(LAYER)),
    (said.MOUNT_SCRATCH, lambda guest: guest.mount_disk(SCRATCH)),
    (said.COMBINE, lambda guest: guest.add_combined_layers(LAYERS)),
    (
        said.CREATE,
        lambda guest: guest.create_container(
            CONTAINER,
            SPEC,
            bundle=f"/run/gcs/c/{CONTAINER}",
            scratch_dir=f"{POD}/scratch/{CONTAINER}",
        ),
    ),
    (said.START, lambda guest: guest.start_container(CONTAINER)),
    (
        said.EXECUTE_INIT,
        lambda guest: guest.execute_process(
            CONTAINER, stdio=StdioPorts(stdout=0x40000001, stderr=0x40000002)
        ),
    ),
    (said.PROPERTIES, check_properties),
    (
        said.RESIZE_REFUSED,
        lambda guest: check_refusal(
            lambda: guest.resize_console(CONTAINER, PID, height=24, width=80),
            0x80370105,
            "no terminal",
        ),
    ),
    (said.SIGNAL, lambda guest: guest.signal_process(CONTAINER, PID, 15)),
    (said.WAIT, lambda guest: guest.wait_process(CONTAINER, PID)),
    (said.UNCOMBINE, lambda guest: guest.remove_combined_layers(LAYERS)),
    (said.DELETE, lambda guest: guest.delete_container_state(CONTAINER)),
    (
        said.DELETE_AGAIN,
        lambda guest: check_refusal(
            lambda: guest.delete_container_state(CONTAINER), 0xC037010E, "no container c1"
        ),
    ),
    (said.UNMOUNT_SCRATCH, lambda guest: guest.unmount_disk(SCRATCH)),
    (said.UNMOUNT_LAYER, lambda guest: guest.unmount_disk(LAYER)),
    (said.EJECT, lambda guest: guest.eject_disk(controller=1, lun=3)),
]
RESULTS = {said.EXECUTE_INIT: PID, said.WAIT: 143}


@pytest.fixture
def ends() -> Iterator[tuple[GuestClient, socket.socket]]:
    host, guest = socket.socketpair()
    guest.settimeout(10)
    with GuestClient.connect(host) as client, guest:
        yield client, guest


def test_a_containers_life_is_asked_for_as_hcsshim_asks(
    ends: tuple[GuestClient, socket.socket],
) -> None:
    client, guest = ends
    with ThreadPoolExecutor(1) as pool:
        for number, (exchange, call) in enumerate(LIFE):
            pending = pool.submit(call, client)
            asked = exchange.asked.replace("$PID", str(PID)).encode() + b"\n"
            header = struct.pack("<IIQ", exchange.request, 16 + len(asked), number)
            assert receive(guest, len(header + asked)) == header + asked
            answer = exchange.answered.replace("$PID", str(PID)).encode()
            word = exchange.request + 0x10000000
            guest.sendall(struct.pack("<IIQ", word, 16 + len(answer), number) + answer)
            result = pending.result(10)
            if exchange in RESULTS:
                assert result == RESULTS[exchange]
            if exchange is said.WAIT:
                body = said.EXITED.encode()
                guest.sendall(struct.pack("<IIQ", 0x30100101, 16 + len(body), 0) + body)
                told = client.wait_container_exit(CONTAINER, timeout_s=10)
                assert (told.type, told.operation) == ("UnexpectedExit", "None")


def receive(guest: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = guest.recv(size - len(data))
        assert part, data
        data += part
    return data


def test_the_transcript_is_json_throughout() -> None:
    for value in vars(said).values():
        if isinstance(value, Exchange):
            json.loads(value.asked.replace("$PID", "1"))
            json.loads(value.answered.replace("$PID", "1"))

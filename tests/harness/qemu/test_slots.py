"""SCSI slots when QEMU refuses, dawdles or dies: no state is lost and a removal can be repeated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ComputeServiceError, ComputeTimeoutError, SystemExitedError
from harness.hcs.document import Attachment, AttachmentType
from harness.qemu.loop import IoLoop
from harness.qemu.slots import SlotTable
from harness.qemu.translate import AttachDisk, DetachDisk, device_name
from tests.harness.qemu.qmppeer import Peer, soon


class Emulator:
    """Block nodes and devices as QEMU keeps them; `faults` maps a command to its next answers."""

    def __init__(self) -> None:
        self.nodes: set[str] = set()
        self.devices: set[str] = set()
        self.faults: dict[str, list[list[Any] | None]] = {}

    def __call__(self, command: dict[str, Any]) -> list[Any] | None:
        name, arguments = command["execute"], command["arguments"]
        if self.faults.get(name):
            return self.faults[name].pop(0)
        match name:
            case "blockdev-add":
                self.nodes.add(arguments["node-name"])
            case "device_add":
                self.devices.add(arguments["id"])
            case "device_del":
                if arguments["id"] not in self.devices:
                    return refusal("Device not found", "DeviceNotFound")
                self.devices.remove(arguments["id"])
                return [{"return": {}}, deleted(arguments["id"])]
            case "blockdev-del":
                if arguments["node-name"] not in self.nodes:
                    return refusal("Failed to find node with node-name='x'")
                self.nodes.remove(arguments["node-name"])
        return [{"return": {}}]


def refusal(description: str, kind: str = "GenericError") -> list[Any]:
    return [{"error": {"class": kind, "desc": description}}]


def deleted(device: str) -> dict[str, Any]:
    return {"event": "DEVICE_DELETED", "data": {"device": device, "path": f"/machine/{device}"}}


@pytest.fixture
def emulator() -> Emulator:
    return Emulator()


@pytest.fixture
def slots(emulator: Emulator) -> Iterator[SlotTable]:
    loop = IoLoop("test")
    loop.start()
    peer = Peer(loop, emulator)
    yield SlotTable(peer.client, controllers=2)
    peer.client.close()
    loop.stop()


@pytest.fixture
def disk(tmp_path: Path) -> AttachDisk:
    file = tmp_path / "d.vhdx"
    file.write_bytes(b"vhdxfile")
    return AttachDisk(0, 5, Attachment(AttachmentType.VIRTUAL_DISK, str(file)))


def test_a_device_that_is_refused_leaves_no_block_node(
    slots: SlotTable, emulator: Emulator, disk: AttachDisk
) -> None:
    emulator.faults["device_add"] = [refusal("no bus")]
    with pytest.raises(ComputeServiceError, match="no bus"):
        slots.attach(disk, deadline=soon())
    assert emulator.nodes == set()
    assert slots.disks() == ()
    slots.attach(disk, deadline=soon())


def test_a_controller_that_does_not_exist_is_refused(
    slots: SlotTable, emulator: Emulator, disk: AttachDisk
) -> None:
    with pytest.raises(ComputeServiceError, match="2 SCSI controllers"):
        slots.attach(AttachDisk(2, 0, disk.attachment), deadline=soon())
    assert emulator.nodes == set()


@pytest.mark.parametrize("command", ["blockdev-add", "device_add"])
def test_an_attach_of_unknown_outcome_can_be_undone(
    slots: SlotTable, emulator: Emulator, disk: AttachDisk, command: str
) -> None:
    emulator.faults[command] = [[]]
    with pytest.raises(ComputeTimeoutError):
        slots.attach(disk, deadline=soon(0.05))
    assert len(slots.disks()) == 1
    with pytest.raises(ComputeServiceError, match="unknown outcome"):
        slots.attach(disk, deadline=soon())
    slots.detach([DetachDisk(0, 5)], deadline=soon())
    assert slots.disks() == ()
    assert (emulator.nodes, emulator.devices) == (set(), set())


def test_a_removal_whose_event_does_not_come_can_be_repeated(
    slots: SlotTable, emulator: Emulator, disk: AttachDisk
) -> None:
    slots.attach(disk, deadline=soon())
    emulator.faults["device_del"] = [
        [{"return": {}}],
        [*refusal("Device x is already in the process of unplug"), deleted(device_name(0, 5))],
    ]
    with pytest.raises(ComputeTimeoutError):
        slots.detach([DetachDisk(0, 5)], deadline=soon(0.05))
    assert len(slots.disks()) == 1
    slots.detach([DetachDisk(0, 5)], deadline=soon())
    assert slots.disks() == ()


def test_a_block_node_that_is_in_use_keeps_the_slot(
    slots: SlotTable, emulator: Emulator, disk: AttachDisk
) -> None:
    slots.attach(disk, deadline=soon())
    emulator.faults["blockdev-del"] = [refusal("Node disk-0-5 is in use")]
    with pytest.raises(ComputeServiceError, match="in use"):
        slots.detach([DetachDisk(0, 5)], deadline=soon())
    slots.detach([DetachDisk(0, 5)], deadline=soon())
    assert (slots.disks(), emulator.nodes) == ((), set())


def test_a_machine_that_dies_in_an_attach_frees_the_slot(
    slots: SlotTable, emulator: Emulator, disk: AttachDisk
) -> None:
    emulator.faults["device_add"] = [None]
    with pytest.raises(SystemExitedError, match=r"d\.vhdx"):
        slots.attach(disk, deadline=soon())
    assert slots.disks() == ()

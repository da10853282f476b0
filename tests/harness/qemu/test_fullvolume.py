"""When a machine that stopped for lack of room is told to go on."""

from __future__ import annotations

import threading
import time

import pytest

from harness.qemu.fullvolume import FullVolume
from harness.qemu.qmp import QmpEvent


def block_error(*, action: str = "stop", nospace: bool = True) -> QmpEvent:
    return QmpEvent(1, "BLOCK_IO_ERROR", {"action": action, "nospace": nospace})


def test_a_full_volume_makes_the_machine_go_on_once_for_many_reports() -> None:
    resumed: list[float] = []
    done = threading.Event()

    def resume() -> None:
        resumed.append(time.monotonic())
        done.set()

    watch = FullVolume(resume, retry_s=0.05)
    began = time.monotonic()
    for _ in range(5):
        watch.event(block_error())
    assert done.wait(5)
    time.sleep(0.1)
    assert len(resumed) == 1
    assert resumed[0] - began >= 0.05
    done.clear()
    watch.event(block_error())  # still full: it is reported again, and tried again
    assert done.wait(5)


@pytest.mark.parametrize(
    "event",
    [
        block_error(action="report"),
        block_error(nospace=False),
        QmpEvent(1, "STOP", {}),
    ],
    ids=["reported to the guest", "another error", "stopped on purpose"],
)
def test_anything_else_leaves_a_stopped_machine_alone(event: QmpEvent) -> None:
    resumed = threading.Event()
    FullVolume(resumed.set, retry_s=0.01).event(event)
    assert not resumed.wait(0.1)

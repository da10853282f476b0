"""When a machine that stopped for lack of room is told to go on, and what is said of it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import pytest

from harness.errors import ComputeTimeoutError, SystemExitedError
from harness.qemu.fullvolume import FullVolume
from harness.qemu.qmp import QmpEvent

RETRY_S = 0.05


def block_error(*, action: str = "stop", nospace: bool = True, number: int = 1) -> QmpEvent:
    return QmpEvent(number, "BLOCK_IO_ERROR", {"action": action, "nospace": nospace})


@dataclass
class Machine:
    """A machine that does not answer `busy` times, then finds the volume full `full` more times."""

    full: int = 0
    busy: int = 0
    alive: bool = True
    resumes: list[float] = field(default_factory=list)
    pauses: list[QmpEvent] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    told: threading.Event = field(default_factory=threading.Event)
    went_on: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.watch = FullVolume(
            self._resume, paused=self.pauses.append, resumed=self._resumed, retry_s=RETRY_S
        )

    def _resume(self) -> None:
        self.resumes.append(time.monotonic())
        self.told.set()
        if not self.alive:
            raise SystemExitedError("QEMU ended")
        if self.busy:
            self.busy -= 1
            raise ComputeTimeoutError("QEMU does not answer")
        if self.full:
            self.full -= 1
            self.watch.event(block_error())

    def _resumed(self, seconds: float) -> None:
        self.ends.append(seconds)
        self.went_on.set()


def test_many_reports_of_one_full_volume_are_one_pause() -> None:
    machine = Machine()
    began = time.monotonic()
    for number in range(5):
        machine.watch.event(block_error(number=number))
    assert machine.went_on.wait(10)
    assert [event.sequence for event in machine.pauses] == [0]
    assert len(machine.resumes) == len(machine.ends) == 1
    assert machine.resumes[0] - began >= RETRY_S


def test_a_volume_that_stays_full_is_tried_again_within_the_same_pause() -> None:
    machine = Machine(full=3)
    machine.watch.event(block_error())
    assert machine.went_on.wait(10)
    assert len(machine.resumes) == 4
    assert len(machine.pauses) == len(machine.ends) == 1
    assert machine.ends[0] >= 4 * RETRY_S, "the pause lasts to the attempt that held"


def test_a_machine_that_does_not_answer_is_told_again() -> None:
    machine = Machine(busy=2)
    machine.watch.event(block_error())
    assert machine.went_on.wait(10)
    assert len(machine.resumes) == 3


def test_the_next_full_volume_is_another_pause() -> None:
    machine = Machine()
    machine.watch.event(block_error())
    assert machine.went_on.wait(10)
    machine.went_on.clear()
    machine.watch.event(block_error())
    assert machine.went_on.wait(10)
    assert len(machine.pauses) == len(machine.ends) == 2


def test_a_machine_that_ended_meanwhile_never_goes_on() -> None:
    machine = Machine(alive=False)
    machine.watch.event(block_error())
    assert machine.told.wait(10)
    assert not machine.went_on.wait(4 * RETRY_S)
    assert len(machine.resumes) == 1


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
    machine = Machine()
    machine.watch.event(event)
    assert not machine.told.wait(2 * RETRY_S)
    assert not machine.pauses

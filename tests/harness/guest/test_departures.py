"""Disks that the kernel forgets behind an answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from harness.gcs.prot import ScsiDevice
from harness.guest.departures import Departures

SIXTEEN = [ScsiDevice(0, lun) for lun in range(16)]


@contextmanager
def held_up() -> Iterator[tuple[Departures, list[ScsiDevice], threading.Event]]:
    """Disks of which none is forgotten before the event is set, and those that were."""
    departures, forgotten, go_on = Departures(), list[ScsiDevice](), threading.Event()

    def forget(device: ScsiDevice) -> None:
        go_on.wait()
        forgotten.append(device)

    try:
        departures.start(SIXTEEN, forget)
        departures.start(SIXTEEN, forget)  # what comes back in between is looked for once more
        yield departures, forgotten, go_on
    finally:
        go_on.set()
        assert departures.wait_all(60)


def test_disks_that_are_sent_off_again_are_forgotten_again_and_waited_for_by_nobody() -> None:
    with held_up() as (departures, forgotten, go_on):
        assert forgotten == []
        assert not departures.wait_all(0)
        go_on.set()
        departures.wait(SIXTEEN[0])
        departures.wait(SIXTEEN[15])
        assert sorted(forgotten, key=SIXTEEN.index) == [each for each in SIXTEEN for _ in range(2)]


def test_a_seventeenth_disk_is_answered_when_one_of_them_is_forgotten() -> None:
    with held_up() as (departures, _, go_on):
        more = ([ScsiDevice(1, 0)], lambda _device: go_on.wait())
        last = threading.Thread(target=departures.start, args=more)
        last.start()
        last.join(0.05)
        assert last.is_alive()
        go_on.set()
        last.join(60)
        assert not last.is_alive()

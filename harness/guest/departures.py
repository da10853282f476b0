"""Disks that the kernel forgets behind an answer: who waits for which."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from functools import partial

from harness.gcs.prot import ScsiDevice
from harness.guest.errors import GuestFailure

_BEHIND = 16  # disks that an answer leaves behind: 0.2 s of an emulated guest's time


class Departures:
    """Disks that are on their way out, one after the other, in threads of their own."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._leaving: list[ScsiDevice] = []  # one that was sent off twice is here twice

    def start(self, devices: Sequence[ScsiDevice], forget: Callable[[ScsiDevice], None]) -> None:
        """Call `forget` for each disk in a new thread. What fails there, the next eject meets.

        Returns at once, or when no more than 16 disks are on their way, however often each.
        """
        if not devices:
            return
        with self._changed:
            self._leaving += devices
        work = partial(self._run, devices, forget)
        try:
            threading.Thread(target=work, name="departures", daemon=True).start()
        except RuntimeError:  # no more threads can be had
            work()
        with self._changed:
            self._changed.wait_for(lambda: len(set(self._leaving)) <= _BEHIND)

    def wait(self, device: ScsiDevice) -> None:
        """Return once a disk is not on its way any more."""
        with self._changed:
            self._changed.wait_for(lambda: device not in self._leaving)

    def wait_all(self, timeout_s: float) -> bool:
        """Return whether no disk is on its way any more, within a time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._leaving, timeout_s)

    def _run(self, devices: Sequence[ScsiDevice], forget: Callable[[ScsiDevice], None]) -> None:
        for device in devices:
            try:
                with contextlib.suppress(OSError, GuestFailure):
                    forget(device)
            finally:
                with self._changed:
                    self._leaving.remove(device)
                    self._changed.notify_all()

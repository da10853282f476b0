"""SCSI slots of a utility VM: (controller, LUN) pairs, the lowest free one first.

Hyper-V gives a virtual machine at most 4 SCSI controllers of 64 LUNs each. A slot that something
else owns (the root file system's disk, usually controller 0 LUN 0) is reserved: never handed out.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection
from dataclasses import dataclass

from harness.errors import UsageError

MAX_CONTROLLERS = 4
LUNS_PER_CONTROLLER = 64


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """One place for a disk: controller 0-3, LUN 0-63."""

    controller: int
    lun: int

    def __str__(self) -> str:
        return f"controller {self.controller} LUN {self.lun}"


class LowestFree:
    """Hands out the lowest number from 0 that is not in use; `limit` None means without end."""

    def __init__(self, *, limit: int | None, reserved: Collection[int] = ()) -> None:
        self._limit = limit
        self._reserved = frozenset(reserved)
        self._next = 0
        self._returned: list[int] = []  # a heap; every entry is below _next

    def take(self) -> int | None:
        """Return a number that is now in use, or None when all are."""
        if self._returned:
            return heapq.heappop(self._returned)
        while self._next in self._reserved:
            self._next += 1
        if self._limit is not None and self._next >= self._limit:
            return None
        self._next += 1
        return self._next - 1

    def give_back(self, number: int) -> None:
        """Make a number that `take` returned free again."""
        heapq.heappush(self._returned, number)


class SlotTable:
    """The free slots of one virtual machine."""

    def __init__(self, *, controllers: int, reserved: Collection[Slot] = ()) -> None:
        if not 0 <= controllers <= MAX_CONTROLLERS:
            raise UsageError(
                f"{controllers} SCSI controllers: a virtual machine has 0 to {MAX_CONTROLLERS}"
            )
        for slot in reserved:
            if not (0 <= slot.controller < controllers and 0 <= slot.lun < LUNS_PER_CONTROLLER):
                raise UsageError(
                    f"cannot reserve {slot}: the virtual machine has {controllers} controllers "
                    f"of {LUNS_PER_CONTROLLER} LUNs"
                )
        self.reserved = frozenset(reserved)
        self.capacity = controllers * LUNS_PER_CONTROLLER - len(self.reserved)
        self._numbers = LowestFree(
            limit=controllers * LUNS_PER_CONTROLLER,
            reserved=[slot.controller * LUNS_PER_CONTROLLER + slot.lun for slot in self.reserved],
        )

    def take(self) -> Slot | None:
        """Return the lowest free slot (lowest controller, then lowest LUN), or None if none is."""
        number = self._numbers.take()
        return None if number is None else Slot(*divmod(number, LUNS_PER_CONTROLLER))

    def give_back(self, slot: Slot) -> None:
        """Make a slot that `take` returned free again."""
        self._numbers.give_back(slot.controller * LUNS_PER_CONTROLLER + slot.lun)

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.scsi.slots import LowestFree, Slot, SlotTable


def test_slots_come_lowest_controller_then_lowest_lun() -> None:
    table = SlotTable(controllers=2)
    taken = [table.take() for _ in range(128)]
    assert taken == [Slot(controller, lun) for controller in (0, 1) for lun in range(64)]
    assert table.take() is None


def test_a_slot_freed_in_the_middle_is_the_next_one_handed_out() -> None:
    table = SlotTable(controllers=4)
    for _ in range(256):
        table.take()
    for slot in (Slot(3, 1), Slot(1, 7), Slot(2, 0)):
        table.give_back(slot)
    assert [table.take() for _ in range(4)] == [Slot(1, 7), Slot(2, 0), Slot(3, 1), None]


def test_reserved_slots_are_never_handed_out() -> None:
    table = SlotTable(controllers=1, reserved=[Slot(0, 0), Slot(0, 2)])
    taken = [table.take() for _ in range(table.capacity)]
    assert taken[:2] == [Slot(0, 1), Slot(0, 3)]
    assert table.capacity == 62
    assert table.take() is None


def test_no_controllers_means_no_slot() -> None:
    assert SlotTable(controllers=0).take() is None


@pytest.mark.parametrize("controllers", [-1, 5])
def test_a_machine_has_at_most_four_controllers(controllers: int) -> None:
    with pytest.raises(UsageError, match="0 to 4"):
        SlotTable(controllers=controllers)


@pytest.mark.parametrize("slot", [Slot(1, 0), Slot(0, 64), Slot(-1, 0)])
def test_a_reserved_slot_must_exist(slot: Slot) -> None:
    with pytest.raises(UsageError, match="cannot reserve"):
        SlotTable(controllers=1, reserved=[slot])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9)), st.sets(st.integers(0, 9)))
def test_the_lowest_free_number_is_always_given(moves: list[int], reserved: set[int]) -> None:
    numbers = LowestFree(limit=10, reserved=reserved)
    used: set[int] = set()
    for move in moves:
        if move in used:
            used.remove(move)
            numbers.give_back(move)
        else:
            free = set(range(10)) - used - reserved
            number = numbers.take()
            assert number == (min(free) if free else None)
            if number is not None:
                used.add(number)

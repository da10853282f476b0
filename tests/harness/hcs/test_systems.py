"""Systems by id and their events, as every compute service keeps them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.errors import ComputeServiceError, SystemNotFoundError, UsageError
from harness.hcs.service import EventType
from harness.hcs.systems import EventLog, SystemTable


def test_events_are_numbered_and_read_from_a_cursor() -> None:
    log = EventLog("s")
    for kind in (EventType.STARTED, EventType.CRASHED, EventType.EXITED):
        log.report(kind, {"kind": kind})
    assert [each.sequence for each in log.read(after=0, timeout_s=0)] == [1, 2, 3]
    (last,) = log.read(after=2, timeout_s=0)
    assert (last.system_id, last.type, last.data) == (
        "s",
        EventType.EXITED,
        {"kind": "SystemExited"},
    )
    assert log.read(after=3, timeout_s=0) == []
    assert log.read(after=9, timeout_s=0.01) == []


def test_who_waits_gets_the_next_event() -> None:
    log = EventLog("s")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(log.read, after=0, timeout_s=30)
        log.report(EventType.STARTED, {})
        assert [each.type for each in waiting.result(10)] == [EventType.STARTED]


def test_who_waits_for_a_forgotten_system_is_told() -> None:
    log = EventLog("s")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(log.read, after=0, timeout_s=30)
        log.close()
        with pytest.raises(SystemNotFoundError, match="no system s"):
            waiting.result(10)
    with pytest.raises(SystemNotFoundError):
        log.read(after=0, timeout_s=0)


def refuse(system: object) -> None:
    raise AssertionError(f"{system} was to be kept")


def test_a_system_that_is_made_while_the_table_closes_is_closed_too() -> None:
    table: SystemTable[str] = SystemTable()
    closed: list[str] = []
    with table.creating("s"):
        assert table.close(refuse) == []
        with pytest.raises(UsageError, match="closed meanwhile"):
            table.add("s", "made", close=closed.append)
    assert closed == ["made"]
    assert table.all() == []


def test_an_id_is_in_use_from_the_beginning_of_its_creation() -> None:
    table: SystemTable[object] = SystemTable()
    with table.creating("s"):
        with pytest.raises(ComputeServiceError) as here, table.creating("s"):
            pass
        with pytest.raises(SystemNotFoundError):
            table.find("s")
        assert table.all() == []
        assert table.ids() == {"s"}
    assert here.value.hresult == 0x8037010F
    with pytest.raises(RuntimeError), table.creating("s"):
        raise RuntimeError
    with table.creating("s"):
        table.add("s", made := object(), close=refuse)
    assert table.find("s") is made
    with pytest.raises(ComputeServiceError), table.creating("s"):
        pass
    table.forget("s")
    table.forget("s")
    assert table.ids() == frozenset()


def test_a_closed_table_takes_no_system_and_closes_every_one_there_is() -> None:
    table: SystemTable[str] = SystemTable()
    for name in ("a", "b", "c"):
        with table.creating(name):
            table.add(name, name, close=refuse)

    def close(name: str) -> None:
        if name == "b":
            raise ComputeServiceError("it does not end")
        table.forget(name)

    assert [str(error) for error in table.close(close)] == ["it does not end"]
    assert table.all() == ["b"]
    with pytest.raises(UsageError, match="closed"), table.creating("d"):
        pass
    assert table.close(table.forget) == []
    assert table.all() == []


def test_of_many_that_want_an_id_one_has_it() -> None:
    table: SystemTable[int] = SystemTable()
    together = threading.Barrier(8)

    def create(number: int) -> bool:
        together.wait(10)
        try:
            with table.creating("s"):
                table.add("s", number, close=refuse)
        except ComputeServiceError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(8))) == 1

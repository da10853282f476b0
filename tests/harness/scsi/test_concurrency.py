"""Threads that meet on one disk: joins, cancellations, detaches in flight, a VM that dies."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.errors import ComputeServiceError, DiskError, GuestError
from harness.scsi import MountConfig, ScsiManager, ScsiMount
from tests.fakes.scsi_host import FakeScsiHost

MakeDisk = Callable[[str], Path]
PLAIN = MountConfig()
REFUSED = ComputeServiceError("sharing violation", hresult=0x80070020)
GUEST = GuestError("I/O error", hresult=0x80004005, request="ModifySettings")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as executor:
        yield executor


class Cancelled(BaseException):
    """What a signal handler raises in a waiting thread."""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.001)


def waiting(manager: ScsiManager, disk: Path) -> int:
    attachment = manager.snapshot().of(disk)
    return 0 if attachment is None else attachment.waiting


def acquire(
    pool: ThreadPoolExecutor, manager: ScsiManager, disk: Path, holder: str, **options: float
) -> Future[ScsiMount]:
    return pool.submit(
        lambda: manager.acquire(
            disk, holder=holder, mount=PLAIN, timeout_s=options.get("timeout_s")
        )
    )


@pytest.mark.parametrize("operation", ["attach", "mount"])
def test_a_joiner_returns_only_when_the_first_ones_disk_is_attached_and_mounted(
    vm: FakeScsiHost,
    manager: ScsiManager,
    disk: Path,
    pool: ThreadPoolExecutor,
    operation: str,
) -> None:
    """hcsshim #1483: the second caller returned before the first attach had finished."""
    point = vm.block(operation)
    first = acquire(pool, manager, disk, "first")
    assert point.entered.wait(10)
    others = [acquire(pool, manager, disk, f"joiner {n}") for n in range(8)]
    until(lambda: waiting(manager, disk) == 9)
    assert manager.holders(disk) == (), "counts change after the I/O, not before"
    assert not any(each.done() for each in others)
    point.resume.set()
    held = [each.result(10) for each in [first, *others]]
    assert (vm.count("attach"), vm.count("mount")) == (1, 1)
    assert len(manager.holders(disk)) == 9
    manager.release_all(held)
    assert vm.empty


@pytest.mark.parametrize(("operation", "error"), [("attach", REFUSED), ("mount", GUEST)])
def test_c2_joiners_share_the_failure_and_the_table_is_empty(
    vm: FakeScsiHost,
    manager: ScsiManager,
    disk: Path,
    pool: ThreadPoolExecutor,
    operation: str,
    error: Exception,
) -> None:
    """(C) 2: after a failed attach with two reservations the second unmap crashed."""
    point = vm.block(operation)
    vm.fail(operation, error)
    first = acquire(pool, manager, disk, "first")
    assert point.entered.wait(10)
    others = [acquire(pool, manager, disk, f"joiner {n}") for n in range(8)]
    until(lambda: waiting(manager, disk) == 9)
    point.resume.set()
    for each in [first, *others]:
        with pytest.raises(DiskError, match=str(error.args[0]).split(":")[-1].split("(")[0]):
            each.result(10)
    assert manager.snapshot().attachments == ()
    assert vm.empty
    assert vm.count(operation) == 1


@pytest.mark.parametrize("operation", ["attach", "mount"])
def test_b1_a_waiter_that_times_out_leaks_no_count(
    vm: FakeScsiHost,
    manager: ScsiManager,
    disk: Path,
    pool: ThreadPoolExecutor,
    operation: str,
) -> None:
    """(B) 1: a cancelled waiter left a count; a mounted disk was then unplugged and detached."""
    point = vm.block(operation)
    first = acquire(pool, manager, disk, "first")
    assert point.entered.wait(10)
    with pytest.raises(DiskError, match=r"still being (attached|mounted) for first"):
        manager.acquire(disk, holder="late", mount=PLAIN, timeout_s=0.05)
    point.resume.set()
    held = first.result(10)
    assert manager.holders(disk) == ("first",)
    assert held.guest_path in vm.mounts
    held.release()
    assert vm.empty


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals sent to a thread")
@pytest.mark.parametrize("operation", ["attach", "mount"])
def test_b1_a_waiter_that_is_cancelled_leaks_no_count(
    vm: FakeScsiHost,
    manager: ScsiManager,
    disk: Path,
    pool: ThreadPoolExecutor,
    operation: str,
) -> None:
    def cancel(_number: int, _frame: object) -> None:
        raise Cancelled

    before = signal.signal(signal.SIGUSR1, cancel)
    try:
        point = vm.block(operation)
        first = acquire(pool, manager, disk, "first")
        assert point.entered.wait(10)

        def interrupt() -> None:
            until(lambda: waiting(manager, disk) == 2)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

        interruption = pool.submit(interrupt)
        with pytest.raises(Cancelled):
            manager.acquire(disk, holder="cancelled", mount=PLAIN)
        interruption.result(10)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert waiting(manager, disk) == 1
    point.resume.set()
    held = first.result(10)
    assert held.guest_path in vm.mounts
    held.release()
    assert vm.empty


def test_the_last_waiter_takes_the_disk_out_when_the_first_released_meanwhile(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path, pool: ThreadPoolExecutor
) -> None:
    attached = manager.acquire(disk, holder="attached only")
    point = vm.block("mount")
    vm.fail("mount", GUEST)
    mounting = acquire(pool, manager, disk, "c1")
    assert point.entered.wait(10)
    attached.release()
    assert len(vm.disks) == 1, "a mount of it is in flight"
    point.resume.set()
    with pytest.raises(DiskError):
        mounting.result(10)
    assert vm.empty


def test_an_interrupted_first_one_says_nothing_about_the_disk_its_joiner_attaches_it(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path, pool: ThreadPoolExecutor
) -> None:
    for happens in (False, True):
        for operation in ("attach", "mount"):
            point = vm.block(operation)
            vm.fail(operation, KeyboardInterrupt(), happens=happens)
            first = acquire(pool, manager, disk, "first")
            assert point.entered.wait(10)
            joiner = acquire(pool, manager, disk, "joiner")
            until(lambda: waiting(manager, disk) == 2)
            point.resume.set()
            with pytest.raises(KeyboardInterrupt):
                first.result(10)
            held = joiner.result(10)
            assert manager.holders(disk) == ("joiner",)
            assert held.guest_path in vm.mounts
            held.release()
            assert vm.empty


@pytest.mark.parametrize("operation", ["eject", "detach"])
@pytest.mark.parametrize("read_only", [False, True])
def test_an_add_that_meets_a_detach_in_flight_waits_and_attaches_afresh(
    vm: FakeScsiHost,
    manager: ScsiManager,
    disk: Path,
    pool: ThreadPoolExecutor,
    operation: str,
    read_only: bool,
) -> None:
    held = manager.acquire(disk, holder="old", mount=PLAIN)
    point = vm.block(operation)
    leaving = pool.submit(held.release)
    assert point.entered.wait(10)
    coming = pool.submit(
        lambda: manager.acquire(disk, holder="new", read_only=read_only, mount=PLAIN)
    )
    time.sleep(0.02)
    assert not coming.done()
    point.resume.set()
    leaving.result(10)
    fresh = coming.result(10)
    assert vm.count("attach") == 2
    assert manager.holders(disk) == ("new",)
    fresh.release()
    assert vm.empty


def test_an_add_that_meets_an_unmount_in_flight_keeps_the_disk_attached(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path, pool: ThreadPoolExecutor
) -> None:
    held = manager.acquire(disk, holder="old", mount=PLAIN)
    point = vm.block("unmount")
    leaving = pool.submit(held.release)
    assert point.entered.wait(10)
    coming = acquire(pool, manager, disk, "new")
    until(lambda: waiting(manager, disk) == 1)
    point.resume.set()
    leaving.result(10)
    fresh = coming.result(10)
    assert (vm.count("attach"), vm.count("mount"), vm.count("detach")) == (1, 2, 0)
    fresh.release()
    assert vm.empty


def test_an_add_that_meets_a_detach_in_flight_gives_up_at_its_deadline(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path, pool: ThreadPoolExecutor
) -> None:
    held = manager.acquire(disk, holder="old")
    point = vm.block("detach")
    leaving = pool.submit(held.release)
    assert point.entered.wait(10)
    with pytest.raises(DiskError, match="still being detached for old"):
        manager.acquire(disk, holder="new", timeout_s=0.05)
    point.resume.set()
    leaving.result(10)
    assert vm.empty


def test_an_add_whose_path_is_being_unmounted_waits_for_it(
    vm: FakeScsiHost, manager: ScsiManager, make_disk: MakeDisk, pool: ThreadPoolExecutor
) -> None:
    held = manager.acquire(make_disk("a"), holder="a", mount=PLAIN, guest_path="/mnt")
    point = vm.block("unmount")
    leaving = pool.submit(held.release)
    assert point.entered.wait(10)
    other = make_disk("b")
    coming = pool.submit(lambda: manager.acquire(other, holder="b", mount=PLAIN, guest_path="/mnt"))
    until(lambda: waiting(manager, other) == 1 and vm.count("attach") == 2)
    point.resume.set()
    leaving.result(10)
    with coming.result(10) as fresh:
        assert fresh.guest_path == "/mnt"
    assert vm.empty


def test_no_disk_waits_for_another_disks_io(
    vm: FakeScsiHost, manager: ScsiManager, make_disk: MakeDisk, pool: ThreadPoolExecutor
) -> None:
    """(B) held its mutex across unplug and detach, (C) across everything."""
    held = manager.acquire(make_disk("held"), holder="h", mount=PLAIN)
    points = {operation: vm.block(operation) for operation in ("attach", "unmount")}
    blocked = acquire(pool, manager, make_disk("blocked"), "b")
    leaving = pool.submit(held.release)
    assert all(point.entered.wait(10) for point in points.values())
    with manager.acquire(make_disk("free"), holder="f", mount=PLAIN):
        assert manager.holders(make_disk("free")) == ("f",)
    for point in points.values():
        point.resume.set()
    leaving.result(10)
    blocked.result(10).release()
    assert vm.empty


def test_one_share_released_by_two_threads_is_released_once(
    vm: FakeScsiHost, manager: ScsiManager, disk: Path, pool: ThreadPoolExecutor
) -> None:
    for operation in ("unmount", "eject", "detach"):
        held = manager.acquire(disk, holder="a", mount=PLAIN)
        point = vm.block(operation)
        releases = [pool.submit(held.release) for _ in range(4)]
        assert point.entered.wait(10)
        point.resume.set()
        for each in releases:
            each.result(10)
        assert vm.empty


@pytest.mark.parametrize("operation", ["attach", "mount", "unmount", "eject", "detach"])
def test_a_vm_that_dies_in_the_middle_releases_everybody_who_waits(
    vm: FakeScsiHost,
    manager: ScsiManager,
    disk: Path,
    pool: ThreadPoolExecutor,
    operation: str,
) -> None:
    adding = operation in ("attach", "mount")
    held = None if adding else manager.acquire(disk, holder="old", mount=PLAIN)
    point = vm.block(operation)
    worker = acquire(pool, manager, disk, "first") if held is None else pool.submit(held.release)
    assert point.entered.wait(10)
    waiters = [acquire(pool, manager, disk, f"waiter {n}") for n in range(4)]
    time.sleep(0.02)
    vm.die()
    manager.abandon("it exited")
    for each in waiters:
        with pytest.raises(DiskError, match="the utility VM is gone"):
            each.result(10)
    assert manager.snapshot().attachments == (), "not even while the I/O has not come back"
    point.resume.set()
    if held is None:
        with pytest.raises(DiskError, match="the utility VM is gone"):
            worker.result(10)
    else:
        worker.result(10)
        assert held.released
    assert manager.snapshot().attachments == ()
    assert manager.snapshot().free_slots == 256


def test_16_threads_on_8_disks_under_faults_break_no_rule_and_end_empty(
    vm: FakeScsiHost, manager: ScsiManager, make_disk: MakeDisk
) -> None:
    disks = [make_disk(f"{n}") for n in range(8)]
    errors = {
        "attach": REFUSED,
        "detach": REFUSED,
        "mount": GUEST,
        "unmount": GUEST,
        "eject": GUEST,
    }
    vm.latency_s = 0.0005
    barrier = threading.Barrier(16)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        held: list[ScsiMount] = []
        try:
            barrier.wait(10)
            for _ in range(150):
                try:
                    if chance.random() < 0.1:
                        operation = chance.choice(list(errors))
                        vm.fail(operation, errors[operation])
                    if held and chance.random() < 0.5:
                        chance.shuffle(held)
                        manager.release_all(held[: chance.randint(1, 3)])
                        held = [each for each in held if not each.released]
                    else:
                        held.append(
                            manager.acquire(
                                chance.choice(disks),
                                holder=f"thread {seed}",
                                mount=chance.choice([None, PLAIN, MountConfig(partition=1)]),
                                timeout_s=chance.choice([0.0005, 5]),
                            )
                        )
                except DiskError:
                    held = [each for each in held if not each.released]
            vm.clear_faults()
            while held:
                try:
                    manager.release_all(held)
                except DiskError:
                    vm.clear_faults()
                held = [each for each in held if not each.released]
        except BaseException as error:  # noqa: BLE001 -- reported by the main thread
            failures.append(error)

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(switch)
    assert failures == []
    assert not any(thread.is_alive() for thread in threads), "somebody waits for ever"
    vm.clear_faults()
    manager.reclaim()
    assert manager.snapshot().attachments == ()
    assert vm.empty

"""The end of a kernel is found in its console, however the bytes are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.hcs.panic import PanicScanner

PANIC = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100"
CONSOLE = f"[    0.1] Linux version 6.1\r\n[    2.5] {PANIC}\r\n[    2.6] CPU: 0\r\n".encode()


@given(cuts=st.lists(st.integers(0, len(CONSOLE)), max_size=8))
def test_a_panic_is_found_once_wherever_the_output_is_cut(cuts: list[int]) -> None:
    scanner = PanicScanner()
    edges = [0, *sorted(cuts), len(CONSOLE)]
    parts = [CONSOLE[a:b] for a, b in itertools.pairwise(edges)]
    found = [message for part in parts if (message := scanner.feed(part)) is not None]
    assert found == [PANIC]


@pytest.mark.parametrize(
    "line",
    [
        "BUG: unable to handle page fault for address: ffffffffc0000000",
        "BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "kernel BUG at fs/ext4/inode.c:2345!",
        "Oops: 0002 [#1] PREEMPT SMP NOPTI",
        "general protection fault, probably for non-canonical address 0xdead: 0000 [#1]",
    ],
)
def test_what_a_kernel_does_not_survive_is_fatal(line: str) -> None:
    assert PanicScanner().feed(f"[    1.0] {line}\n".encode()) == line


@pytest.mark.parametrize(
    "line",
    [
        "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [python3:77]",
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "Out of memory: Killed process 99 (sh)",
        "a program that says panic",
    ],
)
def test_what_a_loaded_host_or_a_program_causes_is_not(line: str) -> None:
    assert PanicScanner().feed(line.encode() + b"\n") is None


def test_a_panic_in_the_last_line_counts_without_its_end() -> None:
    scanner = PanicScanner()
    assert scanner.feed(PANIC.encode()) is None
    assert scanner.finish() == PANIC


def test_a_line_without_end_does_not_fill_memory() -> None:
    scanner = PanicScanner()
    for _ in range(100):
        assert scanner.feed(b"x" * 65536) is None
    assert scanner.feed(f"\n{PANIC}\n".encode()) == PANIC

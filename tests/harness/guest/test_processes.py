"""Processes of the utility VM: streams, exit codes, signals, terminals."""

# ruff: noqa: E402 - the assertion below comes first on purpose

from __future__ import annotations

import sys

assert sys.platform == "linux"  # before the imports: a type checker for another system stops here

import threading
import time

import pytest

from harness.errors import GuestError
from harness.gcs.prot import HResult, StdioPorts
from tests.harness.guest.conftest import Guest, read_all


def test_output_errors_and_exit_code_come_back(guest: Guest) -> None:
    code, output, errors = guest.run(None, ["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (code, output, errors) == (3, b"out\n", b"err\n")


def test_environment_and_directory_are_used(guest: Guest) -> None:
    _, output, _ = guest.run(None, ["sh", "-c", "echo $A; pwd"], env={"A": "b c"}, cwd="/usr")
    assert output == b"b c\n/usr\n"


def test_a_killed_process_exits_with_128_and_the_signal(guest: Guest) -> None:
    process = guest.client.execute_process(None, args=["sleep", "60"])
    guest.client.signal_process(None, process, 15)
    assert guest.client.wait_process(None, process, timeout_s=5) == 143


def test_a_wait_that_is_over_before_the_process_says_so(guest: Guest) -> None:
    process = guest.client.execute_process(None, args=["sleep", "60"])
    with pytest.raises(GuestError) as info:
        guest.client.wait_process(None, process, timeout_s=0.05)
    assert info.value.hresult == HResult.TIMEOUT
    guest.client.signal_process(None, process)
    assert guest.client.wait_process(None, process, timeout_s=5) == 137


def test_several_waits_get_the_same_exit_code_even_late(guest: Guest) -> None:
    process = guest.client.execute_process(None, args=["sh", "-c", "exit 9"])
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(guest.client.wait_process(None, process)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert [*codes, guest.client.wait_process(None, process)] == [9] * 5


def test_a_program_that_does_not_exist_is_an_error_at_once(guest: Guest) -> None:
    with pytest.raises(GuestError, match="/no/such: no such program") as info:
        guest.client.execute_process(None, args=["/no/such"])
    assert info.value.hresult == HResult.NOT_FOUND


def test_no_command_and_an_unknown_process_are_errors(guest: Guest) -> None:
    with pytest.raises(GuestError, match="no command"):
        guest.client.execute_process(None)
    for action in (
        lambda: guest.client.wait_process(None, 999_999, timeout_s=1),
        lambda: guest.client.signal_process(None, 999_999),
        lambda: guest.client.resize_console(None, 999_999, height=1, width=1),
    ):
        with pytest.raises(GuestError) as info:
            action()
        assert info.value.hresult == HResult.NOT_FOUND


def test_signalling_a_process_that_has_exited_is_an_error(guest: Guest) -> None:
    process = guest.client.execute_process(None, args=["true"])
    guest.client.wait_process(None, process, timeout_s=5)
    with pytest.raises(GuestError, match="has exited"):
        guest.client.signal_process(None, process)


def test_input_reaches_the_process_and_its_end_too(guest: Guest) -> None:
    streams = guest.streams()
    process = guest.client.execute_process(None, args=["cat"], stdio=streams.ports)
    sender = threading.Thread(target=lambda: streams.stdin.sendall(b"x" * 300_000))
    sender.start()
    received = b""
    while len(received) < 300_000:
        received += streams.stdout.recv(65536)
    sender.join(5)
    streams.stdin.close()
    assert read_all(streams.stdout) == b""
    assert guest.client.wait_process(None, process, timeout_s=5) == 0


def test_a_process_counts_as_exited_only_when_its_output_is_read(guest: Guest) -> None:
    streams = guest.streams()
    process = guest.client.execute_process(
        None, args=["head", "-c", "4000000", "/dev/zero"], stdio=streams.ports
    )
    with pytest.raises(GuestError) as info:
        guest.client.wait_process(None, process, timeout_s=0.3)
    assert info.value.hresult == HResult.TIMEOUT
    streams.stderr.close()
    assert len(streams.output()) == 4_000_000
    assert guest.client.wait_process(None, process, timeout_s=5) == 0


def test_a_host_that_drops_the_output_stops_the_process(guest: Guest) -> None:
    streams = guest.streams()
    process = guest.client.execute_process(None, args=["yes"], stdio=streams.ports)
    streams.stdout.close()
    assert guest.client.wait_process(None, process, timeout_s=10) == 128 + 13


def test_a_daemon_that_keeps_the_output_open_does_not_hold_the_exit(guest: Guest) -> None:
    streams = guest.streams()
    started = time.monotonic()
    process = guest.client.execute_process(
        None, args=["sh", "-c", "echo up; sleep 20 & exit 0"], stdio=streams.ports
    )
    assert streams.output() == b"up\n"
    streams.stderr.close()
    assert guest.client.wait_process(None, process, timeout_s=10) == 0
    assert time.monotonic() - started < 8


def test_a_port_nobody_listens_on_fails_the_request_and_starts_nothing(guest: Guest) -> None:
    with pytest.raises(GuestError, match="stderr cannot be connected"):
        guest.client.execute_process(
            None, args=["touch", str(guest.os.root / "ran")], stdio=StdioPorts(stderr=77)
        )
    assert not (guest.os.root / "ran").exists()


def test_a_terminal_has_a_size_that_can_change(guest: Guest) -> None:
    streams = guest.streams()
    ports = StdioPorts(stdin=streams.ports.stdin, stdout=streams.ports.stdout)
    process = guest.client.execute_process(
        None, args=["sh", "-c", "read a; stty size; tty; exit 4"], terminal=True, stdio=ports
    )
    guest.client.resize_console(None, process, height=33, width=121)
    streams.stdin.sendall(b"go\n")
    output = read_all(streams.stdout)
    assert b"33 121\r\n/dev/pts/" in output
    assert guest.client.wait_process(None, process, timeout_s=5) == 4


def test_a_process_without_a_terminal_has_no_size(guest: Guest) -> None:
    process = guest.client.execute_process(None, args=["sleep", "60"])
    with pytest.raises(GuestError, match="no terminal"):
        guest.client.resize_console(None, process, height=1, width=1)
    guest.client.signal_process(None, process)
    assert guest.client.wait_process(None, process, timeout_s=5) == 137


def test_many_processes_at_once_keep_their_streams_apart(guest: Guest) -> None:
    results: dict[int, tuple[int, bytes, bytes]] = {}

    def run(number: int) -> None:
        results[number] = guest.run(
            None, ["sh", "-c", f"yes {number} | head -c 50000; echo e{number} >&2; exit {number}"]
        )

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for number in range(8):
        code, output, errors = results[number]
        assert (code, errors) == (number, f"e{number}\n".encode())
        assert output == (f"{number}\n".encode() * 50_000)[:50_000]


def test_no_descriptor_is_left_behind(guest: Guest) -> None:
    def descriptors() -> int:
        return len(list(guest.os.root.joinpath("/proc/self/fd").iterdir()))

    guest.run(None, ["true"])
    before = descriptors()
    for _ in range(10):
        guest.run(None, ["echo", "x"])
        with pytest.raises(GuestError):
            guest.client.execute_process(None, args=["cat"], stdio=StdioPorts(stdin=5))
    assert descriptors() <= before + 2  # the last process's streams may still be closing

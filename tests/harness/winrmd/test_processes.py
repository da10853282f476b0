from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.winrmd.faults import WsmanFault
from harness.winrmd.processes import Descriptors, Job, Received, RunningCommand, windows_exit_code

Start = Callable[..., RunningCommand]
_BOTH = ("stdout", "stderr")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that runs a shell script, or a body, as a command."""
    started: list[RunningCommand] = []

    def begin(script: str = "", *, body: Callable[[Descriptors, Job], int] | None = None) -> object:
        def run(io: Descriptors, job: Job) -> int:
            argv = ["/bin/sh", "-c", script]
            process = job.start(argv, directory=tmp_path, environment=os.environ, descriptors=io)
            return job.wait(process)

        command = RunningCommand("id", body or run)
        started.append(command)
        command.start()
        return command

    yield begin  # type: ignore[misc]
    for command in started:
        command.close()


def receive(command: RunningCommand, *, limit: int = 1 << 16, wait_s: float = 5) -> Received:
    return command.receive(_BOTH, limit=limit, deadline=time.monotonic() + wait_s)


def everything(command: RunningCommand) -> tuple[bytes, bytes, int]:
    out = {"stdout": b"", "stderr": b""}
    while True:
        received = receive(command)
        for chunk in received.chunks:
            out[chunk.stream] += chunk.data
        if received.exit_code is not None:
            return out["stdout"], out["stderr"], received.exit_code


def test_output_and_exit_code_come_back(start: Start) -> None:
    assert everything(start("echo out; echo err >&2; exit 7")) == (b"out\n", b"err\n", 7)


def test_each_stream_ends_once(start: Start) -> None:
    command = start("true")
    received = receive(command)
    assert [(chunk.stream, chunk.end) for chunk in received.chunks] == [
        ("stdout", True),
        ("stderr", True),
    ]
    assert receive(command).chunks == ()


def test_nothing_to_say_is_a_time_out_and_no_end(start: Start) -> None:
    command = start("read line; echo $line")
    with pytest.raises(WsmanFault) as caught:
        receive(command, wait_s=0.05)
    assert caught.value.code == 2150858793
    command.send(b"hello\n", end=True, deadline=time.monotonic() + 5)
    assert everything(command) == (b"hello\n", b"", 0)


def test_a_reply_is_never_larger_than_asked(start: Start) -> None:
    command = start("head -c 5000 /dev/zero")
    sizes = []
    while (received := receive(command, limit=1000)).exit_code is None:
        sizes.append(sum(len(chunk.data) for chunk in received.chunks))
    sizes.append(sum(len(chunk.data) for chunk in received.chunks))
    assert max(sizes) <= 1000
    assert sum(sizes) == 5000


def test_who_is_not_read_from_waits(start: Start, tmp_path: Path) -> None:
    command = start("head -c 8000000 /dev/zero; touch written")
    time.sleep(0.2)
    assert not (tmp_path / "written").exists()
    out, _, code = everything(command)
    assert (len(out), code) == (8_000_000, 0)
    assert (tmp_path / "written").exists()


def test_input_that_is_not_read_times_out_and_then_goes_on(start: Start) -> None:
    command = start("sleep 0.3; wc -c")
    data = b"x" * 300_000
    with pytest.raises(WsmanFault) as caught:
        command.send(data, end=False, deadline=time.monotonic() + 0.05)
    assert caught.value.code == 2150858793
    command.send(b"", end=True, deadline=time.monotonic() + 5)
    out, _, code = everything(command)
    assert 0 < int(out) < len(data)
    assert code == 0


def test_input_to_a_process_that_is_gone_is_a_fault(start: Start) -> None:
    command = start("exit 0")
    everything(command)
    with pytest.raises(WsmanFault) as caught:
        command.send(b"x", end=False, deadline=time.monotonic() + 5)
    assert caught.value.code == 232


def test_closing_kills_the_whole_group(start: Start, tmp_path: Path) -> None:
    command = start("sleep 60 & echo $! > child; wait")
    deadline = time.monotonic() + 5
    while not (text := (tmp_path / "child").read_text() if (tmp_path / "child").exists() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    command.close()
    while _alive(int(text)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_ctrl_c_shows_as_windows_shows_it(start: Start) -> None:
    command = start("exec sleep 60")
    time.sleep(0.1)
    command.job.interrupt()
    assert everything(command)[2] == 0xC000013A


def test_who_waits_for_output_is_woken_when_the_command_is_closed(start: Start) -> None:
    command = start("exec sleep 60")
    threading.Timer(0.1, command.close).start()
    with pytest.raises(WsmanFault) as caught:
        receive(command)
    assert caught.value.code == 995


def test_a_child_in_the_background_does_not_hold_the_end_back(start: Start) -> None:
    command = start("sleep 30 & echo done")
    begun = time.monotonic()
    assert everything(command) == (b"done\n", b"", 0)
    assert time.monotonic() - begun < 5


def test_held_output_comes_with_the_end(start: Start) -> None:
    command = start("echo a; sleep 0.1; echo b")
    deadline = time.monotonic() + 5
    received = command.receive(_BOTH, limit=1000, deadline=deadline, hold_s=2)
    assert [chunk.data for chunk in received.chunks if not chunk.end] == [b"a\nb\n"]
    assert received.exit_code == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has nothing to reap")
def test_a_process_that_somebody_else_reaped_is_not_said_to_have_succeeded(
    start: Start, tmp_path: Path
) -> None:
    def run(io: Descriptors, job: Job) -> int:
        argv = ["/bin/sh", "-c", "exit 7"]
        process = job.start(argv, directory=tmp_path, environment=os.environ, descriptors=io)
        os.waitpid(process.pid, 0)
        return job.wait(process)

    assert everything(start(body=run))[2] == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has nothing to reap")
def test_who_waits_while_the_job_is_ended_is_told_of_the_kill(tmp_path: Path) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    codes: list[int] = []
    try:
        for _ in range(20):
            job = Job()
            process = job.start(
                ["/bin/sleep", "60"],
                directory=tmp_path,
                environment=os.environ,
                descriptors=Descriptors(null, null, null),
            )
            waiting = [
                threading.Thread(
                    target=lambda *both: codes.append(both[0].wait(both[1])), args=both
                )
                for both in [(job, process)] * 3
            ]
            for thread in waiting:
                thread.start()
            job.end()
            for thread in waiting:
                thread.join()
    finally:
        os.close(null)
    assert codes == [1] * 60


def test_a_body_that_breaks_ends_the_command(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    def body(_io: Descriptors, _job: Job) -> int:
        raise RuntimeError("boom")

    assert everything(start(body=body)) == (b"", b"", 1)
    assert "boom" in caplog.text


@pytest.mark.parametrize(
    ("returncode", "shown"),
    [
        (0, 0),
        (255, 255),
        (-signal.SIGSEGV, 0xC0000005),
        (-signal.SIGINT, 0xC000013A),
        (-signal.SIGKILL, 1),
        (-signal.SIGABRT, 3),
    ],
)
def test_exit_codes_are_those_of_windows(returncode: int, shown: int) -> None:
    assert windows_exit_code(returncode) == shown


def test_no_descriptor_is_left(start: Start) -> None:
    if sys.platform != "linux":
        pytest.skip("counts the descriptors in /proc")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        command = start("echo x")
        everything(command)
        command.close()
    deadline = time.monotonic() + 5
    while len(os.listdir("/proc/self/fd")) > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)

"""How `vhdx` commands end that are interrupted, or find the disk full."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from snapshotter.units import GIB, MIB
from snapshotter.vhdx import (
    VhdxDisk,
    create_child,
    create_vhdx,
    open_chain,
)
from tests.snapshotter.vhdxcommand import COMMAND, failure, run


def big_disk(path: Path) -> Path:
    """Data that takes a while to copy and no room: zeros would be left out."""
    block = random.Random(2).randbytes(MIB)
    with path.open("wb") as file:
        for _ in range(600):
            file.write(block)
    return path


def test_ctrl_c_in_the_middle_of_a_conversion_leaves_nothing(tmp_path: Path) -> None:
    source, out = big_disk(tmp_path / "big.raw"), tmp_path / "out"
    out.mkdir()
    with subprocess.Popen(
        [*COMMAND, "vhdx", "convert", str(source), str(out / "big.vhdx")],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            staged = list(out.iterdir())
            if staged and staged[0].stat().st_size > 8 * MIB:
                break
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert output == ""
    assert errors == "interrupted; nothing half-made was left\n"
    assert os.listdir(out) == []


def interrupt_once(command: list[str], begun: Callable[[], bool]) -> tuple[int, str, str]:
    """Send Ctrl-C to a command when it has `begun`; its exit code, output and errors."""
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while not begun() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


# Ctrl-C comes when the parent has grown that often: no other moment is as sure.
INTERRUPTED = """
import signal, sys
left = int(sys.argv.pop(1))

def watch(event, arguments):
    global left
    if event == "os.truncate":
        left -= 1
        if left == 0:
            signal.raise_signal(signal.SIGINT)

sys.addaudithook(watch)
from snapshotter.cli import main
main()
"""


def test_ctrl_c_in_the_middle_of_a_merge_loses_nothing(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vhdx", tmp_path / "child.vhdx"
    create_vhdx(base, GIB)
    create_child(child, base)
    blocks = [random.Random(number).randbytes(MIB) for number in range(8)]
    with open_chain(child, writable=True) as opened:
        for number, block in enumerate(blocks):
            opened.top.write_at(number * 5 * MIB, block)
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "4", "vhdx", "merge", str(child)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (130, "")
    line = f"interrupted; {child} reads as before: merge it again to end what was begun\n"
    assert done.stderr == line
    with open_chain(child) as opened:
        assert [opened.read_at(n * 5 * MIB, MIB) for n in range(8)] == blocks
    assert run("merge", child).exit_code == 0
    assert run("check", base).exit_code == 0
    with VhdxDisk.open(base) as disk:
        assert [disk.read_at(n * 5 * MIB, MIB) for n in range(8)] == blocks


def test_ctrl_c_in_the_middle_of_an_import_leaves_nothing(tmp_path: Path) -> None:
    """The tar stops in the middle: the command waits for the rest when the signal comes."""
    pipe, out = tmp_path / "layer.tar", tmp_path / "out"
    os.mkfifo(pipe)
    out.mkdir()
    info = tarfile.TarInfo("big")
    info.size = GIB
    stop = threading.Event()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), pipe.open("wb", buffering=0) as stream:
            stream.write(info.tobuf() + bytes([1]) * 12 * MIB)
            stop.wait(60)

    writer = threading.Thread(target=write)
    writer.start()
    command = [*COMMAND, "layer", "import", str(pipe), str(out / "layer.vhd")]
    code, output, errors = interrupt_once(
        command, lambda: any(path.stat().st_size > 8 * MIB for path in out.iterdir())
    )
    stop.set()
    os.close(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))  # lets go of a writer without a reader
    writer.join()
    assert (code, output) == (130, "")
    assert errors == "interrupted; nothing half-made was left\n"
    assert os.listdir(out) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_ends_with_3_and_leaves_nothing(tmp_path: Path) -> None:
    source, small = tmp_path / "disk.raw", tmp_path / "small"
    source.write_bytes(random.Random(3).randbytes(12 * MIB))
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)], check=True)
    try:
        line = failure("convert", source, small / "out.vhdx", code=3)
        assert str(small / "out.vhdx") in line
        assert os.strerror(errno.ENOSPC) in line
        assert os.listdir(small) == []
        assert shutil.disk_usage(small).used == 0
    finally:
        subprocess.run(["umount", str(small)], check=True)

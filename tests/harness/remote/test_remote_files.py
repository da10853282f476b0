"""Files over a real endpoint: whole after drops, and faster than pypsrp's own copy."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from harness.remote.deadline import Deadline
from harness.remote.files import HostFiles
from harness.remote.winrm import WinRM
from harness.winrmd.knobs import Strike, Trouble
from tests.harness.remote.conftest import QUICK, PretendHost

MIB = 1 << 20
ROOT = "C:\\ProgramData\\lcowlab"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source.bin"
    file.write_bytes(random.Random(8).randbytes(4 * MIB) + b"a line of text\n" * (4 * MIB // 15))
    return file


def files(win: WinRM, *, pull_address: str | None = None, text: bool = False) -> HostFiles:
    return HostFiles(
        win,
        python="python",
        root=ROOT,
        pull_address=pull_address,
        streams=3,
        text=text,
        policy=QUICK,
    )


def test_8_mib_go_there_and_back_over_sealed_streams(
    sealed: PretendHost, win: WinRM, source: Path, tmp_path: Path
) -> None:
    host = files(win)
    placed = ROOT + "\\placed\\file.bin"
    sent = host.put(source, placed, deadline=Deadline.after(30))
    assert sent.way == "streams"
    there = sealed.root / "ProgramData" / "lcowlab" / "placed" / "file.bin"
    assert there.read_bytes() == source.read_bytes()
    host.get(placed, tmp_path / "back", deadline=Deadline.after(30))
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert host.put(source, deadline=Deadline.after(30)).moved == 0


def test_both_ways_go_on_after_drops(
    sealed: PretendHost, win: WinRM, source: Path, tmp_path: Path
) -> None:
    host = files(win, text=True)
    knobs = sealed.server.config.knobs
    host.transport.run(["hostname"], deadline=Deadline.after(10))
    knobs.plan(Strike(Trouble.DROP_AFTER, "Send", nth=9))
    knobs.plan(Strike(Trouble.DROP_BEFORE, "Send", nth=12))
    host.put(source, "C:\\there.bin", deadline=Deadline.after(30))
    knobs.plan(Strike(Trouble.DROP_AFTER, "Receive", nth=6))
    knobs.plan(Strike(Trouble.DROP_BEFORE, "Receive", nth=9))
    host.get("C:\\there.bin", tmp_path / "back", deadline=Deadline.after(30))
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert len(host.attempts.failed) >= 3


def test_the_host_pulls_over_https(sealed: PretendHost, win: WinRM, source: Path) -> None:
    host = files(win, pull_address="127.0.0.1")
    assert host.put(source, "C:\\there.bin", deadline=Deadline.after(30)).way == "pull"
    assert (sealed.root / "there.bin").read_bytes() == source.read_bytes()

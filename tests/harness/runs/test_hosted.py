"""A run on a host ends by itself where nobody has a claim to it any more."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.runs.hosted import Watch

MINE = {"token": 3, "state": "busy", "until_s": 1e12}


@pytest.fixture(autouse=True)
def heard_interrupts() -> Iterator[None]:
    """As `serve` has it: whoever starts the tests in the background ignores SIGINT for them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def write(base: Path, *, lease: dict[str, object] | None = None, pid: int = 7) -> Path:
    for name in ("lease", "agent", "run"):
        (base / name).mkdir(exist_ok=True)
    (base / "lease" / "lease.json").write_text(json.dumps(lease or MINE))
    (base / "agent" / "identity.json").write_text(json.dumps({"pid": pid}))
    return base


def wait_under_watch(base: Path) -> str:
    """Why what waits for ever was ended."""
    watch = Watch(base, base / "run", token=3, agent=7)
    with pytest.raises(KeyboardInterrupt), watch:
        threading.Event().wait(60)
    return watch.why


def test_it_ends_when_somebody_cancels_it(tmp_path: Path) -> None:
    (write(tmp_path) / "run" / "cancel").touch()
    assert wait_under_watch(tmp_path) == "cancelled"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"token": 4}, "no longer that of who began it"),
        ({"state": "free"}, "no longer that of who began it"),
        ({"state": "dirty"}, "no longer that of who began it"),
        ({"until_s": 0.0}, "ran out"),
    ],
)
def test_it_ends_with_its_lease(tmp_path: Path, change: dict[str, object], why: str) -> None:
    assert why in wait_under_watch(write(tmp_path, lease={**MINE, **change}))


def test_it_ends_with_the_agent_that_started_it(tmp_path: Path) -> None:
    assert "started anew" in wait_under_watch(write(tmp_path, pid=8))


def test_it_goes_on_under_a_lease_that_is_kept_or_cannot_be_read_for_a_moment(
    tmp_path: Path,
) -> None:
    write(tmp_path)
    watch = Watch(tmp_path, tmp_path / "run", token=3, agent=7)
    with watch:
        (tmp_path / "lease" / "lease.json").write_text("")
        time.sleep(0.5)
        write(tmp_path, lease={**MINE, "state": "cleaning"})
        time.sleep(0.5)
    assert watch.why == ""

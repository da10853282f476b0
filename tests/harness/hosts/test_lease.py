"""One holder at a time: tokens rise, time is the host's uptime, a restart leaves it dirty."""

from __future__ import annotations

import io
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from harness.errors import LeaseError
from harness.hosts.facts import BootIdentity
from harness.hosts.hostscripts import HostScripts
from harness.hosts.lease import HostState, LeaseKeeper
from harness.hosts.onhost import lease
from harness.hosts.protectedroot import ProtectedRoot
from harness.remote.deadline import Deadline
from harness.remote.local import LocalTransport


class HereRoot(ProtectedRoot):
    """A root with this machine's slashes."""

    def inside(self, *names: str) -> str:
        return "/".join([self.path, *names])


def keeper(tmp_path: Path, boot: int = 1) -> LeaseKeeper:
    (tmp_path / "lease").mkdir(exist_ok=True)
    return LeaseKeeper(
        HostScripts(LocalTransport(), sys.executable),
        HereRoot(str(tmp_path)),
        BootIdentity(boot_id=boot, began=""),
    )


def call(folder: Path, operation: str, **parameters: object) -> dict[str, Any]:
    """The script itself, with an uptime of the test's choice."""
    report = io.BytesIO()
    values = {"lease": str(folder), "operation": operation, "boot": "1", **parameters}
    lease.main(values, io.BytesIO(), report)
    answer: dict[str, Any] = json.loads(report.getvalue())
    return answer


def take(
    folder: Path, uptime_s: float, operation: str = "acquire", who: str = "a"
) -> dict[str, Any]:
    return call(folder, operation, owner=who, nonce=f"{who}{uptime_s}", ttl_s=10, uptime_s=uptime_s)


def test_a_host_has_one_holder_and_its_token_rises(tmp_path: Path) -> None:
    host, soon = keeper(tmp_path), Deadline.after(20)
    first = host.acquire("anna", ttl_s=60, deadline=soon)
    assert (first.state, first.token) == (HostState.BUSY, 1)
    with pytest.raises(LeaseError, match="anna has it"):
        host.acquire("ben", ttl_s=60, deadline=soon)
    host.renew(first.token, ttl_s=60, deadline=soon)
    assert host.release(first.token, deadline=soon).state is HostState.FREE
    host.release(first.token, deadline=soon)  # a release may be repeated
    assert host.acquire("ben", ttl_s=60, deadline=soon).token == 2
    with pytest.raises(LeaseError, match="lost"):
        host.renew(first.token, ttl_s=60, deadline=soon)


def test_a_restart_under_a_holder_leaves_the_host_dirty_until_it_is_cleaned(
    tmp_path: Path,
) -> None:
    soon = Deadline.after(20)
    token = keeper(tmp_path).acquire("anna", ttl_s=60, deadline=soon).token
    host = keeper(tmp_path, boot=2)
    assert host.show(deadline=soon).state is HostState.DIRTY
    with pytest.raises(LeaseError, match="restarted under anna"):
        host.acquire("ben", ttl_s=60, deadline=soon)
    cleaning = host.clean("ben", ttl_s=60, deadline=soon)
    assert (cleaning.state, cleaning.token) == (HostState.CLEANING, token + 1)
    assert host.release(cleaning.token, deadline=soon).state is HostState.FREE


def test_a_lease_runs_out_by_uptime_and_its_holder_is_told(tmp_path: Path) -> None:
    token = take(tmp_path, 100.0)["token"]
    assert call(tmp_path, "renew", token=token, ttl_s=10, uptime_s=109.0)["refused"] == ""
    assert call(tmp_path, "show", uptime_s=118.0)["state"] == "busy"
    assert call(tmp_path, "show", uptime_s=120.0)["state"] == "dirty"
    late = call(tmp_path, "renew", token=token, ttl_s=10, uptime_s=121.0)
    assert "ran out" in late["refused"]


def test_three_cleanings_that_fail_put_a_host_into_quarantine(tmp_path: Path) -> None:
    take(tmp_path, 0.0)
    for number in range(1, 4):
        cleaning = take(tmp_path, number * 100.0, "clean")
        assert (cleaning["refused"], cleaning["state"]) == ("", "cleaning")
    assert call(tmp_path, "show", uptime_s=900.0)["state"] == "quarantined"
    assert "quarantined" in take(tmp_path, 901.0)["refused"]
    assert call(tmp_path, "reset", uptime_s=902.0)["state"] == "free"
    assert take(tmp_path, 903.0)["token"] == 6


def test_a_drained_host_is_left_to_its_holder_and_then_taken_by_nobody(tmp_path: Path) -> None:
    token = take(tmp_path, 0.0)["token"]
    assert call(tmp_path, "drain", note="", uptime_s=1.0)["state"] == "busy"
    done = call(tmp_path, "release", token=token, clean=True, note="", uptime_s=2.0)
    assert done["state"] == "quarantined"
    assert "drained" in take(tmp_path, 3.0)["refused"]


def test_an_acquire_whose_answer_was_lost_is_answered_alike(tmp_path: Path) -> None:
    assert take(tmp_path, 5.0)["token"] == take(tmp_path, 5.0)["token"] == 1


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    answers: list[str] = []

    def run(number: int) -> None:
        answers.append(take(tmp_path, 1.0, who=f"w{number}")["refused"])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers)[0] == ""
    assert sum(answer == "" for answer in answers) == 1

"""Runs as files on a host: what is asked for twice is done once, and old ones go."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest

from harness.hosts.onhost.runs import main


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    for name in ("requests", "taken", "responses"):
        (tmp_path / "agent" / name).mkdir(parents=True)
    return {"runs": str(tmp_path / "runs"), "agent": str(tmp_path / "agent")}


def ask(folders: dict[str, str], operation: str, **parameters: object) -> dict[str, Any]:
    report = io.BytesIO()
    main({"operation": operation, **parameters, **folders}, io.BytesIO(), report)
    values: dict[str, Any] = json.loads(report.getvalue())
    return values


def begin(folders: dict[str, str], run: str) -> None:
    ask(folders, "begin", id=run, request={"n": run}, token=3, owner="me", began="now")


def test_a_run_that_began_is_the_hosts_until_it_is_collected(folders: dict[str, str]) -> None:
    assert ask(folders, "current") == {"current": None}
    begin(folders, "a")
    begin(folders, "a")  # the answer to the first was lost
    known = {"id": "a", "token": 3, "owner": "me", "began": "now", "request": {"n": "a"}}
    assert ask(folders, "current")["current"] == {**known, "live": False, "over": False}
    Path(folders["agent"], "taken", "a.json").touch()
    assert ask(folders, "current")["current"] == {**known, "live": True, "over": False}
    Path(folders["agent"], "responses", "a.json").write_text('{"exit_code": 0}')
    assert ask(folders, "current")["current"] == {**known, "live": False, "over": True}
    ask(folders, "collected", id="a")
    ask(folders, "collected", id="a")
    assert ask(folders, "current") == {"current": None}


def test_events_come_from_where_one_was_and_the_answer_after_them_all(
    folders: dict[str, str],
) -> None:
    begin(folders, "a")
    watched = {"id": "a", "most": 4, "wait_s": 0.0}
    assert ask(folders, "watch", offset=0, **watched) == {"data": "", "answer": None}
    Path(folders["runs"], "a", "events.jsonl").write_bytes(b"123456")
    Path(folders["agent"], "responses", "a.json").write_text('{"exit_code": 7}')
    read = b""
    while (seen := ask(folders, "watch", offset=len(read), **watched))["answer"] is None:
        read += base64.b64decode(seen["data"])
    assert (read, seen) == (b"123456", {"data": "", "answer": {"exit_code": 7}})
    # A host that lost power may have less than was read of it.
    assert ask(folders, "watch", offset=99, **watched)["answer"] == {"exit_code": 7}


def test_the_last_twenty_runs_stay(folders: dict[str, str]) -> None:
    for number in range(25):
        begin(folders, f"run-{number:02}")
        ask(folders, "cancel", id=f"run-{number:02}")
    left = sorted(each.name for each in Path(folders["runs"]).iterdir() if each.is_dir())
    assert len(left) == 20
    assert left[-1] == "run-24"

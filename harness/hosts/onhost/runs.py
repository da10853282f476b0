r"""Runs of scenarios as files below `runs` in the protected root: begun, watched, cancelled.

::

    runs\current.json          which run the host is about, and under which lease it began
    runs\ID\request.json       what was asked for, written before anything runs
    runs\ID\events.jsonl       what happens, appended by the run itself
    runs\ID\cancel             made by who wants it to end

That a run is over is said by the agent's answer to the request of the same id.
"""

from __future__ import annotations

import base64
import json
import pathlib
import shutil
import time
from typing import IO, Any

_POLL_S = 0.05
_GATHER_S = 0.2
_KEPT = 20


def main(parameters: dict[str, Any], source: IO[bytes], report: IO[bytes]) -> None:
    """Carry out `operation` in the folder `runs`, with the agent's folder `agent`; report it.

    Every operation may be repeated.
    """
    del source
    answer = _OPERATIONS[parameters["operation"]](
        pathlib.Path(parameters["runs"]), pathlib.Path(parameters["agent"]), parameters
    )
    report.write(json.dumps(answer).encode() + b"\n")
    report.flush()


def _begin(runs: pathlib.Path, agent: pathlib.Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Write the run `id` of `owner` down with its `request` and its lease's `token`."""
    del agent
    folder = runs / parameters["id"]
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "request.json", parameters["request"])
    _replace(
        runs / "current.json",
        {name: parameters[name] for name in ("id", "token", "owner", "began")},
    )
    ended = [each for each in runs.iterdir() if each.is_dir() and each != folder]
    for old in sorted(ended, key=lambda each: each.stat().st_mtime)[: 1 - _KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return {}


def _current(runs: pathlib.Path, agent: pathlib.Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the `current` run with its `request`, and whether it is `over`; None without one."""
    del parameters
    try:
        current = json.loads((runs / "current.json").read_bytes())
        request = json.loads((runs / current["id"] / "request.json").read_bytes())
    except FileNotFoundError:
        return {"current": None}
    over = (agent / "responses" / f"{current['id']}.json").exists()
    # A controller that died before it handed the run over left nothing that runs.
    begun = any((agent / each / f"{current['id']}.json").exists() for each in ("requests", "taken"))
    return {"current": {**current, "request": request, "over": over, "live": begun and not over}}


def _watch(runs: pathlib.Path, agent: pathlib.Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return up to `most` bytes of events from `offset` on, or the agent's `answer`.

    Waits `wait_s` where there is neither. The answer comes once all events are read.
    """
    file = runs / parameters["id"] / "events.jsonl"
    response = agent / "responses" / f"{parameters['id']}.json"
    until = time.monotonic() + parameters["wait_s"]
    while True:
        over = response.exists()  # looked at first: nothing is written after it
        data = _events(file, parameters)
        if data or over or time.monotonic() >= until:
            break
        time.sleep(_POLL_S)
    if data and not over:
        time.sleep(_GATHER_S)  # steps come in swarms: one answer for those of a moment
        data = _events(file, parameters)
    answer = json.loads(response.read_bytes()) if over and not data else None
    return {"data": base64.b64encode(data).decode(), "answer": answer}


def _events(file: pathlib.Path, parameters: dict[str, Any]) -> bytes:
    if not file.exists():
        return b""
    with file.open("rb") as stream:
        stream.seek(parameters["offset"])
        return stream.read(parameters["most"])


def _cancel(runs: pathlib.Path, agent: pathlib.Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Ask the run to end."""
    del agent
    (runs / parameters["id"] / "cancel").touch()
    return {}


def _collected(
    runs: pathlib.Path, agent: pathlib.Path, parameters: dict[str, Any]
) -> dict[str, Any]:
    """Note that somebody has the run's result: the host is about no run any more."""
    (runs / "current.json").unlink(missing_ok=True)
    (agent / "responses" / f"{parameters['id']}.json").unlink(missing_ok=True)
    return {}


def _replace(file: pathlib.Path, values: object) -> None:
    beside = file.with_suffix(".new")
    beside.write_text(json.dumps(values), "utf-8")
    beside.replace(file)


_OPERATIONS = {
    "begin": _begin,
    "current": _current,
    "watch": _watch,
    "cancel": _cancel,
    "collected": _collected,
}

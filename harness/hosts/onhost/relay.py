"""Hand a request to the host agent and wait for its answer: all that WinRM does for it."""

from __future__ import annotations

import json
import pathlib
import time
from typing import IO, Any

_POLL_S = 0.02


def main(parameters: dict[str, Any], source: IO[bytes], report: IO[bytes]) -> None:
    """Report the answer to `request` (a mapping) with the id `id`, or `waiting` after `wait_s`.

    A request that was handed over before is not handed over again: ask on with the same id.
    """
    del source
    folder = pathlib.Path(parameters["agent"])
    name = f"{parameters['id']}.json"
    response = folder / "responses" / name
    # In the order in which a request wanders: one that moves meanwhile is met further on.
    if not any((folder / each / name).exists() for each in ("requests", "taken", "responses")):
        for each in ("requests", "responses"):
            (folder / each).mkdir(exist_ok=True)
        beside = folder / "requests" / f"{parameters['id']}.new"
        beside.write_text(json.dumps(parameters["request"]), "utf-8")
        beside.replace(folder / "requests" / name)
    until = time.monotonic() + parameters["wait_s"]
    while not response.exists() and time.monotonic() < until:
        time.sleep(_POLL_S)
    answer: dict[str, Any] = {"waiting": True}
    if response.exists():
        answer = json.loads(response.read_bytes())
    report.write(json.dumps(answer).encode() + b"\n")
    report.flush()

"""Run scenarios on the host, with the packages that are deployed there.

Sent to the host agent, so that it is the agent's user who runs them. What happens is written to the
run's folder as it happens; nothing is answered here.
"""

from __future__ import annotations

import importlib
import json
import pathlib
import sys
from typing import IO, Any


def main(parameters: dict[str, Any], source: IO[bytes], report: IO[bytes]) -> None:
    """Carry out the request in the folder of the run `id` below the protected root `root`.

    `token` is the lease that it belongs to, `agent` the process id of the agent that runs it.
    """
    del source, report
    root = pathlib.Path(parameters["root"])
    current = root / "deploy" / "current.json"
    if current.exists():
        sys.path.insert(0, str(json.loads(current.read_bytes())["path"]))
    importlib.import_module("harness.runs.hosted").serve(
        str(root), parameters["id"], token=parameters["token"], agent=parameters["agent"]
    )

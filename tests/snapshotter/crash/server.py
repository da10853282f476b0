"""Forks workers on request. It has one thread and everything imported: a worker starts at once."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from snapshotter.platform import Platform, local_platform
from tests.snapshotter.crash.faults import DyingPlatform, Fault
from tests.snapshotter.crash.work import work

_LIMIT_S = 60.0


def main() -> None:
    """Serve until stdin ends."""
    import snapshotter.scratch.template  # noqa: F401 (numpy: once, before the forks)

    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _work(request)
        sys.stdout.write(f"{_end(child, request)}\n")
        sys.stdout.flush()


def _work(request: dict[str, Any]) -> None:
    try:
        platform: Platform = local_platform()
        if request["fault"] is not None:
            platform = DyingPlatform(platform, Fault.parse(request["fault"]))
        work(
            *(Path(request["root"]), Path(request["log"]), request["name"], platform),
            threads=request["threads"],
        )
    finally:
        os._exit(1)


def _end(child: int, request: dict[str, Any]) -> int:
    """Wait for the worker to die at its fault, or kill it after it opened and the delay."""
    deadline = time.monotonic() + _LIMIT_S
    log = Path(request["log"])
    while request["fault"] is None and not (log.exists() and log.stat().st_size):
        if time.monotonic() > deadline:
            break
        time.sleep(0.001)
    if request["fault"] is None:
        time.sleep(request["delay_s"])
        os.kill(child, signal.SIGKILL)
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGTERM)
        time.sleep(0.001)


if __name__ == "__main__":
    main()

"""A fence around another script: it runs only while the lease is its sender's.

Sent in front of no script but behind it, as `main = guarded(main)`: a controller that was away for
too long must not work on a host that is another's by now.
"""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Callable
from typing import IO, Any

Main = Callable[[dict[str, Any], IO[bytes], IO[bytes]], None]


def guarded(main: Main) -> Main:
    """Return `main` behind the fence; it reports `fenced` with the reason where it must not run.

    Takes `fence_token`, `fence_boot` and the folder `fence` out of the parameters.
    """

    def fenced(parameters: dict[str, Any], source: IO[bytes], report: IO[bytes]) -> None:
        token, boot = parameters.pop("fence_token"), parameters.pop("fence_boot")
        file = pathlib.Path(parameters.pop("fence"), "lease.json")
        record = json.loads(file.read_bytes()) if file.exists() else {"token": 0}
        why = ""
        if record["token"] != token:
            why = f"the lease has another holder: {record.get('owner') or 'nobody'}"
        elif record["state"] not in ("busy", "cleaning"):
            why = f"the host is {record['state']}: {record['note']}"
        elif record["boot"] != boot:
            why = "the host restarted under the lease"
        elif time.monotonic() > record["until_s"]:
            why = "the lease ran out"
        if why:
            report.write(json.dumps({"fenced": why}).encode() + b"\n")
            report.flush()
        else:
            main(parameters, source, report)

    return fenced

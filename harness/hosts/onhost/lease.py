"""The lease of a host, kept in one file under one lock: whoever holds its token may use the host.

::

    free ── acquire ──► busy ── release ──► free | dirty
                         │ expired, or the host restarted
                         ▼
                       dirty ── clean ──► cleaning ── release ──► free | dirty
                                             └─ three times without success ─► quarantined
    any ── drain ──► quarantined (a busy one when it is released) ── reset ──► free

Times are the host's uptime: nobody's clock is trusted. Each acquire, clean and reset raises the
token, so that a holder from before is told apart. A holder that restarts the host itself says so
before: its lease is carried over that one restart. What a holder left unfinished may be taken up
again by who does the same work (`purpose`), dirty as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import IO, Any

_MOST_CLEANINGS = 3


def main(parameters: dict[str, Any], source: IO[bytes], report: IO[bytes]) -> None:
    """Carry out `operation` in the folder `lease`; report the record, `refused` where it was.

    `boot` names the boot that runs. `nonce` makes an acquire or clean whose answer was lost
    repeatable.
    """
    del source
    folder = pathlib.Path(parameters["lease"])
    with _locked(folder):
        file = folder / "lease.json"
        record = _load(file)
        aged = _age(record, parameters["boot"], parameters.get("uptime_s", time.monotonic()))
        refused = _OPERATIONS[parameters["operation"]](record, parameters)
        if aged or not refused:
            _write(file, record)
    report.write(json.dumps({**record, "refused": refused}).encode() + b"\n")
    report.flush()


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Hold the lock of the operating system: it ends with this process, however that ends."""
    with (folder / "lock").open("a+b") as lock:
        if os.name == "nt":
            import msvcrt

            lock.seek(0)
            # Tries for ten seconds, then raises OSError.
            msvcrt.locking(lock.fileno(), 1, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(lock.fileno(), fcntl.LOCK_EX)  # type: ignore[attr-defined,unused-ignore]
        yield


def _load(file: pathlib.Path) -> dict[str, Any]:
    record: dict[str, Any] = {
        "state": "free",
        "token": 0,
        "owner": "",
        "nonce": "",
        "boot": "",
        "until_s": 0.0,
        "cleanings": 0,
        "draining": False,
        "note": "",
        "purpose": "",
        "restart_ttl_s": 0.0,
        "updates": None,
    }
    if file.exists():
        record.update(json.loads(file.read_bytes()))
    return record


def _write(file: pathlib.Path, record: dict[str, Any]) -> None:
    beside = file.with_name("lease.new")
    with beside.open("wb") as stream:
        stream.write(json.dumps(record).encode())
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(file)


def _age(record: dict[str, Any], boot: str, uptime_s: float) -> bool:
    """Take note of what passed since the record was written; return whether that changed it."""
    record["now_s"] = uptime_s
    record["here"] = boot
    if record["state"] not in ("busy", "cleaning"):
        return False
    if record["boot"] != boot and record["restart_ttl_s"]:
        # The restart that was announced: its holder has that long to come back.
        record.update(boot=boot, until_s=uptime_s + record["restart_ttl_s"], restart_ttl_s=0.0)
        return True
    if record["boot"] != boot:
        _ended(record, f"the host restarted under {record['owner']}")
        return True
    if uptime_s > record["until_s"]:
        _ended(record, f"the lease of {record['owner']} ran out")
        return True
    return False


def _ended(record: dict[str, Any], note: str) -> None:
    record["state"] = "dirty"
    record["note"] = note
    if record["cleanings"] >= _MOST_CLEANINGS:
        record["state"] = "quarantined"
        record["note"] = f"{_MOST_CLEANINGS} cleanings did not end well: {note}"


def _take(record: dict[str, Any], parameters: dict[str, Any], state: str) -> None:
    record.update(
        state=state,
        token=record["token"] + 1,
        owner=parameters["owner"],
        nonce=parameters["nonce"],
        boot=record["here"],
        until_s=record["now_s"] + parameters["ttl_s"],
        note="",
        purpose=parameters.get("purpose", ""),
        restart_ttl_s=0.0,
    )


def _acquire(record: dict[str, Any], parameters: dict[str, Any]) -> str:
    if record["state"] == "busy" and record["nonce"] == parameters["nonce"]:
        # The answer to the first try was lost, or its controller died and was started again.
        record["until_s"] = record["now_s"] + parameters["ttl_s"]
        return ""
    resumed = record["state"] == "dirty" and record["purpose"] == parameters.get("resumes", "-")
    if not (record["state"] == "free" or resumed) or record["draining"]:
        return _why(record)
    record["cleanings"] = 0
    _take(record, parameters, "busy")
    return ""


def _clean(record: dict[str, Any], parameters: dict[str, Any]) -> str:
    if record["state"] == "cleaning" and record["nonce"] == parameters["nonce"]:
        return ""
    if record["state"] != "dirty":
        return _why(record)
    record["cleanings"] += 1
    _take(record, parameters, "cleaning")
    return ""


def _why(record: dict[str, Any]) -> str:
    if record["state"] in ("busy", "cleaning"):
        left = record["until_s"] - record["now_s"]
        return f"{record['state']}: {record['owner']} has it for {left:.0f} s more"
    if record["state"] == "free" and not record["draining"]:
        return "free: there is nothing to clean"
    return f"{record['state']}: {record['note'] or 'drained'}"


def _renew(record: dict[str, Any], parameters: dict[str, Any]) -> str:
    if record["token"] != parameters["token"] or record["state"] not in ("busy", "cleaning"):
        return f"lost: {_why(record)}"
    record["until_s"] = record["now_s"] + parameters["ttl_s"]
    return ""


def _restarting(record: dict[str, Any], parameters: dict[str, Any]) -> str:
    refused = _renew(record, parameters)
    if not refused:
        record["restart_ttl_s"] = parameters["ttl_s"]
    return refused


def _remember(record: dict[str, Any], parameters: dict[str, Any]) -> str:
    """Keep what is to be put back at the release; what a former holder left to do so is kept."""
    if record["token"] != parameters["token"]:
        return f"lost: {_why(record)}"
    if record["updates"] is None or parameters["updates"] is None:
        record["updates"] = parameters["updates"]
    return ""


def _release(record: dict[str, Any], parameters: dict[str, Any]) -> str:
    if record["token"] != parameters["token"]:
        return f"lost: {_why(record)}"
    if record["state"] not in ("busy", "cleaning"):
        # Again after a lost answer, or it ran out meanwhile: the host keeps what it is.
        return "" if record["note"] in ("", parameters["note"]) else f"lost: {record['note']}"
    if parameters["clean"]:
        record.update(state="free", note="", cleanings=0, nonce="")
    else:
        _ended(record, parameters["note"])
    if record["draining"]:
        record.update(state="quarantined", draining=False, note="drained")
    return ""


def _drain(record: dict[str, Any], parameters: dict[str, Any]) -> str:
    if record["state"] in ("busy", "cleaning"):
        record["draining"] = True
    else:
        record.update(state="quarantined", note=parameters["note"] or "drained")
    return ""


def _reset(record: dict[str, Any], parameters: dict[str, Any]) -> str:
    del parameters
    record.update(state="free", token=record["token"] + 1, owner="", nonce="", cleanings=0, note="")
    record["draining"] = False
    return ""


def _show(record: dict[str, Any], parameters: dict[str, Any]) -> str:
    del record, parameters
    return ""


_OPERATIONS = {
    "show": _show,
    "acquire": _acquire,
    "clean": _clean,
    "renew": _renew,
    "restarting": _restarting,
    "remember": _remember,
    "release": _release,
    "drain": _drain,
    "reset": _reset,
}

"""The host agent: takes requests from files in the protected root and runs them as itself.

::

    requests/ID.json ── claim (rename) ──► taken/ID.json ── run ──► responses/ID.json
                                              └─ found at the start: it died under it ─► `lost`

It is started by a scheduled task as SYSTEM, because what a WinRM logon starts has a network token
and lives in a job: neither can work with HCS. One agent at a time: the lock file says so. A request
is run once or answered as lost, never twice.
"""

from __future__ import annotations

import base64
import contextlib
import getpass
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from typing import IO, Any

_POLL_S = 0.05
_MOST_OUTPUT = 1 << 20


def serve(folder: pathlib.Path) -> None:
    """Answer requests until one says stop. Returns at once where another agent runs."""
    for name in ("requests", "taken", "responses"):
        (folder / name).mkdir(exist_ok=True)
    with (folder / "agent.lock").open("a+b") as lock:
        try:
            _lock(lock)
        except OSError:
            return
        for left in sorted((folder / "taken").glob("*.json")):
            _answer(folder, left.stem, {"error": "lost: the agent ended while it ran"})
            left.unlink()
        _replace(folder / "identity.json", {**identity(), "since": time.time()})
        stopping = threading.Event()
        seen: set[str] = set()
        while not stopping.is_set():
            for request in sorted((folder / "requests").glob("*.json")):
                taken = folder / "taken" / request.name
                if request.stem in seen or (folder / "responses" / request.name).exists():
                    request.unlink()  # two relays handed it over, after a dropped connection
                    continue
                seen.add(request.stem)
                request.replace(taken)
                threading.Thread(target=_carry_out, args=(folder, taken, stopping)).start()
            stopping.wait(_POLL_S)


def identity() -> dict[str, Any]:
    """Return who this process is, as the system says; `sid` is "" elsewhere than on Windows."""
    sid = ""
    who = "\\".join(os.environ.get(name, "") for name in ("USERDOMAIN", "USERNAME"))
    if who == "\\":
        who = getpass.getuser()
    if os.name == "nt":
        whoami = pathlib.Path(os.environ["SYSTEMROOT"], "System32", "whoami.exe")
        done = subprocess.run(
            [str(whoami), "/user", "/fo", "csv", "/nh"],
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        told = done.stdout.decode(errors="replace").strip().strip('"').split('","')
        if len(told) == 2:
            who, sid = told
    return {
        "user": who,
        "sid": sid,
        "pid": os.getpid(),
        "python": sys.version.split()[0],
        "executable": sys.executable,
    }


def _lock(lock: IO[bytes]) -> None:
    if os.name == "nt":
        import msvcrt

        lock.seek(0)
        msvcrt.locking(lock.fileno(), 2, 1)  # type: ignore[attr-defined,unused-ignore] # LK_NBLCK
    else:
        import fcntl

        fcntl.flock(  # type: ignore[attr-defined,unused-ignore]
            lock.fileno(),
            fcntl.LOCK_EX | fcntl.LOCK_NB,  # type: ignore[attr-defined,unused-ignore]
        )


def _carry_out(folder: pathlib.Path, taken: pathlib.Path, stopping: threading.Event) -> None:
    try:
        answer = _run(folder, json.loads(taken.read_bytes()), stopping)
    except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits for the answer
        answer = {"error": f"{type(error).__name__}: {error}"}
    _answer(folder, taken.stem, answer)
    taken.unlink()


def _run(
    folder: pathlib.Path, request: dict[str, Any], stopping: threading.Event
) -> dict[str, Any]:
    operation = request["operation"]
    if operation == "identity":
        return {**identity(), "root": str(folder.resolve().parent)}
    if operation == "stop":
        stopping.set()
        return {}
    if operation == "run":
        try:
            done = subprocess.run(
                request["argv"],
                input=base64.b64decode(request["stdin"]),
                capture_output=True,
                timeout=request["timeout_s"],
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            return {"error": f"timeout: {error}"}
        return {
            "exit_code": done.returncode & 0xFFFFFFFF,
            "stdout": base64.b64encode(done.stdout[-_MOST_OUTPUT:]).decode(),
            "stderr": base64.b64encode(done.stderr[-_MOST_OUTPUT:]).decode(),
            "user": identity()["user"],
        }
    return {"error": f"unknown operation {operation!r}"}


def _answer(folder: pathlib.Path, request: str, answer: dict[str, Any]) -> None:
    _replace(folder / "responses" / f"{request}.json", answer)


def _replace(file: pathlib.Path, values: dict[str, Any]) -> None:
    beside = file.with_suffix(".new")
    beside.write_text(json.dumps(values), "utf-8")
    beside.replace(file)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve(pathlib.Path(sys.argv[1]))

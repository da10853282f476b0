r"""A run on a host, as the host agent starts it there: its events go into its folder.

It ends by itself when it is cancelled, when its lease is no longer its controller's, and when the
agent that started it is gone: nobody waits for it then, and the host is another's soon.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from harness.errors import UsageError
from harness.report.events import Outcome, RunResult
from harness.runs.play import Played, play, sweep
from harness.runs.request import RunRequest
from harness.runs.wire import Ended, EventWriter, Failure, FailureKind
from harness.scenarios.outcome import outcome_of, reason_for

EVENTS: Final = "events.jsonl"
CANCEL: Final = "cancel"
_LOOK_S: Final = 0.2


def serve(root: str, run: str, *, token: int, agent: int) -> None:
    """Carry out the run `run` of the protected root `root`; its last event is `Ended`.

    `token` is the lease under which it was begun, `agent` the process id of the agent.
    """
    base = Path(root)
    folder = base / "runs" / run
    if "LCOWLAB_PRETEND_HOST" in os.environ:
        # Image and saved machines are those of the machine behind it, not of its pretended disk.
        for name in ("HOME", "TMPDIR", "TEMP"):
            os.environ.pop(name, None)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.default_int_handler)  # whatever the agent ignores
    with (folder / EVENTS).open("ab") as sink:
        writer = EventWriter(sink)
        watch = Watch(base, folder, token=token, agent=agent)
        try:
            with watch:
                request = RunRequest.parse(json.loads((folder / "request.json").read_bytes()))
                played = _play(request, base, writer)
        except KeyboardInterrupt:
            failure = Failure("interrupted", watch.why or "interrupted")
            writer.write(Ended(None, failure, left=_left(base, kept=None)))
        except Exception as error:  # noqa: BLE001 - the boundary of a process
            failure = Failure(_kind(error), reason_for(error))
            writer.write(Ended(None, failure, left=_left(base, kept=None)))
        else:
            kept = played.kept
            writer.write(
                Ended(
                    _with_why(played.result, watch.why),
                    kept=str(kept or ""),
                    left=_left(base, kept=kept),
                )
            )


def _play(request: RunRequest, base: Path, writer: EventWriter) -> Played:
    pushed = base / "bundle" / "image"
    image = pushed if (pushed / "image.json").exists() else None
    config = request.lab(image=image, root=base / "lab")
    if not request.scenarios:
        return Played(sweep(config, progress=writer.progress))
    return play(request, config, listeners=[writer], progress=writer.progress)


def _with_why(result: RunResult, why: str) -> RunResult:
    """Return a result that says what interrupted it, where something did."""
    if not (why and result.interrupted):
        return result
    return replace(result, environment={**result.environment, "interrupted by": why})


def _left(base: Path, *, kept: Path | None) -> tuple[str, ...]:
    """Return labs that are still there, beside those that somebody kept."""
    labs = base / "lab"
    if not labs.exists():
        return ()
    return tuple(
        f"the folder {each}"
        for each in sorted(labs.iterdir())
        if each != kept and not (each / "keep").exists()
    )


def _kind(error: Exception) -> FailureKind:
    if isinstance(error, UsageError):
        return "usage"
    return "infrastructure" if outcome_of(error) is Outcome.ERROR else "failed"


class Watch:
    """Looks, while the block runs, for a reason to end it; raises KeyboardInterrupt there, once.

    `why` says the reason, "" where there was none.
    """

    def __init__(self, base: Path, folder: Path, *, token: int, agent: int) -> None:
        self.why = ""
        self._cancel = folder / CANCEL
        self._lease = base / "lease" / "lease.json"
        self._agent = base / "agent" / "identity.json"
        self._token = token
        self._agent_pid = agent
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, name="run watch", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(_LOOK_S):
            if why := self._reason():
                self.why = why
                interrupt_main()
                return

    def _reason(self) -> str:
        if self._cancel.exists():
            return "cancelled"
        if (agent := _read(self._agent)) and agent["pid"] != self._agent_pid:
            return "the host's agent was started anew"
        if lease := _read(self._lease):
            if lease["token"] != self._token or lease["state"] not in ("busy", "cleaning"):
                return "the lease is no longer that of who began it"
            # Uptime, as in the lease: one clock for every process of a host.
            if time.monotonic() > lease["until_s"]:
                return "the lease ran out: its holder was not heard of any more"
        return ""


def _read(file: Path) -> dict[str, Any]:
    """Return what a file holds; nothing in the moment in which it is replaced."""
    with contextlib.suppress(OSError, ValueError):
        values: dict[str, Any] = json.loads(file.read_bytes())
        return values
    return {}


def interrupt_main() -> None:
    """Raise KeyboardInterrupt in the main thread, from another, as Ctrl-C does."""
    if sys.platform == "win32":
        signal.raise_signal(signal.SIGINT)  # it wakes a main thread that waits, as well
    else:
        # To the thread itself: a system call in which it waits is cut short.
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)

"""`lcowlab run --host`: a run on a host of the inventory, watched from this terminal."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.text import Text

from harness.errors import RemoteError, UsageError
from harness.hosts.connecting import connect_host, refuse_in_maintenance
from harness.hosts.facts import FactsCache, probe_host
from harness.hosts.inventory import Inventory
from harness.hosts.protectedroot import ProtectedRoot
from harness.hosts.pythonstep import find_python
from harness.remote.deadline import Deadline
from harness.remote.winrm import WinRM
from harness.report.events import RunListener, RunResult
from harness.runs.play import all_passed
from harness.runs.remote import RemoteRun
from harness.runs.request import RunRequest

_CONNECT_S = 60.0


def run_on_host(
    name: str,
    request: RunRequest,
    *,
    inventory: Path | None,
    bundle: Path | None,
    python: str,
    view: RunListener,
    console: Console,
) -> tuple[RunResult, str]:
    """Return the result, and the lab's directory on the host where it stays ("" elsewhere).

    Raises as `RemoteRun.run`, and UsageError for a name that is not one host's.
    """
    known = Inventory.load(inventory)
    chosen = known.select(name)
    if len(chosen) != 1:
        raise UsageError(f"--host {name} selects {len(chosen)} hosts: name one")
    host = known.hosts[chosen[0]]
    if request.jobs > host.slots:
        raise UsageError(
            f"--jobs {request.jobs}: {chosen[0]} runs {host.slots} utility VMs at a time "
            "(slots in the inventory)"
        )
    refuse_in_maintenance(chosen[0], host)
    root = ProtectedRoot(host.root)

    def say(text: str) -> None:
        console.print(Text(f"{chosen[0]}: {text}", "dim"), soft_wrap=True)

    with (
        cancelled_by_interrupt(say) as cancel,
        connect_host(chosen[0], host) as winrm,
    ):
        found = find_python(winrm, root, python, deadline=Deadline.after(_CONNECT_S))
        hosted = RemoteRun(
            chosen[0],
            winrm,
            root,
            found,
            request,
            listeners=[view],
            progress=say,
            cancel=cancel,
            bundle=bundle,
        ).run()
        if all_passed(hosted.result):
            _note_green(chosen[0], winrm, request)
    return hosted.result, f"{hosted.kept} on {chosen[0]}" if hosted.kept else ""


def _note_green(name: str, winrm: WinRM, request: RunRequest) -> None:
    """Keep what the host is now: what drifts afterwards is told against it."""
    what = f"run {' '.join(request.scenarios)}"
    with contextlib.suppress(RemoteError):
        facts = probe_host(winrm, deadline=Deadline.after(_CONNECT_S))
        FactsCache.open().keep_green(name, facts, what=what)


@contextmanager
def cancelled_by_interrupt(say: Callable[[str], None]) -> Iterator[threading.Event]:
    """Yield what the first Ctrl-C (or SIGTERM) sets; the second one raises KeyboardInterrupt.

    What talks to a host is not torn out of its request: it ends the run there, and waits for it.
    """
    cancel = threading.Event()

    def interrupted(_signal: int, _frame: FrameType | None) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()
        say("interrupted: the run there is ended and taken down (again: leave it to itself)")

    before = {each: signal.signal(each, interrupted) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield cancel
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)

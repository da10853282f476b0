"""`lcowlab run --host`, `--hosts`: runs on hosts of the inventory, watched from this terminal."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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
from harness.runs.fleet import run_on_each
from harness.runs.play import all_passed
from harness.runs.remote import HostedRun, RemoteRun
from harness.runs.request import RunRequest

_CONNECT_S = 60.0


@dataclass(frozen=True, slots=True)
class HostOptions:
    """What the command line says of hosts: one by name, or several by an expression."""

    host: str = ""
    hosts: str = ""
    inventory: Path | None = None
    bundle: Path | None = None
    python: str = ""

    @property
    def given(self) -> bool:
        """Whether the run is for hosts. Raises UsageError for options that fit none."""
        if self.host and self.hosts:
            raise UsageError("--host names one host, --hosts selects several: give one of them")
        if not (self.host or self.hosts) and (self.inventory or self.bundle or self.python):
            raise UsageError("--inventory, --bundle and --python are for hosts: --host NAME")
        return bool(self.host or self.hosts)


def run_on_hosts(
    options: HostOptions, request: RunRequest, *, view: RunListener, console: Console
) -> tuple[RunResult, str]:
    """Return the result, and the lab's directories on the hosts where they stay ("" elsewhere).

    For one host raises as `RemoteRun.run`; UsageError for a name that is not one host's, and for
    more jobs than a host takes.
    """
    known = Inventory.load(options.inventory)
    chosen = known.select(options.host or options.hosts)
    if options.host and len(chosen) != 1:
        raise UsageError(f"--host {options.host} selects {len(chosen)} hosts: name one")
    for name in chosen:
        if request.jobs > known.hosts[name].slots:
            raise UsageError(
                f"--jobs {request.jobs}: {name} runs {known.hosts[name].slots} utility VMs at a "
                "time (slots in the inventory)"
            )

    def say(name: str, text: str) -> None:
        console.print(Text(f"{name}: {text}", "dim"), soft_wrap=True)

    with cancelled_by_interrupt(partial(say, " ".join(chosen))) as cancel:

        def run_one(name: str, listener: RunListener) -> HostedRun:
            host = known.hosts[name]
            refuse_in_maintenance(name, host)
            root = ProtectedRoot(host.root)
            with connect_host(name, host) as winrm:
                deadline = Deadline.after(_CONNECT_S)
                hosted = RemoteRun(
                    name,
                    winrm,
                    root,
                    find_python(winrm, root, options.python, deadline=deadline),
                    request,
                    listeners=[listener],
                    progress=partial(say, name),
                    cancel=cancel,
                    bundle=options.bundle,
                ).run()
                if all_passed(hosted.result):
                    _note_green(name, winrm, request)
            return hosted

        if options.host:
            hosted = run_one(chosen[0], view)
            result, kept = hosted.result, {chosen[0]: hosted.kept} if hosted.kept else {}
        else:
            result, told = run_on_each(chosen, request, run_one, listeners=[view])
            kept = dict(told)
    return result, ", ".join(f"{folder} on {name}" for name, folder in kept.items())


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

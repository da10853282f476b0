"""A pretend host that is ready for runs, and a way to ask it for one."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from harness.hosts.facts import read_boot
from harness.hosts.hostagent import HostAgent
from harness.hosts.hostscripts import HostScripts
from harness.hosts.lease import LeaseKeeper
from harness.hosts.protectedroot import ProtectedRoot
from harness.hosts.restarts import RestartPatience
from harness.remote.deadline import Deadline
from harness.remote.winrm import WinRM
from harness.report.events import RunResult, ScenarioResult, StepResult
from harness.runs.remote import RemoteRun
from harness.runs.request import RunRequest
from harness.runs.watching import Patience
from tests.harness.hosts.pretend import Pretend, pretend_host

ROOT: Final = ProtectedRoot("C:\\ProgramData\\lcowlab")
QUICK: Final = Patience(
    RestartPatience(timeout_s=60, sessions=2, interval_s=0.02, delay_s=0, lost_s=30), cancel_s=120
)


@dataclass
class Heard:
    """A listener that keeps what it is told, in order, and sets `under_way` at a first step."""

    events: list[tuple[str, ...]] = field(default_factory=list)
    results: list[RunResult] = field(default_factory=list)
    under_way: threading.Event = field(default_factory=threading.Event)

    def run_started(self, scenarios: Sequence[str], *, backend: str, accelerator: str) -> None:
        self.events.append(("run_started", *scenarios, backend))

    def scenario_started(self, name: str, summary: str) -> None:
        self.events.append(("scenario_started", name))

    def step_started(self, scenario: str, step: str) -> None:
        self.events.append(("step_started", scenario, step))
        self.under_way.set()

    def step_finished(self, scenario: str, step: StepResult) -> None:
        self.events.append(("step_finished", scenario, step.name))

    def scenario_finished(self, result: ScenarioResult) -> None:
        self.events.append(("scenario_finished", result.name, result.outcome.value))

    def run_finished(self, result: RunResult) -> None:
        self.results.append(result)


@contextlib.contextmanager
def ready_host(root: Path) -> Iterator[Pretend]:
    """Yield a host with a protected root and an agent; its packages are those of its Python."""
    with pretend_host(root) as pretend, pretend.connect() as winrm:
        deadline = Deadline.after(60)
        for action in ROOT.mend(ROOT.read(winrm, deadline=deadline), host="win-01"):
            action.run(winrm, deadline=deadline)
        HostAgent(winrm, ROOT, "python").install(deadline=deadline)
        yield pretend


def request(*scenarios: str, hang: str = "", jobs: int = 1, backend: str = "model") -> RunRequest:
    """A run whose utility VMs take `hang` longer to be made: it is under way so long at least."""
    faults = {"service.create": f"hang({hang})"} if hang else {}
    return RunRequest(scenarios, backend=backend, jobs=jobs, faults=faults)


def remote_run(
    winrm: WinRM,
    asked: RunRequest,
    heard: Heard | None = None,
    *,
    cancel: threading.Event | None = None,
    said: list[str] | None = None,
    bundle: Path | None = None,
    patience: Patience = QUICK,
) -> RemoteRun:
    return RemoteRun(
        "win-01",
        winrm,
        ROOT,
        "python",
        asked,
        listeners=[heard] if heard else [],
        progress=(said if said is not None else []).append,
        cancel=cancel,
        bundle=bundle,
        patience=patience,
    )


def lease_of(pretend: Pretend) -> dict[str, Any]:
    """The lease as the host's own file has it."""
    file = pretend.host.local_path(ROOT.inside("lease", "lease.json"))
    values: dict[str, Any] = json.loads(file.read_bytes())
    return values


def runs_of(pretend: Pretend) -> list[str]:
    """The runs that the host was ever asked for."""
    return [name for name in _inside(pretend, "runs") if name != "current.json"]


def labs_of(pretend: Pretend) -> list[str]:
    """What is left of labs on the host."""
    return _inside(pretend, "lab")


def _inside(pretend: Pretend, name: str) -> list[str]:
    folder = pretend.host.local_path(ROOT.inside(name))
    return sorted(each.name for each in folder.iterdir()) if folder.exists() else []


def reset_lease(winrm: WinRM) -> None:
    """Take the lease away from whoever has it, as `lcowlab hosts reset` does."""
    deadline = Deadline.after(30)
    boot = read_boot(winrm, deadline=deadline)
    LeaseKeeper(HostScripts(winrm, "python"), ROOT, boot).reset(deadline=deadline)


def host_agent(winrm: WinRM) -> HostAgent:
    return HostAgent(winrm, ROOT, "python")

"""The runs of one host, as its folder of runs tells them; see `onhost.runs`."""

from __future__ import annotations

import base64
import datetime
from dataclasses import dataclass
from typing import Any, Final

from harness.hosts.holding import HostHold, owner_name
from harness.hosts.hostagent import HostAgent
from harness.hosts.hostscripts import HostScripts, script_source
from harness.hosts.protectedroot import ProtectedRoot
from harness.remote.deadline import Deadline
from harness.remote.hostpython import python_argv, script_input
from harness.remote.winrm import WinRM
from harness.runs.request import RunRequest

_LONGEST_RUN_S: Final = 7 * 86400.0
_MOST: Final = 256 << 10


@dataclass(frozen=True, slots=True)
class CurrentRun:
    """The run that a host is about: whose, since when (ISO 8601, UTC), and under which lease.

    `live` while the agent has it in hand, `over` once it has ended.
    """

    id: str
    token: int
    owner: str
    began: str
    request: dict[str, Any]
    live: bool
    over: bool

    @property
    def name(self) -> str:
        """How people are told of it."""
        names = " ".join(self.request.get("scenarios", ()))
        return f"run {self.id[:8]} of {self.owner}, begun {self.began} ({names})"


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of a run since it was looked at last; `answer` is the agent's, once it is over."""

    data: bytes
    answer: dict[str, Any] | None


def current_run(
    scripts: HostScripts, root: ProtectedRoot, *, deadline: Deadline
) -> CurrentRun | None:
    """Return the run that a host is about; None where it is about none. Raises RemoteError."""
    values = _ask(scripts, root, "current", {}, deadline)["current"]
    return None if values is None else CurrentRun(**values)


@dataclass(frozen=True, slots=True)
class HostRuns:
    """The runs of a host that is held; every call may be repeated, and raises RemoteError.

    LeaseError where it is no longer held.
    """

    winrm: WinRM
    root: ProtectedRoot
    python: str
    hold: HostHold

    def agent(self) -> HostAgent:
        """Return the host's agent, which takes requests only while the host is held."""
        return HostAgent(self.winrm, self.root, self.python, fence=self.hold.scripts.fence)

    def current(self, *, deadline: Deadline) -> CurrentRun | None:
        """See `current_run`."""
        return current_run(self.hold.scripts, self.root, deadline=deadline)

    def begin(self, run: str, request: RunRequest, *, deadline: Deadline) -> None:
        """Write a run down under its id; `hand_over` lets it begin."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._ask(
            "begin",
            {
                "id": run,
                "request": request.document(),
                "token": self.hold.token,
                "owner": owner_name(),
                "began": now,
            },
            deadline,
        )

    def hand_over(self, run: str, *, deadline: Deadline) -> None:
        """Have the agent carry out a run that was written down; once, however often it is asked."""
        agent = self.agent()
        who = agent.identity(deadline=deadline)
        parameters = {
            "root": who["root"],
            "id": run,
            "token": self.hold.token,
            "agent": who["pid"],
        }
        agent.hand_over(
            run,
            python_argv(who["executable"], packages=True),
            stdin=script_input(script_source("play"), parameters),
            timeout_s=_LONGEST_RUN_S,
            deadline=deadline,
        )

    def watch(self, run: str, *, offset: int, wait_s: float, deadline: Deadline) -> Seen:
        """Return events from `offset` on; none after `wait_s` in which nothing happened."""
        values = self._ask(
            "watch", {"id": run, "offset": offset, "most": _MOST, "wait_s": wait_s}, deadline
        )
        return Seen(base64.b64decode(values["data"]), values["answer"])

    def cancel(self, run: str, *, deadline: Deadline) -> None:
        """Ask a run to end; it takes down what it made, and says so."""
        self._ask("cancel", {"id": run}, deadline)

    def collected(self, run: str, *, deadline: Deadline) -> None:
        """Note that the result of a run is here: nobody needs to look for it any more."""
        self._ask("collected", {"id": run}, deadline)

    def _ask(
        self, operation: str, parameters: dict[str, object], deadline: Deadline
    ) -> dict[str, Any]:
        return _ask(self.hold.scripts, self.root, operation, parameters, deadline)


def _ask(
    scripts: HostScripts,
    root: ProtectedRoot,
    operation: str,
    parameters: dict[str, object],
    deadline: Deadline,
) -> dict[str, Any]:
    return scripts.ask(
        "runs",
        {"operation": operation, **parameters},
        {"runs": root.inside("runs"), "agent": root.inside("agent")},
        deadline=deadline,
    )

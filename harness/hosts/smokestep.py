"""The step that proves a host: one utility VM is made and taken down as the identity of the tests.

It goes through the host agent, so that SYSTEM (or the account that the agent runs as) does it, and
not the network logon of WinRM, which cannot. The evidence lies in the protected root and in the
journal; it holds until the packages, the agent's user, Python or the system are others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from harness.errors import ProvisionError
from harness.hosts.hostagent import HostAgent
from harness.hosts.hostscripts import Fence
from harness.hosts.journal import Journal
from harness.hosts.protectedroot import ProtectedRoot
from harness.hosts.pythonstep import host_python
from harness.hosts.steps import Assessment, Look, State
from harness.remote.deadline import Deadline
from harness.remote.winrm import WinRM

_MOST_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class MakeUtilityVm:
    """Makes a utility VM through the host agent and takes it down; an `Action`."""

    root: ProtectedRoot
    python: str
    backend: str
    fence: Fence | None = None

    @property
    def text(self) -> str:
        """See `Action.text`."""
        return (
            f"through {self.root.inside('agent')}: make a utility VM (backend {self.backend}) "
            "with a disk, and take it down"
        )

    def run(self, winrm: WinRM, *, deadline: Deadline) -> None:
        """Make one and note what was seen. Raises ProvisionError saying why there is none."""
        answer = ask_agent(
            HostAgent(winrm, self.root, self.python, fence=self.fence),
            self.backend,
            deadline=deadline.capped(_MOST_S),
            run=True,
        )
        said = str(answer.get("lacking") or answer.get("failed") or "")
        Journal(self.root, "provision").append(winrm, "smoke", answer, deadline=deadline)
        if said:
            raise ProvisionError(f"no utility VM can be made: {said}", host=winrm.host)


@dataclass(frozen=True, slots=True)
class Smoke:
    """A utility VM was made on the host, as the identity that tests will use."""

    name: str = "smoke"
    elevated: bool = True

    def assess(self, look: Look) -> Assessment:
        """See `Step.assess`."""
        options = look.options
        if options.smoke == "off":
            return Assessment(State.FINE, "not asked for")
        python = host_python(look)
        action = MakeUtilityVm(options.root, python, options.smoke, look.scripts(python).fence)
        agent = HostAgent(look.winrm, options.root, python)
        detail = "not proved yet"
        if agent.running(deadline=look.deadline):
            answer = ask_agent(agent, options.smoke, deadline=look.deadline, run=False)
            if "lacking" in answer:
                return Assessment(State.NOTE, str(answer["lacking"]))
            if answer["evidence"] is not None:
                return Assessment(State.FINE, _told(answer["evidence"]))
            detail = f"not proved yet for {answer['key']['user']} and {answer['key']['packages']}"
        return Assessment(State.CHANGE, detail, (action,), proof=True)


def ask_agent(agent: HostAgent, backend: str, *, deadline: Deadline, run: bool) -> dict[str, Any]:
    """Return what the script `smoke` reports. Raises RemoteError."""
    return agent.script("smoke", {"backend": backend, "run": run}, deadline=deadline)


def _told(evidence: dict[str, Any]) -> str:
    return (
        f"a utility VM ran as {evidence['user']} (backend {evidence['backend']}, "
        f"{evidence['origin']}, {evidence['boot_s']:.1f} s, {evidence['at']})"
    )

"""The step that puts the host agent in its place."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import RemoteCommandError
from harness.hosts.hostagent import TASK, HostAgent, agent_source
from harness.hosts.protectedroot import ProtectedRoot
from harness.hosts.pythonstep import host_python
from harness.hosts.steps import Assessment, Look, State
from harness.hosts.systemtask import FOLDER, SYSTEM
from harness.remote.deadline import Deadline
from harness.remote.powershell import Command
from harness.remote.winrm import WinRM


@dataclass(frozen=True, slots=True)
class InstallAgent:
    """Puts the host agent in its place and starts it; an `Action`."""

    root: ProtectedRoot
    python: str
    user: str = SYSTEM

    @property
    def text(self) -> str:
        """See `Action.text`."""
        script = self.root.inside("agent", "agent.py")
        return (
            f"copy agent.py to {script}; register and start {FOLDER}{TASK} as {self.user}: "
            f'{self.python} -I -u -X utf8 "{script}" "{self.root.inside("agent")}"'
        )

    def run(self, winrm: WinRM, *, deadline: Deadline) -> None:
        """See `Action.run`."""
        HostAgent(winrm, self.root, self.python, self.user).install(deadline=deadline)


@dataclass(frozen=True, slots=True)
class Agent:
    """The host agent is there, is ours to the byte, and answers as whom it is to be."""

    name: str = "agent"
    elevated: bool = True

    def assess(self, look: Look) -> Assessment:
        """See `Step.assess`."""
        root, options, python = look.options.root, look.options, host_python(look)
        action = InstallAgent(root, python, options.agent_user)
        script = root.inside("agent", "agent.py")
        there = look.winrm.powershell(
            Command.build("Test-Path", {"LiteralPath": (script,)}), deadline=look.deadline
        )
        if there != (True,):
            return Assessment(State.CHANGE, "not installed", (action,))
        (found,) = look.winrm.powershell(
            Command.build("Get-FileHash", {"LiteralPath": (script,), "Algorithm": "SHA256"}),
            deadline=look.deadline,
        )
        ours = hashlib.sha256(agent_source(python).encode()).hexdigest()
        if not isinstance(found, dict) or str(found.get("Hash")).lower() != ours:
            return Assessment(State.CHANGE, "another version", (action,))
        try:
            (task,) = look.winrm.powershell(
                Command.build("Get-ScheduledTask", {"TaskName": (TASK,), "TaskPath": (FOLDER,)}),
                deadline=look.deadline,
            )
        except RemoteCommandError:
            return Assessment(State.CHANGE, "no task", (action,))
        if not isinstance(task, dict) or task.get("State") != "Running":
            return Assessment(State.CHANGE, "the task does not run", (action,))
        identity = HostAgent(look.winrm, root, python).identity(deadline=look.deadline)
        if not _is(identity, options.agent_user):
            detail = f"runs as {identity['user']}, not as {options.agent_user}"
            return Assessment(State.CHANGE, detail, (action,))
        return Assessment(State.FINE, f"runs as {identity['user']}")


def _is(identity: Mapping[str, Any], user: str) -> bool:
    """Whether an agent runs as `user`. SYSTEM has another name in each language, but one SID."""
    if user == SYSTEM:
        return identity["sid"] in (SYSTEM, "")
    return str(identity["user"]).lower() == user.lower()

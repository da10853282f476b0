r"""Our agent on a host: installed as a scheduled task, reached through files in the protected root.

The task runs as SYSTEM, or as a group managed service account, from `agent\agent.py` in the root,
starts with the host, and has no time limit. WinRM only relays: the answer to a request is kept by
its id, so that a dropped connection asks on instead of running it again.
"""

from __future__ import annotations

import base64
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness.errors import RemoteCommandError, RemoteTimeoutError
from harness.hosts.hostscripts import Fence, HostScripts, read_report, script_source
from harness.hosts.protectedroot import ProtectedRoot
from harness.hosts.systemtask import FOLDER, SYSTEM, system_task
from harness.remote.deadline import Deadline
from harness.remote.files import HostFiles
from harness.remote.hostpython import python_argv, script_input
from harness.remote.powershell import Command
from harness.remote.transport import CompletedRemote
from harness.remote.winrm import WinRM

TASK: Final = "agent"
_WAIT_S: Final = 20.0
_POLL_S: Final = 0.1


def agent_source(python: str) -> str:
    """Return the agent's source, with the interpreter that is to run it: both make one version."""
    return f"{script_source('agent')}\n# run by {python}\n"


@dataclass(frozen=True, slots=True)
class HostAgent:
    """The agent of one host. `python` is the host's own, `user` whom the task runs as.

    With a fence, requests are handed over only while that lease is ours.
    """

    winrm: WinRM
    root: ProtectedRoot
    python: str
    user: str = SYSTEM
    fence: Fence | None = None

    @property
    def _folder(self) -> str:
        return self.root.inside("agent")

    def install(self, *, deadline: Deadline) -> None:
        """Put the agent on the host and start it; one that runs is replaced.

        Raises UnprotectedRootError before anything is written; RemoteError.
        """
        self.root.verify(self.winrm, deadline=deadline)
        script = self.root.inside("agent", "agent.py")
        with tempfile.TemporaryDirectory(prefix="lcowlab-agent-") as folder:
            source = Path(folder, "agent.py")
            source.write_text(agent_source(self.python), "utf-8")
            HostFiles.every_way(self.winrm, self.python, self.root.path).put(
                source, script, deadline=deadline
            )
        self.stop(deadline=deadline)
        xml = system_task(
            self.python,
            f'-I -u -X utf8 "{script}" "{self._folder}"',
            directory=self._folder,
            at_boot=True,
            user=self.user,
        )
        self.root.verify(self.winrm, deadline=deadline)
        self.winrm.powershell(
            Command.build(
                "Register-ScheduledTask",
                {"TaskName": TASK, "TaskPath": FOLDER, "Xml": xml, "Force": True},
            ),
            deadline=deadline,
        )
        self.start(deadline=deadline)

    def start(self, *, deadline: Deadline) -> None:
        """Start the task; one that runs is left alone. Raises RemoteCommandError without a task."""
        self.winrm.powershell(
            Command.build("Start-ScheduledTask", {"TaskName": TASK, "TaskPath": FOLDER}),
            deadline=deadline,
        )

    def stop(self, *, deadline: Deadline) -> None:
        """End a running agent; nothing happens where none runs."""
        if not self.running(deadline=deadline):
            return
        self._request({"operation": "stop"}, deadline)
        # A start while the old one still runs would be ignored (IgnoreNew).
        while self.running(deadline=deadline):
            if deadline.passed:
                raise RemoteTimeoutError("the agent does not end", host=self.winrm.host)
            time.sleep(_POLL_S)

    def running(self, *, deadline: Deadline) -> bool:
        """Whether there is a task and it runs. Raises RemoteError."""
        try:
            (task,) = self.winrm.powershell(
                Command.build("Get-ScheduledTask", {"TaskName": (TASK,), "TaskPath": (FOLDER,)}),
                deadline=deadline,
            )
        except RemoteCommandError as error:
            if "NotFound" in error.error_id:
                return False
            raise
        return isinstance(task, dict) and task.get("State") == "Running"

    def identity(self, *, deadline: Deadline) -> dict[str, Any]:
        """Return `user`, `sid`, `pid`, `python`, `executable` and `root` of the agent that runs.

        Paths are those that the agent's own programs take. Raises RemoteError.
        """
        return self._request({"operation": "identity"}, deadline)

    def run(
        self, argv: Sequence[str], *, deadline: Deadline, stdin: bytes = b""
    ) -> CompletedRemote:
        """Run a program as the agent's user and return what it left (1 MiB of each stream).

        It runs once, whatever happens to the connection. Raises RemoteCommandError when it could
        not be started or the agent ended under it.
        """
        values = self._request(_run_request(argv, stdin, deadline.remaining_s), deadline)
        return CompletedRemote(
            int(values["exit_code"]),
            base64.b64decode(values["stdout"]),
            base64.b64decode(values["stderr"]),
        )

    def script(
        self, name: str, parameters: Mapping[str, object], *, deadline: Deadline
    ) -> dict[str, Any]:
        """Return the one report of a script of ours that the agent's user runs, once.

        It gets `parameters`, the protected `root` and the agent's `user`, and may import what is
        installed there. Raises RemoteError.
        """
        who = self.identity(deadline=deadline)
        done = self.run(
            python_argv(who["executable"], packages=True),
            stdin=script_input(
                script_source(name), {**parameters, "root": who["root"], "user": who["user"]}
            ),
            deadline=deadline,
        )
        return read_report(name, done, host=self.winrm.host)

    def hand_over(
        self,
        identity: str,
        argv: Sequence[str],
        *,
        stdin: bytes,
        timeout_s: float,
        deadline: Deadline,
    ) -> None:
        """Have a program run as the agent's user, and do not wait for it.

        It runs once, however often it is handed over with the same `identity`; the agent's answer
        lies in `responses` under that name. Raises RemoteError.
        """
        self._relay(identity, _run_request(argv, stdin, timeout_s), wait_s=0.0, deadline=deadline)

    def _request(self, request: dict[str, object], deadline: Deadline) -> dict[str, Any]:
        identity = uuid.uuid4().hex
        while not deadline.passed:
            values = self._relay(
                identity,
                request,
                wait_s=min(_WAIT_S, deadline.remaining_s / 2),
                deadline=deadline,
            )
            if "error" in values:
                raise RemoteCommandError(
                    str(values["error"]), host=self.winrm.host, command=str(request["operation"])
                )
            if "waiting" not in values:
                return values
        raise RemoteTimeoutError(
            "the agent does not answer: look at the task \\lcowlab\\agent",
            host=self.winrm.host,
            maybe_ran=True,
        )

    def _relay(
        self, identity: str, request: dict[str, object], *, wait_s: float, deadline: Deadline
    ) -> dict[str, Any]:
        """Return the answer to a request, or `waiting`."""
        return HostScripts(self.winrm, self.python, self.fence).ask(
            "relay",
            {"id": identity, "request": request, "wait_s": wait_s},
            {"agent": self._folder},
            deadline=deadline,
        )


def _run_request(argv: Sequence[str], stdin: bytes, timeout_s: float) -> dict[str, object]:
    return {
        "operation": "run",
        "argv": list(argv),
        "stdin": base64.b64encode(stdin).decode(),
        "timeout_s": timeout_s,
    }

r"""The step that raises WinRM's quotas and restarts WinRM, from a task that outlives it.

::

    register \lcowlab\restart-winrm ──► set quotas ──► run it ──► a new connection ──► forget it
                └── from here on it says that a restart is due, whoever looks

`net stop winrm` in a shell of WinRM's ends the shell before `net start` is read. And quotas that
were read at the last start cannot be told from those in the registry: so the task is there before
the first quota is set, and goes when WinRM has been started again after the last.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from harness.errors import AuthError, RemoteCommandError, RemoteError, RemoteTimeoutError
from harness.hosts.actions import Action, powershell
from harness.hosts.steps import Assessment, Look, State
from harness.hosts.systemtask import FOLDER, system_task
from harness.remote.deadline import Deadline
from harness.remote.powershell import Command
from harness.remote.psrp import Plain
from harness.remote.winrm import WinRM

TASK: Final = "restart-winrm"
_RESTART: Final = "/d /c net stop WinRM /y & net start WinRM"
_RUNNING: Final = 0x41301  # SCHED_S_TASK_RUNNING
_POLL_S: Final = 0.1
_WAIT_S: Final = 180.0


@dataclass(frozen=True, slots=True)
class RestartWinRM:
    """Restarts WinRM by the task that is registered, waits for it, and forgets the task."""

    @property
    def text(self) -> str:
        """See `Action.text`."""
        return f"run {FOLDER}{TASK} as SYSTEM (cmd.exe {_RESTART}), connect anew, remove the task"

    def run(self, winrm: WinRM, *, deadline: Deadline) -> None:
        """See `Action.run`."""
        until = deadline.capped(_WAIT_S)
        before = _info(winrm, until).get("LastRunTime")
        name = {"TaskName": TASK, "TaskPath": FOLDER}
        try:
            winrm.powershell(Command.build("Start-ScheduledTask", dict(name)), deadline=until)
        except RemoteCommandError:
            raise
        except RemoteError as error:
            if not error.maybe_ran:
                raise
            # It may have taken its own answer down with it: its record tells.
        result = self._wait(winrm, before, until)
        if result != 0:
            raise RemoteCommandError(
                f"WinRM was not started again: exit code {result!r}",
                host=winrm.host,
                command=self.text,
            )
        winrm.powershell(
            Command.build(
                "Unregister-ScheduledTask",
                {"TaskName": (TASK,), "TaskPath": (FOLDER,), "Confirm": False},
            ),
            deadline=deadline,
        )

    def _wait(self, winrm: WinRM, before: Plain, until: Deadline) -> Plain:
        last: RemoteError | None = None
        while not until.passed:
            try:
                info = _info(winrm, until)
                running = _state(winrm, until) == "Running"
            except RemoteCommandError:
                raise
            except RemoteError as error:  # it is down; AuthError: it is still starting
                if isinstance(error, AuthError) and error.code not in (None, 401):
                    raise
                last = error
            else:
                result = info.get("LastTaskResult")
                # The two were read one after the other: it may have ended in between.
                if not running and result != _RUNNING and info.get("LastRunTime") != before:
                    return result
            time.sleep(_POLL_S)
        raise RemoteTimeoutError(
            f"WinRM did not come back after its restart: start it on the host ({last})",
            host=winrm.host,
            maybe_ran=True,
        )


def _info(winrm: WinRM, deadline: Deadline) -> dict[str, Plain]:
    (found,) = winrm.powershell(
        Command.build("Get-ScheduledTaskInfo", {"TaskName": TASK, "TaskPath": FOLDER}),
        deadline=deadline,
    )
    return found if isinstance(found, dict) else {}


def _state(winrm: WinRM, deadline: Deadline) -> str:
    """Return the task's state; empty where there is no such task."""
    try:
        (found,) = winrm.powershell(
            Command.build("Get-ScheduledTask", {"TaskName": (TASK,), "TaskPath": (FOLDER,)}),
            deadline=deadline,
        )
    except RemoteCommandError as error:
        if "NotFound" in error.error_id:
            return ""
        raise
    return str(found.get("State")) if isinstance(found, dict) else ""


@dataclass(frozen=True, slots=True)
class Quotas:
    """WinRM's quotas are at least as wanted, and WinRM has read them."""

    name: str = "winrm-quotas"
    elevated: bool = True

    def assess(self, look: Look) -> Assessment:
        """See `Step.assess`."""
        config = look.winrm.config(deadline=look.deadline)
        due = _state(look.winrm, look.deadline) != ""
        found: list[str] = []
        setting: list[Action] = []
        for key, wanted in look.options.quotas.items():
            text = config.get(key.replace("Shell\\", "Winrs\\").replace("\\", "/"), "")
            if text.isdigit() and int(text) >= wanted:
                continue
            found.append(f"{key} {text or 'unknown'} < {wanted}")
            setting.append(
                powershell(
                    "Set-Item",
                    {
                        "LiteralPath": (rf"WSMan:\localhost\{key}",),
                        "Value": wanted,
                        "Force": True,
                    },
                )
            )
        if setting:
            return Assessment(
                State.CHANGE, ", ".join(found), (_register(), *setting, RestartWinRM())
            )
        if due:
            return Assessment(State.CHANGE, "a restart of WinRM is due", (RestartWinRM(),))
        return Assessment(State.FINE)


def _register() -> Action:
    return powershell(
        "Register-ScheduledTask",
        {
            "TaskName": TASK,
            "TaskPath": FOLDER,
            "Xml": system_task("cmd.exe", _RESTART),
            "Force": True,
        },
    )

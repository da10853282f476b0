"""What is done to a host, as values: a plan prints exactly these, and nothing else is run."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from typing import Protocol

from harness.errors import ConnectionLostError, RemoteCommandError, ShellGoneError
from harness.remote.deadline import Deadline
from harness.remote.powershell import Command, Value
from harness.remote.winrm import WinRM


class Action(Protocol):
    """One command for a host."""

    @property
    def text(self) -> str:
        """What runs, as a person would type it."""
        ...

    def run(self, winrm: WinRM, *, deadline: Deadline) -> None:
        """Run it. Raises RemoteError when the host refuses it."""
        ...


@dataclass(frozen=True, slots=True)
class PowerShellAction:
    """A cmdlet."""

    command: Command

    @property
    def text(self) -> str:
        """See `Action.text`."""
        return self.command.text

    def run(self, winrm: WinRM, *, deadline: Deadline) -> None:
        """See `Action.run`."""
        winrm.powershell(self.command, deadline=deadline)


@dataclass(frozen=True, slots=True)
class ProgramAction:
    """A native program; running it twice must leave what running it once leaves.

    Exit codes of `fine` are success.
    """

    argv: tuple[str, ...]
    fine: frozenset[int] = field(default=frozenset({0}))

    @property
    def text(self) -> str:
        """See `Action.text`."""
        return subprocess.list2cmdline(self.argv)

    def run(self, winrm: WinRM, *, deadline: Deadline) -> None:
        """See `Action.run`."""
        done = winrm.run(self.argv, deadline=deadline, idempotent=True)
        if done.exit_code not in self.fine:
            said = (done.stderr + done.stdout).decode(errors="replace").strip()[-1000:]
            raise RemoteCommandError(said, host=winrm.host, code=done.exit_code, command=self.text)


_SHUTDOWN_PENDING = 1190  # ERROR_SHUTDOWN_IS_SCHEDULED


@dataclass(frozen=True, slots=True)
class RestartAction:
    """A restart, after a moment in which its own answer still comes."""

    delay_s: int = 2

    @property
    def text(self) -> str:
        """See `Action.text`."""
        return f"shutdown /r /f /t {self.delay_s}"

    def run(self, winrm: WinRM, *, deadline: Deadline) -> None:
        """Ask for it once. What the host answers while it goes down is no failure of the asking."""
        try:
            done = winrm.run(tuple(self.text.split()), deadline=deadline)
        except (ConnectionLostError, ShellGoneError) as error:
            if error.maybe_ran:
                return  # the boot identity will tell
            raise
        if done.exit_code not in (0, _SHUTDOWN_PENDING):
            said = (done.stderr + done.stdout).decode(errors="replace").strip()[-1000:]
            raise RemoteCommandError(said, host=winrm.host, code=done.exit_code, command=self.text)


def powershell(name: str, parameters: dict[str, Value] | None = None) -> PowerShellAction:
    """Return a cmdlet with its parameters as an action. Raises UsageError."""
    return PowerShellAction(Command.build(name, parameters))


def program(*argv: str) -> ProgramAction:
    """Return a native program as an action."""
    return ProgramAction(argv)

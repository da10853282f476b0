"""What provisioning looks at and changes: small steps, each reads the host and says what to run.

A step keeps nothing between two looks: what it finds is the host's own state, so that a second
apply, or one after a controller that died, does exactly what is still lacking.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from harness.hosts.actions import Action
from harness.hosts.bundle import Bundle
from harness.hosts.facts import HostFacts
from harness.hosts.holding import HostHold
from harness.hosts.hostscripts import HostScripts
from harness.hosts.protectedroot import ProtectedRoot
from harness.hosts.pythonlayout import PythonLayout
from harness.remote.deadline import Deadline
from harness.remote.winrm import WinRM

GIB: Final = 1 << 30
MIB: Final = 1 << 20


class State(enum.Enum):
    """What a step found."""

    FINE = "fine"
    CHANGE = "change"  # its actions are to run
    RESTART = "restart"  # what is lacking comes with the next restart
    BLOCKED = "blocked"  # nobody but the owner of the host can mend it
    NOTE = "note"  # not as we would like it, and not ours to change


@dataclass(frozen=True, slots=True)
class Assessment:
    """What a step found and what it would run.

    `proof` says that its actions show that the host works, change nothing of it, and wait for a
    restart that is due.
    """

    state: State
    detail: str = ""
    actions: tuple[Action, ...] = ()
    proof: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """What a host shall be; sizes in bytes. `feature_source` is a path on the host.

    `python` names an interpreter that is there already; else `layout` is brought; else what is
    found is used. `bundle` holds packages and boot files.
    `agent_user` is whom the host agent runs as: SYSTEM, or a group managed service account.
    `smoke` is the backend of the utility VM that proves it: `auto` is the host's own, `off` none.
    """

    root: ProtectedRoot
    port: int
    python: str = ""
    layout: PythonLayout | None = None
    bundle: Bundle | None = None
    least_python: tuple[int, int] = (3, 12)
    agent_user: str = "S-1-5-18"
    smoke: str = "auto"
    feature_source: str = ""
    least_memory: int = 8 * GIB
    least_disk: int = 40 * GIB
    quotas: Mapping[str, int] = field(
        default_factory=lambda: {
            r"MaxEnvelopeSizekb": 8192,
            r"Shell\MaxMemoryPerShellMB": 4096,
            r"Shell\MaxProcessesPerShell": 100,
            r"Shell\MaxShellsPerUser": 100,
            r"Service\MaxConcurrentOperationsPerUser": 4000,
        }
    )
    event_logs: Mapping[str, int] = field(
        default_factory=lambda: {"System": 64 * MIB, "Application": 64 * MIB}
    )


def _silent(_line: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Look:
    """What every step gets: the way to the host, what it is, what it shall be.

    `hold` is the lease under which changes are made; there is none before the host has Python.
    """

    winrm: WinRM
    facts: HostFacts
    options: Options
    deadline: Deadline
    hold: HostHold | None = None
    report: Callable[[str], None] = _silent

    def scripts(self, python: str) -> HostScripts:
        """Return the host's scripts, behind the fence of the lease where there is one."""
        if self.hold is not None and self.hold.held:
            return replace(self.hold.scripts, python=python)
        return HostScripts(self.winrm, python)


class Step(Protocol):
    """One thing that a provisioned host has."""

    @property
    def name(self) -> str:
        """Its name in plans and journals."""
        ...

    @property
    def elevated(self) -> bool:
        """Whether the protected root must stand before it."""
        ...

    def assess(self, look: Look) -> Assessment:
        """Return what there is and what is to be done. Raises RemoteError."""
        ...

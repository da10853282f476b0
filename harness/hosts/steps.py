"""What provisioning looks at and changes: small steps, each reads the host and says what to run.

A step keeps nothing between two looks: what it finds is the host's own state, so that a second
apply, or one after a controller that died, does exactly what is still lacking.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from harness.hosts.actions import Action
from harness.hosts.facts import HostFacts
from harness.hosts.protectedroot import ProtectedRoot
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

    `in_force_after_restart` says that its actions show only after a restart; `proof` that they show
    that the host works, change nothing of it, and wait for a restart that is due.
    """

    state: State
    detail: str = ""
    actions: tuple[Action, ...] = ()
    in_force_after_restart: bool = False
    proof: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """What a host shall be; sizes in bytes. `feature_source` is a path on the host.

    `agent_user` is whom the host agent runs as: SYSTEM, or a group managed service account.
    `smoke` is the backend of the utility VM that proves it: `auto` is the host's own, `off` none.
    """

    root: ProtectedRoot
    port: int
    python: str = "python"
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


@dataclass(frozen=True, slots=True)
class Look:
    """What every step gets: the way to the host, what it is, what it shall be."""

    winrm: WinRM
    facts: HostFacts
    options: Options
    deadline: Deadline


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

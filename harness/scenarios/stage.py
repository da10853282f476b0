"""What a play plays with: machines, disks, faults, and the containers it has started."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harness.containers import ContainerRootfs, LayerGuest
from harness.faults import FaultPlan
from harness.scsi import ScsiManager


class PlayedVm(Protocol):
    """A machine that a play drives: a real utility VM, or parts of one put together."""

    name: str
    scsi: ScsiManager

    @property
    def guest(self) -> LayerGuest:
        """What makes and removes combined layers."""
        ...

    def disks(self) -> Collection[Path]:
        """Return the disks that the machine really has."""
        ...

    def alive(self) -> bool:
        """Whether it runs."""
        ...

    def mounts(self) -> Collection[str]:
        """Return the paths where its guest has something mounted for the host."""
        ...

    def violations(self) -> Sequence[str]:
        """Return what broke a rule of host or guest so far."""
        ...

    def remove_directory(self, path: str) -> None:
        """Remove a container's directory from a mounted scratch disk."""
        ...

    def kill(self) -> None:
        """Pull the plug, and forget the machine."""
        ...

    def close(self) -> None:
        """Take the machine down; it holds nothing any more."""
        ...


@dataclass(eq=False)
class Held:
    """A container that was started: where, on which pod's disk, and whether all of it is there."""

    machine: int
    pod: int
    root: ContainerRootfs
    sure: bool = True
    """False once a release has failed: any part of it may be gone."""


@dataclass
class PlaySetting:
    """What a play plays with; `boot` makes machine number N."""

    boot: Callable[[int], PlayedVm]
    faults: FaultPlan
    layers: tuple[Path, ...]
    scratches: tuple[Path, ...]
    machines: int = 2
    on_close: Callable[[], None] = lambda: None
    verbs_per_look: int = 1
    """How many verbs go by before the guests' own mounts are looked at again."""
    hold: Callable[[str], HeldCall] | None = None
    """Holds the next call of a boundary until it is let go; None where that cannot be done."""


class HeldCall(Protocol):
    """A call that is held."""

    def wait(self) -> bool:
        """Return whether the call has come, within a second."""
        ...

    def let_go(self) -> None:
        """Let it go on."""
        ...

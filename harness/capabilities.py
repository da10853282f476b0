"""What each kind of compute service can do: a scenario says what it needs, and so where it runs."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final


class Capability(enum.StrEnum):
    """Something that not every backend has."""

    REAL_DISKS = "real-disks"
    """What the guest writes is in the VHDX file, and the file grows by it."""
    KERNEL = "kernel"
    """A Linux kernel separates the containers: device cgroup, namespaces, capabilities."""
    EXECUTABLES = "executables"
    """Containers run any program, not only those that the model plays."""


CAPABILITIES: Final = {
    "qemu": frozenset(Capability),
    "hcs": frozenset(Capability),
    "model": frozenset[Capability](),
}
"""By the compute service's name."""

WHY_NOT: Final = {
    Capability.REAL_DISKS: "its guests' writes stay in memory",
    Capability.KERNEL: "no kernel runs there",
    Capability.EXECUTABLES: "it plays a few programs and runs none",
}


def missing(backend: str, needs: Iterable[Capability]) -> str:
    """Return why a backend cannot run what `needs` these, in one sentence; "" when it can."""
    lacking = [need for need in needs if need not in CAPABILITIES[backend]]
    reasons = "; ".join(f"needs {need} ({WHY_NOT[need]})" for need in lacking)
    return f"backend {backend}: {reasons}" if reasons else ""

"""The steps that make a host ready, in their order."""

from __future__ import annotations

from harness.hosts.agentstep import Agent
from harness.hosts.pythonstep import Python
from harness.hosts.quotastep import Quotas
from harness.hosts.rightsstep import Rights
from harness.hosts.settingsteps import CrashDumps, Defender, EventLogs, Firewall, PowerPlan
from harness.hosts.smokestep import Smoke
from harness.hosts.steps import Step
from harness.hosts.supplysteps import BootFiles, Packages
from harness.hosts.systemsteps import (
    BitLocker,
    Features,
    HypervisorLaunch,
    PendingRestart,
    Preflight,
    Root,
)


def standard_steps() -> tuple[Step, ...]:
    """Return the steps in the order in which they are taken.

    Python comes early: with it comes the lease, and everything after it is done under that.
    """
    return (
        Preflight(),
        Rights(),
        BitLocker(),
        PendingRestart(),
        Root(),
        Python(),
        Quotas(),
        Firewall(),
        Defender(),
        PowerPlan(),
        Features(),
        HypervisorLaunch(),
        CrashDumps(),
        EventLogs(),
        Agent(),
        Packages(),
        BootFiles(),
        Smoke(),
    )

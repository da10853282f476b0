"""What a Windows host says of our disks: the first thing that a real host is asked."""

from __future__ import annotations

from harness.capabilities import Capability
from harness.hcs.crosscheck import CrossCheck
from harness.hcs.virtdisk import VirtDisk
from harness.scenarios.scenario import Scenario, ScenarioContext


def _native_disks(context: ScenarioContext) -> None:
    check = CrossCheck(VirtDisk.load())
    with context.step("Windows opens our disks, and we open those of Windows"):
        differences = check.run(context.lab.directory)
    context.fact("compared", check.compared)
    context.fact("differences", len(differences))
    context.check(not differences, "\n".join(map(str, differences)))


SCENARIOS = (
    Scenario(
        "native-disks",
        "Windows opens, attaches and merges our disks, we read its own: both see the same.",
        ("native", "disk"),
        _native_disks,
        (Capability.NATIVE_DISKS,),
    ),
)

"""The core scenarios on real utility VMs, and two whose point only a kernel can prove.

The whole catalogue runs on the model in `tests/harness/scenarios`, and on real machines by
`./dev soak` and `lcowlab run --all`.
"""

from __future__ import annotations

import pytest

from harness.lab import Lab
from harness.report.events import Outcome
from harness.scenarios.catalogue import CATALOGUE, select
from harness.scenarios.runner import run_scenarios
from harness.scenarios.scenario import Scenario

CORE = select(CATALOGUE, tags=["core"])
PROTECTED = select(CATALOGUE, names=["verity-layers"])  # encrypted-scratch formats too slowly
KERNEL_ONLY = select(CATALOGUE, names=["no-raw-scratch", "second-machine-refused"])


@pytest.mark.parametrize("scenario", CORE, ids=lambda scenario: scenario.name)
def test_core_scenario_passes_and_leaves_nothing(scenario: Scenario, lab: Lab) -> None:
    result = run_scenarios(lab, [scenario])
    (only,) = result.scenarios
    assert only.outcome is Outcome.PASSED, f"{only.reason}\n{only.console}"
    assert result.leaks == ()
    assert only.facts["containers"] == 4
    assert only.facts["scratch_attachments"] == 1
    assert only.facts["scratch_mounts"] == 1


@pytest.mark.qemu
def test_what_only_a_kernel_can_prove_holds() -> None:
    with Lab.open() as own:
        own.demo_image()
        result = run_scenarios(own, KERNEL_ONLY)
    outcomes = {each.name: (each.outcome, each.reason) for each in result.scenarios}
    assert outcomes == {each.name: (Outcome.PASSED, None) for each in KERNEL_ONLY}
    assert result.leaks == ()


@pytest.mark.qemu
def test_layers_are_verified_on_the_image_that_can() -> None:
    with Lab.open() as own:
        own.demo_image()
        result = run_scenarios(own, PROTECTED)
    (only,) = result.scenarios
    assert (only.outcome, only.reason) == (Outcome.PASSED, None)
    assert result.leaks == ()

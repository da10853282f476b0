"""Every shipped scenario, as the plugin runs it."""

from __future__ import annotations

import pytest

from harness.lab import Lab
from harness.report.events import Outcome
from harness.scenarios.catalogue import CATALOGUE
from harness.scenarios.runner import run_scenarios
from harness.scenarios.scenario import Scenario


@pytest.mark.parametrize("scenario", CATALOGUE, ids=lambda scenario: scenario.name)
def test_scenario_passes_and_leaves_nothing(scenario: Scenario, lab: Lab) -> None:
    result = run_scenarios(lab, [scenario])
    (only,) = result.scenarios
    assert only.outcome is Outcome.PASSED, f"{only.reason}\n{only.console}"
    assert result.leaks == ()
    assert only.facts["containers"] == 4
    assert only.facts["scratch_attachments"] == 1
    assert only.facts["scratch_mounts"] == 1

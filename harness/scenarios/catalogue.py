"""The list of all scenarios, and how some are selected."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from harness.errors import UsageError
from harness.scenarios import (
    crashes,
    disks,
    failures,
    isolation,
    machines,
    meetings,
    mountkinds,
    native,
    protected,
    scratch_life,
    space,
)
from harness.scenarios.scenario import Scenario
from harness.scenarios.shared_scratch import SHARED_SCRATCH, SHARED_SCRATCH_CRASH

CATALOGUE: tuple[Scenario, ...] = (
    *native.SCENARIOS,  # first: where disks differ, nothing else is worth its time
    SHARED_SCRATCH,
    SHARED_SCRATCH_CRASH,
    *scratch_life.SCENARIOS,
    *disks.SCENARIOS,
    *mountkinds.SCENARIOS,
    *meetings.SCENARIOS,
    *crashes.SCENARIOS,
    *failures.SCENARIOS,
    *space.SCENARIOS,
    *isolation.SCENARIOS,
    *machines.SCENARIOS,
    *protected.SCENARIOS,
)


def select(
    scenarios: Sequence[Scenario], *, names: Sequence[str] = (), tags: Sequence[str] = ()
) -> tuple[Scenario, ...]:
    """Return the named scenarios, or those with any of the tags, or all, in catalogue order.

    Raises UsageError naming the nearest known name for one that is unknown.
    """
    known = {scenario.name: scenario for scenario in scenarios}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"no scenario is called {name}{hint} (lcowlab scenario list)")
    if names:
        return tuple(known[name] for name in dict.fromkeys(names))
    if tags:
        return tuple(s for s in scenarios if set(tags) & set(s.tags))
    return tuple(scenarios)

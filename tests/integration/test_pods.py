"""The state machine of whole pods on real utility VMs."""

from __future__ import annotations

import os

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from harness.lab import Lab
from harness.scenarios.play import PodPlay
from harness.scenarios.playinlab import open_play
from tests.harness.scenarios.pod_machine import MACHINES, PODS, PodMachine

STEPS = int(os.environ.get("LCOWLAB_QEMU_STEPS", "500"))
STEPS_AN_EXAMPLE = 50


@pytest.mark.timeout(900)  # a minute on a quiet machine
def test_random_pods_leak_nothing_and_break_no_rule_on_real_machines(lab: Lab) -> None:
    play = open_play(lab, pods=PODS, machines=MACHINES)

    class Machine(PodMachine):
        silence = False  # it would cost a boot each
        deaths = False

        def open_play(self) -> PodPlay:
            play.lines.clear()
            return play

        def close_play(self) -> None:
            """Nothing: the machines, empty again, serve the next example."""

    try:
        while Machine.steps < STEPS:
            run_state_machine_as_test(
                Machine,
                settings=settings(
                    max_examples=max(1, (STEPS - Machine.steps) // STEPS_AN_EXAMPLE),
                    stateful_step_count=STEPS_AN_EXAMPLE,
                    database=None,
                    phases=(Phase.generate,),  # to shrink takes hours here; the model does that
                ),
            )
    finally:
        lab.faults.clear()
        play.close()
    assert Machine.steps >= STEPS
    assert lab.service.enumerate() == []

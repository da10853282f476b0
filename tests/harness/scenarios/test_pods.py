"""Whole pods against the model: random verbs, plain counters as the judge."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from harness.errors import CheckFailedError
from harness.faults import FaultPlan
from harness.model.disks import DiskStore
from harness.scenarios.play import PodPlay
from harness.scenarios.stage import PlaySetting
from harness.scsi import DiskClaims, Slot
from snapshotter.ext4.layertar import convert_layer
from snapshotter.scratch.template import ScratchTemplate
from snapshotter.units import GIB
from tests.fakes.direct_vm import DirectVm, Holds
from tests.harness.scenarios.pod_machine import MACHINES, PODS, PodMachine
from tests.snapshotter.archives import tar

STEPS = int(os.environ.get("LCOWLAB_MODEL_STEPS", "20000"))
"""./dev soak asks for more."""
STEPS_AN_EXAMPLE = 100


class DirectMachine(PodMachine):
    """On the agent's own code, called directly."""

    vm: type[DirectVm] = DirectVm
    files: tuple[tuple[Path, ...], tuple[Path, ...]] = ((), ())
    store: DiskStore

    def open_play(self) -> PodPlay:
        faults, claims, holds = FaultPlan(), DiskClaims(), Holds()
        layers, scratches = self.files
        return PodPlay(
            PlaySetting(
                boot=lambda number: self.vm(
                    f"vm{number}", store=self.store, faults=faults, claims=claims, holds=holds
                ),
                faults=faults,
                layers=layers,
                scratches=scratches,
                machines=MACHINES,
                hold=holds.hold,
            )
        )


@pytest.fixture(scope="module")
def machine() -> Iterator[type[DirectMachine]]:
    """The state machine on two layers and a scratch disk a pod, all of them real files."""
    with tempfile.TemporaryDirectory() as folder:
        layers = []
        for name in ("lower", "upper"):
            layers.append(Path(folder, f"{name}.vhd"))
            convert_layer(io.BytesIO(tar({f"etc/{name}": name.encode()})), layers[-1])
        scratches = [Path(folder, f"scratch{number}.vhdx") for number in range(PODS)]
        template = ScratchTemplate.build(GIB)
        for scratch in scratches:
            template.write(scratch)

        class Machine(DirectMachine):
            files = tuple(layers), tuple(scratches)
            store = DiskStore()

        yield Machine


@pytest.mark.timeout(900)  # ./dev soak asks for ten times the steps, elsewhere others work, too
def test_random_pods_leak_nothing_and_break_no_rule(machine: type[DirectMachine]) -> None:
    machine.steps = 0
    while machine.steps < STEPS:
        left = STEPS - machine.steps
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=max(1, left // STEPS_AN_EXAMPLE),
                stateful_step_count=STEPS_AN_EXAMPLE,
                database=None,
            ),
        )
    assert machine.steps >= STEPS


class ForgetfulVm(DirectVm):
    """A machine with a bug: an eject that does nothing, and says that it went well."""

    def eject(self, slot: Slot) -> None:
        del slot


def _first_failure(machine: type[DirectMachine]) -> CheckFailedError:
    """Return what a broken machine fails with, shrunk.

    Sharers start in threads, so now and then a run takes another course when it is repeated, and
    the search is given up: then it starts anew.
    """
    for _ in range(5):
        try:
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=50,
                    stateful_step_count=20,
                    database=None,
                    phases=(Phase.generate, Phase.shrink),
                    print_blob=False,
                ),
            )
        except CheckFailedError as failure:
            return failure
        except Flaky:
            continue
    raise AssertionError("no run failed as it should")


def test_a_counterexample_prints_as_a_scenario_that_fails_the_same_way(
    machine: type[DirectMachine],
) -> None:
    class Broken(machine):  # type: ignore[valid-type, misc]
        vm = ForgetfulVm

    failure = _first_failure(Broken)
    assert "without an eject" in str(failure)
    (text,) = [note for note in failure.__notes__ if "as a scenario" in note]
    body = text.partition("machines=2)\n")[2].strip().splitlines()
    assert len(body) <= 3, f"not shrunk: {body}"
    play = Broken().play
    with pytest.raises(CheckFailedError, match="without an eject"):
        exec("\n".join([*(line.strip() for line in body[:-1]), "play.finish()"]), {"play": play})

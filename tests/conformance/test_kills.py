"""An image is imported by a real containerd while one of the two is killed, over and over."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest

from tests.conformance.stack import NAMESPACE, PLUGIN, Stack
from tests.conformance.test_containerd import LAYERS, until_empty

_IMPORT_S = 1.2
"""About how long an import takes undisturbed."""


@pytest.mark.long
@pytest.mark.parametrize("seed", range(6))
def test_an_import_that_was_cut_off_is_done_by_the_next_one(
    folder: Path, image: Path, seed: int
) -> None:
    rng = random.Random(seed)
    with Stack.running(folder, mounts="linux-host") as stack:
        for _ in range(4):
            victim = rng.choice([stack.service, stack.containerd])
            command = ["ctr", "-a", str(stack.containerd.socket), "-n", NAMESPACE]
            command += ["images", "import", "--snapshotter", PLUGIN, str(image)]
            with subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as importing:
                time.sleep(rng.uniform(0, _IMPORT_S))
                victim.kill()
                victim.start()
                importing.wait(60)
            stack.until_answers()
        stack.ctr("images", "import", "--snapshotter", PLUGIN, str(image))
        committed = {key for key, (_, kind) in stack.table().items() if kind == "Committed"}
        assert len(committed) == LAYERS
        stack.ctr("images", "rm", "--sync", *stack.ctr("images", "ls", "-q").split())
        # What a cut off import had prepared is held by its lease, a day long.
        for lease in stack.ctr("leases", "ls", "-q").split():
            stack.ctr("leases", "rm", "--sync", lease)
        until_empty(stack)
        assert not list((stack.store / "m").glob("*.ext4"))

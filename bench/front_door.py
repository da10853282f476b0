"""What the front doors cost: a second `./dev` call, the KVM verdict, the main job."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.measure import Comparison, Figure, compare
from harness.image.build import ensure_image
from harness.qemu.hostfacts import find_qemu
from harness.qemu.kvm import probe_kvm

_TOP = Path(__file__).parent.parent


def run() -> Iterator[Comparison | Figure]:
    """Yield every result of this family."""
    lcowlab = str(Path(sys.executable).parent / "lcowlab")

    def call(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, cwd=_TOP)

    both = compare(
        "./dev run --help, everything set up",
        lambda: call("./dev", "run", "--help"),
        "lcowlab run --help",
        lambda: call(lcowlab, "run", "--help"),
    )
    yield both
    yield Figure("./dev's own share of a second call", both.ours_ms - both.peer_ms, "ms", 200.0)
    began = time.perf_counter()
    probe_kvm(qemu=find_qemu())
    yield Figure("KVM verdict, not cached", (time.perf_counter() - began) * 1000, "ms", 1000.0)
    image = ensure_image()
    yield Figure("initrd, uncompressed", image.initrd.stat().st_size / 1e6, "MB", 25.0)
    done = subprocess.run([lcowlab, "run", "--json"], cwd=_TOP, capture_output=True, check=False)
    document = json.loads(done.stdout)
    yield Figure("core scenarios, emulated", document["duration_s"], "s", 60.0)
    for scenario in document["scenarios"]:
        yield Figure(f"scenario {scenario['name']}", scenario["duration_s"], "s", 60.0)

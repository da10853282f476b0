"""How often the store waits for the disk: it is what an operation costs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import os, sys
from snapshotter import Snapshotter
from snapshotter.labels import OWNER_KEY, REUSE_SCRATCH
share = {REUSE_SCRATCH: "true", OWNER_KEY: "warm"}
with Snapshotter.open(sys.argv[1]) as store:
    store.prepare("warm")
    for name, step in (
        ("fresh", lambda: store.prepare("fresh")),
        ("shared", lambda: store.prepare("shared", labels=share)),
        ("layer", lambda: store.prepare("extract-layer")),
        ("commit", lambda: store.commit("layer", "extract-layer")),
        ("view", lambda: store.view("v", "layer")),
        ("remove", lambda: store.remove("fresh")),
        ("end", lambda: None),
    ):
        os.path.exists(f"/step/{name}")
        step()
"""
MOST = {"fresh": 3, "shared": 1, "layer": 1, "commit": 2, "view": 1, "remove": 1}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_an_operation_waits_for_the_disk_as_seldom_as_it_can(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *("strace", "-f", "-e", "trace=fsync,fdatasync,sync_file_range,msync,/.*stat.*"),
            *(sys.executable, "-c", PROGRAM, str(tmp_path / "root")),
        ],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    if "Operation not permitted" in done.stderr.split("\n")[0]:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr[-2000:]
    _, *steps = re.split(r'"/step/(\w+)"', done.stderr)
    counted = {
        name: len(re.findall(r"\b(?:fsync|fdatasync|sync_file_range|msync)\(", text))
        for name, text in zip(steps[::2], steps[1::2], strict=True)
    }
    del counted["end"]
    assert counted.keys() == MOST.keys()
    assert all(0 < count <= MOST[name] for name, count in counted.items()), counted

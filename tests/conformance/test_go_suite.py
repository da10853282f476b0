"""containerd 1.6's own snapshots/testsuite, through its own proxy client."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.gobuild import GoPrograms
from tests.conformance.leaks import assert_nothing_left

SUB_TESTS = 21
RESULT = re.compile(r"^ +--- (PASS|FAIL|SKIP): TestSnapshotter/(\S+) ", re.MULTILINE)


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize(
    "mounts", ["lcow", "linux-host", pytest.param("lcow-pipe", marks=pytest.mark.long)]
)
def test_containerds_suite_passes_in_mode(
    mounts: str, programs: GoPrograms, tmp_path: Path
) -> None:
    sockets = tmp_path / "s"
    sockets.mkdir()
    farm = subprocess.Popen(
        [sys.executable, "-m", "tests.conformance.farm", str(sockets), str(SUB_TESTS), mounts],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with farm:
        assert farm.stdout is not None
        if farm.stdout.readline() != "ready\n":
            pytest.fail(f"the services did not start: {farm.communicate()[1]}")
        suite = subprocess.run(
            [str(programs.suite), "-test.v", "-test.root", "-test.timeout=120s"],
            env={
                **os.environ,
                "SUITE_SOCKETS": str(sockets),
                "SUITE_MOUNTS": mounts.removesuffix("-pipe"),
                "TMPDIR": str(tmp_path),
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        errors = farm.communicate("")[1]
    results = {name: result for result, name in RESULT.findall(suite.stdout)}
    failed = sorted(name for name, result in results.items() if result == "FAIL")
    assert failed == [], suite.stdout[-8000:] + errors
    # 1.6 skips this one always.
    assert [name for name, result in results.items() if result == "SKIP"] == ["Rename"]
    assert len(results) == SUB_TESTS
    assert (suite.returncode, farm.returncode, errors) == (0, 0, "")
    assert_nothing_left(tmp_path)

"""The commands of docs/containerd.md, as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conformance.leaks import assert_nothing_left
from tests.conformance.stack import missing_programs

CHECKOUT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.usefixtures("as_root")
def test_the_commands_for_linux_do_what_the_page_says(tmp_path: Path) -> None:
    absent = missing_programs() or (None if shutil.which("runc") else "no runc")
    if absent is not None:
        pytest.skip(absent)
    if not (CHECKOUT / ".venv/bin/lcow-snapshotter").is_file():
        pytest.skip("the page's commands are for a checkout with its .venv")
    page = (CHECKOUT / "docs" / "containerd.md").read_text()
    commands = "set -eu\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" + "".join(
        BLOCK.findall(page)
    )
    done = subprocess.run(
        ["bash", "-c", commands],
        cwd=CHECKOUT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    output = done.stdout
    assert done.returncode == 0, output + done.stderr
    assert output.count("layer.vhd\n") == 3
    assert "hello from the lcowlab demo image\n" in output
    shared = output[output.index("hello from") :]
    assert re.search(r"^pod +sha256:\w+ +Active", shared, re.MULTILINE)
    assert re.search(r"demo/\d+/workload", shared[shared.index("Active") :])
    # The last list has nothing but its head.
    assert output.rstrip().endswith("KIND")
    assert list(tmp_path.iterdir()) == []
    assert_nothing_left(tmp_path)

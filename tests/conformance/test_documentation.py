"""The commands of docs/containerd.md, as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
DEADLINE_S = 60
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_commands_for_linux_do_what_the_page_says(folder: Path) -> None:
    if shutil.which("runc") is None:
        pytest.skip("no runc: apt-get install runc")
    if not (CHECKOUT / ".venv/bin/lcow-snapshotter").is_file():
        pytest.skip("the page's commands are for a checkout with its .venv")
    page = (CHECKOUT / "docs" / "containerd.md").read_text()
    commands = "set -eu\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" + "".join(
        BLOCK.findall(page)
    )
    with subprocess.Popen(
        ["bash", "-c", commands],
        cwd=CHECKOUT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            output, _ = shell.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGTERM)
            output, _ = shell.communicate(timeout=30)
    logs = "".join(path.read_text() for path in folder.glob("*/*.log"))
    assert shell.returncode == 0, output + logs
    assert output.count("layer.vhd\n") == 3
    assert "hello from the lcowlab demo image\n" in output
    shared = output[output.index("hello from") :]
    assert re.search(r"^pod +sha256:\w+ +Active", shared, re.MULTILINE)
    assert re.search(r"demo/\d+/workload", shared[shared.index("Active") :])
    # The last list has nothing but its head.
    assert output.rstrip().endswith("KIND")
    assert [path.name for path in folder.iterdir()] == ["mnt"]

"""What a test left on this machine: mounts, and loop devices over files of its folder."""

from __future__ import annotations

import time
from pathlib import Path

from snapshotter.linuxhost.syscalls import mounts_below


def loops_below(folder: Path) -> list[str]:
    """The files below `folder` that a loop device still has."""
    found = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = entry.read_text().strip()
        except OSError:
            continue
        if backing.startswith(f"{folder}/"):
            found.append(backing)
    return found


def assert_nothing_left(folder: Path) -> None:
    """Mounts go lazily and their devices with them: look for a second at most."""
    folder = folder.resolve()
    for _ in range(50):
        if not mounts_below(folder) and not loops_below(folder):
            return
        time.sleep(0.02)
    assert [str(point.path) for point in mounts_below(folder)] == []
    assert loops_below(folder) == []

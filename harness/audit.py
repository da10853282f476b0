"""What a run left behind: processes by ancestry, memory files and sockets, mounts, and the store.

Each function looks at one kind of thing and names what it finds; a `Baseline` is what a process
held before, so that only what was added counts.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from harness.errors import HarnessError
from harness.uvm import UtilityVm
from snapshotter import Snapshotter

_SETTLE_S: Final = 2.0  # how long threads may take to close what they held
_POLL_S: Final = 0.01
_OCTAL: Final = re.compile(r"\\([0-7]{3})")
_KINDS: Final = {
    "sockets": re.compile(r"socket:"),
    "memory files": re.compile(r"/memfd:|/dev/shm/"),
    "disk files": re.compile(r".*\.(?:vhdx?|img)(?: \(deleted\))?$"),
}


def processes_below(pid: int) -> list[tuple[int, str]]:
    """Return (pid, name) of the processes that descend from `pid`; of those that ended, none.

    Linux; empty elsewhere.
    """
    children: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "stat").read_text()
        except OSError:
            continue
        name = text[text.index("(") + 1 : text.rindex(")")]
        fields = text[text.rindex(")") + 2 :].split()
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append((int(entry.name), name))
    found: list[tuple[int, str]] = []
    waiting = [pid]
    while waiting:
        for child, name in children.get(waiting.pop(), []):
            waiting.append(child)
            found.append((child, name))
    return found


def mounts_below(directory: Path) -> list[str]:
    """Return mount points below a directory (Linux; empty elsewhere)."""
    table = Path("/proc/self/mounts")
    if not table.exists():
        return []
    lines = table.read_text(errors="surrogateescape").splitlines()
    # proc(5): blanks and backslashes in a path are written as octal numbers.
    targets = (_OCTAL.sub(lambda code: chr(int(code[1], 8)), line.split(" ")[1]) for line in lines)
    return [target for target in targets if target.startswith(f"{directory}/")]


def guest_mounts(vm: UtilityVm) -> list[str]:
    """Return where the guest's kernel has something mounted that came from the host."""
    table = vm.processes.start(["/bin/cat", "/proc/self/mountinfo"]).wait().text.splitlines()
    points = [line.split()[4] for line in table]
    return [point for point in points if point.startswith(("/run/gcs/", "/run/mounts/"))]


def held_in(vm: UtilityVm) -> list[str]:
    """Return the disks and mounts in a machine that runs: who holds what, and the kernel's view."""
    disks = vm.scsi.snapshot().attachments
    found = [
        f"disk {each.path} in {vm.system_id} at {each.slot}, held by "
        f"{', '.join(each.holders) or 'nobody'}"
        for each in disks
    ]
    with contextlib.suppress(HarnessError):  # a guest that cannot be asked has ended, or will
        found += [f"guest mount {point} in {vm.system_id}" for point in guest_mounts(vm)]
    return found


def store_leftovers(snapshotter: Snapshotter, root: Path, layers: Collection[str]) -> list[str]:
    """Return rows, snapshot directories and shared scratch disks beside the image layers."""
    found = [f"snapshot {info.name}" for info in snapshotter.walk() if info.name not in layers]
    directories = sorted(path.name for path in (root / "snapshots").iterdir())
    if len(directories) != len(layers):
        found.append(f"snapshot directories: {', '.join(directories)} for {len(layers)} layers")
    scratch = root / "scratch"
    if scratch.is_dir():
        found += [f"scratch {path.name}" for path in scratch.iterdir() if path.is_dir()]
    return found


@dataclass(frozen=True, slots=True)
class Baseline:
    """What this process holds open, counted by kind, and the processes below it."""

    held: Counter[str]
    processes: frozenset[int]

    @classmethod
    def take(cls) -> Self:
        """Return what is held now (Linux; empty elsewhere)."""
        return cls(_held(), frozenset(pid for pid, _ in processes_below(os.getpid())))

    def added(self) -> list[str]:
        """Return what is held beyond this baseline, once what is going has had time to go."""
        deadline = time.monotonic() + _SETTLE_S
        while (found := self._added()) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return found

    def _added(self) -> list[str]:
        more = _held() - self.held
        found = [f"{count} more {kind} open" for kind, count in sorted(more.items())]
        running = processes_below(os.getpid())
        found += [f"process {pid}: {name}" for pid, name in running if pid not in self.processes]
        return found


def _held() -> Counter[str]:
    held: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            target = str(entry.readlink())
            held.update(kind for kind, pattern in _KINDS.items() if pattern.match(target))
    return held

"""Kill processes that work on one store, reopen it, and compare it with what they were promised."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from snapshotter import Kind, Snapshotter
from tests.snapshotter.crash.faults import POINTS, Fault
from tests.snapshotter.crash.work import MARK_SIZE, mark

REPOSITORY = Path(__file__).parents[3]


@dataclass
class Promises:
    """What must be there, what may be, which numbers were given out, whose disks were written."""

    there: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    numbers: dict[int, str] = field(default_factory=dict)
    marked: set[str] = field(default_factory=set)

    def hear(self, line: str) -> None:
        """Take one line of a worker's log."""
        match line.split():
            case ["?", *keys]:
                self.there.difference_update(keys)
                self.unsure.update(keys)
            case ["+", key, number]:
                self.unsure.discard(key)
                self.there.add(key)
                self.record(int(number), key)
            case ["c", name]:
                self.unsure -= {name, f"extract-{name}"}
                self.there.add(name)
            case ["-", key]:
                self.unsure.discard(key)
            case ["d", key]:
                self.marked.add(key)

    def record(self, number: int, key: str) -> None:
        """A number is one snapshot's for ever; Commit changes its key alone."""
        base = key.removeprefix("extract-")
        assert self.numbers.setdefault(number, base) == base, f"number {number} was reused"


class Killer:
    """A process that forks workers, kills them or sees them die, and starts in no time."""

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.snapshotter.crash.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.communicate()

    def run(
        self, root: Path, log: Path, name: str, *, fault: Fault | None, delay_s: float, threads: int
    ) -> bool:
        """Let a worker run until it dies; whether SIGKILL was the cause."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        request = {
            "root": str(root),
            "log": str(log),
            "name": name,
            "fault": None if fault is None else str(fault),
            "delay_s": delay_s,
            "threads": threads,
        }
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return self._server.stdout.readline() == "-9\n"


def check(root: Path, promises: Promises) -> None:
    """Open the store, as its recovery leaves it, and compare."""
    with Snapshotter.open(root) as store:
        keys, directories, disks = set(), set(), set()
        for info in store.walk():
            directory = store.directory(info.name)
            keys.add(info.name)
            directories.add(directory.name)
            promises.record(int(directory.name), info.name)
            assert directory.is_dir(), f"{info.name} has no directory"
            if info.kind is Kind.COMMITTED:
                assert (directory / "layer.vhd").read_text() == info.name
            shared = store.shared_disk(info.name)
            if shared is not None:
                assert (directory / "sandbox.vhdx").resolve(strict=True) == shared.path
                disks.add(shared.path.parent.name)
                if info.name in promises.marked:
                    assert shared.path.read_bytes()[-MARK_SIZE:] == mark(info.name)
        assert promises.there <= keys, f"lost: {promises.there - keys}"
        resurrected = keys - promises.there - promises.unsure
        assert not resurrected, f"nobody made or kept: {resurrected}"
        assert {path.name for path in (root / "snapshots").iterdir()} == directories
        assert {path.name for path in (root / "scratch").iterdir()} == disks
    assert list((root / "owners").iterdir()) == []
    # What was unsure has been decided now.
    promises.there = keys
    promises.unsure = set()


def faults() -> list[Fault]:
    """Every named point, before and after."""
    return [Fault(point, when, 1) for point in POINTS for when in ("before", "after")]


def kill(
    killer: Killer, root: Path, promises: Promises, number: int, fault: Fault | None, delay_s: float
) -> None:
    """One kill, at a fault or after a delay, and the check."""
    log = root.with_name(f"{root.name}-{number}.log")
    killed = killer.run(
        *(root, log, f"w{number}"),
        fault=fault,
        delay_s=delay_s,
        threads=1 if fault else 4,
    )
    assert killed, f"worker {number} was not killed ({fault or delay_s})"
    lines = log.read_text().split("\n")
    for line in lines[:-1]:
        promises.hear(line)
    log.unlink()
    check(root, promises)


def prove(root: Path, kills: int, seed: int) -> dict[str, int]:
    """`kills` kills of workers on one store: first each named fault, then at random.

    Says how many of each; raises AssertionError for the first promise that was broken.
    """
    chance = random.Random(seed)
    promises = Promises()
    named = faults()
    with Killer() as killer:
        for number in range(kills):
            fault: Fault | None = None
            if number < len(named):
                fault = named[number]
            elif number % 3 == 0:
                chosen = chance.choice(named)
                fault = Fault(chosen.point, chosen.when, chance.randint(1, 6))
            kill(killer, root, promises, number, fault, chance.uniform(0.0, 0.08))
    return {"kills": kills, "snapshots": len(promises.there), "numbers": len(promises.numbers)}

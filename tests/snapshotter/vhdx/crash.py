"""A file that remembers what was written between flushes, and what a power cut may leave of it.

A cut keeps everything before the last flush. Of what came after, each sector of 512 bytes is as it
was at any moment since, independently of every other one, so that writes are torn and reordered;
the length of the file is any of those it had since.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from snapshotter.units import KIB, MIB

from .memory import MemoryFile

SECTOR = 512


@dataclass(frozen=True, slots=True)
class Write:
    offset: int
    data: bytes | int  # an integer: so many zeros
    size: int  # length of the file afterwards


@dataclass(frozen=True, slots=True)
class Resize:
    size: int


@dataclass(frozen=True, slots=True)
class Flush:
    pass


Step = Write | Resize | Flush


class CrashFile(MemoryFile):
    """A `MemoryFile` that keeps a journal of what was done to it since `start`."""

    def __init__(self, size: int = 0) -> None:
        super().__init__(size)
        self.steps: list[Step] = []
        self._before = MemoryFile(0)

    @classmethod
    def starting_as(cls, file: MemoryFile) -> CrashFile:
        started = cls(0)
        started.become(file)
        started._before.become(file)
        return started

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        super().write_at(offset, data)
        self.steps.append(Write(offset, bytes(data), self.size))

    def write_zeros(self, offset: int, length: int) -> None:
        super().write_zeros(offset, length)
        self.steps.append(Write(offset, length, self.size))

    def truncate(self, size: int) -> None:
        super().truncate(size)
        self.steps.append(Resize(size))

    def flush(self) -> None:
        self.steps.append(Flush())

    def cut(self, after: int, chance: random.Random) -> MemoryFile:
        """What may be on the disk after a power cut behind the first `after` steps."""
        durable = max((n + 1 for n, s in enumerate(self.steps[:after]) if s == Flush()), default=0)
        left = MemoryFile(0)
        left.become(self._before)
        for step in self.steps[:durable]:
            _apply(left, step)
        pending = self.steps[durable:after]
        taste = chance.choice(("none", "all", "torn", "torn", "torn"))
        if taste == "none" or not pending:
            return left
        if taste == "torn":
            return _tear(left, pending, chance)
        for step in pending:
            _apply(left, step)
        return left


def _apply(file: MemoryFile, step: Step) -> None:
    if isinstance(step, Write):
        if isinstance(step.data, int):
            file.write_zeros(step.offset, max(0, min(step.data, file.size - step.offset)))
        else:
            file.write_at(step.offset, step.data)
    elif isinstance(step, Resize):
        file.truncate(step.size)


def _tear(before: MemoryFile, pending: Sequence[Step], chance: random.Random) -> MemoryFile:
    """Each chunk of the file as it was after a number of `pending` steps of its own.

    Chunks are sectors, but 32 KiB where much was written: enough to tear, quick enough to run.
    """
    written: dict[int, int] = {}
    ranges = [(s.offset, _length(s)) for s in pending if isinstance(s, Write)]
    for offset, length in ranges:
        for region in range(offset // MIB, -(-(offset + length) // MIB)):
            written[region] = written.get(region, 0) + min(length, MIB)
    moments: dict[int, list[tuple[int, int]]] = {}
    for chunk in sorted(set(_chunks(ranges, written))):
        # Nothing and everything more often than the rest: a mixture of these is the usual trouble.
        moment = chance.choice((0, len(pending), chance.randint(0, len(pending))))
        moments.setdefault(moment, []).append(chunk)
    size = chance.choice([before.size, *(s.size for s in pending if not isinstance(s, Flush))])

    left, running = MemoryFile(0), MemoryFile(0)
    left.become(before)
    running.become(before)
    left.truncate(max(left.size, size))
    for moment in range(len(pending) + 1):
        for offset, length in moments.get(moment, []):
            if (data := running.read_at(offset, length)) and offset + len(data) <= left.size:
                left.write_at(offset, data)
        if moment < len(pending):
            _apply(running, pending[moment])
    left.truncate(size)
    return left


def _chunks(
    ranges: Sequence[tuple[int, int]], written: Mapping[int, int]
) -> Iterator[tuple[int, int]]:
    for offset, length in ranges:
        at = offset
        while at < offset + length:
            size = SECTOR if written[at // MIB] <= 128 * KIB else 32 * KIB
            at = at // size * size
            yield at, size
            at += size


def _length(step: Write) -> int:
    return step.data if isinstance(step.data, int) else len(step.data)

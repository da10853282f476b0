"""Power cuts: whatever a cut leaves opens again, with every sector old or new."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from snapshotter.blockio import DiskContent
from snapshotter.errors import VhdxCorruptError
from snapshotter.units import GIB, KIB, MIB
from snapshotter.vhdx import VhdxDisk, check_vhdx, emit_vhdx, write_into

from .crash import CrashFile, Flush
from .memory import MemoryFile

SECTOR = 512
DISK = 5 * MIB + 3 * SECTOR
BLOCKS = -(-DISK // MIB)
PARENT = MemoryFile.of(
    DiskContent(DISK, ((MIB - 700, b"p" * 5000), (3 * MIB, b"q" * MIB), (DISK - 100, b"r" * 100)))
)


@dataclass
class Guest:
    """A disk under changes, and what each of its sectors may read as after a cut."""

    file: CrashFile
    parent: MemoryFile | None
    # (steps of the file before the operation began, after it ended, its effect or None: a flush)
    history: list[tuple[int, int, tuple[int, bytes] | None]] = field(default_factory=list)
    first: bytes = b""

    def run(self, operations: Iterable[tuple[str, int, int, int]]) -> None:
        disk = VhdxDisk.load_writable(self.file, parent=self.parent)
        self.first = disk.read_at(0, DISK)
        for kind, offset, length, fill in operations:
            before = len(self.file.steps)
            length = min(length, DISK - offset)
            if kind == "write":
                disk.write_at(offset, bytes([fill]) * length)
                effect: tuple[int, bytes] | None = offset, bytes([fill]) * length
            elif kind == "trim":
                disk.trim(offset, length)
                effect = offset, bytes(length)
            elif kind == "flush":
                disk.flush()
                effect = None
            else:
                disk.close()
                disk = VhdxDisk.load_writable(self.file, parent=self.parent)
                effect = None
            self.history.append((before, len(self.file.steps), effect))
        disk.close()
        self.history.append((len(self.file.steps), len(self.file.steps), None))

    def check(self, left: MemoryFile, cut: int) -> bytes:
        """Fail where the disk in `left` is not one that a cut after `cut` steps may leave."""
        disk = VhdxDisk.load(left, parent=self.parent)
        # The headers never name a log without an entry: to other programs that is damage.
        assert not disk.info().log_dirty or disk.info().replayed_entries
        found = disk.read_at(0, DISK)
        state = bytearray(self.first)
        maybe: list[tuple[int, bytes]] = []
        for before, after, effect in self.history:
            if before >= cut and (effect is not None or after > cut):
                break
            if effect is not None:
                maybe.append(effect)
            elif after <= cut:
                for offset, data in maybe:
                    state[offset : offset + len(data)] = data
                maybe.clear()
        if found == state:
            return found
        for start in range(0, DISK, SECTOR):
            sector = found[start : start + SECTOR]
            if sector == state[start : start + SECTOR]:
                continue
            version = bytearray(state[start : start + SECTOR])
            versions = [bytes(version)]
            for offset, data in maybe:
                low, high = max(start, offset), min(start + SECTOR, offset + len(data))
                if low < high:
                    version[low - start : high - start] = data[low - offset : high - offset]
                    versions.append(bytes(version))
            assert sector in versions, f"sector at {start:#x} is neither old nor new"
        return found


def new_file(*, child: bool, fixed: bool = False) -> MemoryFile:
    content = DiskContent(DISK, () if child else ((2 * MIB, b"0" * MIB),))
    return MemoryFile.of(
        emit_vhdx(content, fixed=fixed, parent_locator=b"locator of a test" if child else None)
    )


sectors = st.integers(0, DISK // SECTOR - 1)
operations = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(("write", "write", "write", "trim")),
            sectors.map(lambda n: n * SECTOR) | st.integers(0, DISK - 1),
            st.sampled_from((1, SECTOR, 700, 64 * KIB, MIB, 2 * MIB + SECTOR)),
            st.integers(1, 255),
        ),
        st.tuples(
            st.sampled_from(("write", "trim")),
            st.integers(0, BLOCKS - 1).map(lambda n: n * MIB),
            st.just(MIB),
            st.integers(1, 255),
        ),
        st.tuples(
            st.sampled_from(("flush", "flush", "reopen")), st.just(0), st.just(0), st.just(0)
        ),
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("kind", ["dynamic", "child", "fixed"])
@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(operations=operations, seed=st.integers(0, 2**32 - 1))
def test_every_cut_leaves_each_sector_old_or_new(
    kind: str, operations: list[tuple[str, int, int, int]], seed: int
) -> None:
    chance = random.Random(seed)
    parent = PARENT if kind == "child" else None
    file = CrashFile.starting_as(new_file(child=kind == "child", fixed=kind == "fixed"))
    guest = Guest(file, parent)
    guest.run(operations)
    for _ in range(8):
        cut = chance.randint(0, len(file.steps))
        left = file.cut(cut, chance)
        found = guest.check(left, cut)

        # The replay on disk may be cut too, and again.
        for _ in range(2):
            replay = CrashFile.starting_as(left)
            with VhdxDisk.load_writable(replay, parent=parent) as disk:
                assert disk.read_at(0, DISK) == found
            left = replay.cut(chance.randint(0, len(replay.steps)), chance)
            assert VhdxDisk.load(left, parent=parent).read_at(0, DISK) == found


def test_every_step_of_a_session_can_be_the_last() -> None:
    """Exhaustive where the random search might miss one: each cut, each taste of it."""
    file = CrashFile.starting_as(new_file(child=False))
    guest = Guest(file, None)
    guest.run(
        [
            ("write", 0, 4096, 1),
            ("flush", 0, 0, 0),
            ("trim", 2 * MIB, MIB, 0),
            ("write", 4 * MIB, 4096, 2),
            ("flush", 0, 0, 0),
            ("write", 3 * MIB, 4096, 3),
        ]
    )
    chance = random.Random(1)
    for cut in range(len(file.steps) + 1):
        for _ in range(12):
            guest.check(file.cut(cut, chance), cut)


def test_new_blocks_appear_together_or_not_at_all() -> None:
    """Their entries are in two sectors of the table, so that one log entry must have both."""

    def look(disk: VhdxDisk) -> list[bytes]:
        return [disk.read_at(block * MIB, 4096) for block in (0, 2, 600)]

    content = DiskContent(GIB, ((2 * MIB, b"0" * MIB),))
    file = CrashFile.starting_as(MemoryFile.of(emit_vhdx(content)))
    before = look(VhdxDisk.load(file))
    with VhdxDisk.load_writable(file) as disk:
        disk.write_at(0, b"a" * 4096)
        disk.write_at(600 * MIB + 5, b"b" * 100)
        disk.trim(2 * MIB, MIB)
        after = look(disk)
    chance = random.Random(2)
    seen = set()
    for cut in range(len(file.steps) + 1):
        for _ in range(60):
            found = look(VhdxDisk.load(file.cut(cut, chance)))
            assert found in (before, after)
            seen.add(found == after)
    assert seen == {True, False}


@pytest.mark.parametrize("fixed", [False, True])
def test_a_new_file_is_no_disk_or_all_of_it(fixed: bool) -> None:
    content = DiskContent(DISK, ((MIB - 9, b"created" * 1000), (4 * MIB, b"x" * MIB)))
    whole = MemoryFile.of(content).read_at(0, DISK)
    file = CrashFile(0)
    write_into(file, emit_vhdx(content, fixed=fixed))
    chance = random.Random(4)
    made = 0
    for cut in range(len(file.steps) + 1):
        for _ in range(12):
            left = file.cut(cut, chance)
            findings = check_vhdx(left)
            if findings:
                assert [finding.structure for finding in findings] == ["file identifier"]
                assert cut < len(file.steps)
            else:
                assert VhdxDisk.load(left).read_at(0, DISK) == whole
                made += 1
    assert made >= 12


def test_a_crash_file_loses_what_was_not_flushed() -> None:
    """The proof above proves something: a writer that does not flush fails it."""

    class Forgetful(CrashFile):
        def flush(self) -> None:
            if len([s for s in self.steps if s == Flush()]) < 3:  # opening the session
                super().flush()

    file = Forgetful.starting_as(new_file(child=False))
    assert isinstance(file, Forgetful)
    guest = Guest(file, None)
    guest.run([("write", 0, MIB, 1), ("flush", 0, 0, 0), ("write", 0, MIB, 2), ("flush", 0, 0, 0)])
    chance = random.Random(3)

    def survives(cut: int) -> bool:
        try:
            guest.check(file.cut(cut, chance), cut)
        except (AssertionError, VhdxCorruptError):
            return False
        return True

    assert not all(survives(cut) for cut in range(len(file.steps) + 1) for _ in range(8))

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.blockio import DiskContent
from snapshotter.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
    VhdxUnsupportedError,
)
from snapshotter.units import GIB, KIB, MIB, TIB
from snapshotter.vhdx import VhdxDisk, create_vhdx, emit_vhdx
from snapshotter.vhdx.bat import PayloadState
from snapshotter.vhdx.disk import OwnRange

from . import oracle
from .memory import MemoryFile

SIZE = 7 * MIB + 512
PARENT = DiskContent(
    SIZE, ((MIB - 300, b"p" * 70_000), (4 * MIB, b"q" * 2 * MIB), (SIZE - 9, b"r" * 9))
)


def kinds() -> dict[str, tuple[MemoryFile, MemoryFile | None]]:
    content = DiskContent(SIZE, ((2 * MIB, b"0" * MIB),), zeros=((3 * MIB, MIB),))
    empty = DiskContent(SIZE, ())
    return {
        "dynamic": (MemoryFile.of(emit_vhdx(content)), None),
        "large blocks": (MemoryFile.of(emit_vhdx(content, block_size=4 * MIB)), None),
        "fixed": (MemoryFile.of(emit_vhdx(content, fixed=True)), None),
        "child": (
            MemoryFile.of(emit_vhdx(empty, parent_locator=b"l" * 20)),
            MemoryFile.of(PARENT),
        ),
        "child in large sectors": (
            MemoryFile.of(
                emit_vhdx(
                    DiskContent(SIZE // 4096 * 4096, ()),
                    parent_locator=b"l" * 20,
                    logical_sector_size=4096,
                    block_size=2 * MIB,
                )
            ),
            MemoryFile.of(PARENT),
        ),
    }


steps = st.lists(
    st.tuples(
        st.sampled_from(("write", "write", "trim", "flush", "reopen", "read")),
        st.integers(0, SIZE) | st.integers(0, 7).map(lambda n: n * MIB),
        st.sampled_from((0, 1, 511, 512, 4096, 70_001, MIB, 3 * MIB)),
        st.integers(0, 255),
    ),
    max_size=25,
)


@pytest.mark.parametrize("kind", list(kinds()))
@settings(max_examples=25, deadline=None)
@given(steps=steps)
def test_a_disk_is_the_bytes_written_to_it(
    kind: str, steps: list[tuple[str, int, int, int]]
) -> None:
    file, parent = kinds()[kind]
    disk = VhdxDisk.load_writable(file, parent=parent)
    size = disk.size
    model = bytearray(disk.read_at(0, size))
    for step, offset, length, fill in steps:
        offset = min(offset, size)
        length = min(length, size - offset)
        if step == "write":
            data = bytes([fill]) * length
            disk.write_at(offset, data)
            model[offset : offset + length] = data
        elif step == "trim":
            disk.trim(offset, length)
            model[offset : offset + length] = bytes(length)
        elif step == "flush":
            disk.flush()
        elif step == "reopen":
            disk.close()
            disk = VhdxDisk.load_writable(file, parent=parent)
        else:
            assert disk.read_at(offset, length) == model[offset : offset + length]
    assert disk.read_at(0, size) == model
    allocated = bytearray(size)
    for offset, length in disk.allocated_ranges():
        allocated[offset : offset + length] = model[offset : offset + length]
    assert allocated == model
    disk.close()
    closed = VhdxDisk.load(file, parent=parent)
    assert closed.read_at(0, size) == model
    assert not closed.info().log_dirty
    rebuilt = bytearray(parent.read_at(0, size) if parent else bytes(size))
    for own in closed.own_ranges():
        rebuilt[own.offset : own.offset + own.length] = (
            bytes(own.length) if own.is_zero else closed.read_at(own.offset, own.length)
        )
    assert rebuilt == model


def empty(size: int = GIB, *, block_size: int = MIB) -> MemoryFile:
    return MemoryFile.of(emit_vhdx(DiskContent(size, ()), block_size=block_size))


def test_opening_and_closing_changes_nothing() -> None:
    file = empty()
    before = file.content()
    with VhdxDisk.load_writable(file) as disk:
        assert disk.read_at(0, MIB) == bytes(MIB)
        disk.flush()
        disk.trim(0, GIB)
        disk.write_at(5, b"")
    assert file.content() == before


def test_a_change_renews_both_guids_once_a_session() -> None:
    file = empty()
    before = VhdxDisk.load(file).info()
    with VhdxDisk.load_writable(file) as disk:
        disk.write_at(0, b"x")
        first = VhdxDisk.load(file).info()
        disk.flush()
        disk.write_at(5 * MIB, b"x")
    after = VhdxDisk.load(file).info()
    assert first.file_write_guid == after.file_write_guid != before.file_write_guid
    assert first.data_write_guid == after.data_write_guid != before.data_write_guid
    assert first.log_dirty
    assert not after.log_dirty
    assert after.disk_id == before.disk_id


def test_a_trimmed_block_is_zero_and_its_room_is_used_again() -> None:
    file = empty()
    with VhdxDisk.load_writable(file) as disk:
        disk.write_at(0, b"a" * MIB)
        disk.write_at(7 * MIB, b"b" * MIB)
        disk.flush()
        disk.trim(0, MIB)
        disk.flush()
        disk.write_at(3 * MIB + 9, b"c")
        full = file.size
    disk = VhdxDisk.load(file)
    assert file.size == full == 6 * MIB
    assert disk.info().blocks[PayloadState.ZERO] == 1
    assert disk.read_at(0, MIB) == bytes(MIB)
    assert disk.read_at(3 * MIB, MIB) == bytes(9) + b"c" + bytes(MIB - 10)


def test_unused_room_at_the_end_is_cut_off_at_close() -> None:
    file = empty()
    with VhdxDisk.load_writable(file) as disk:
        disk.write_at(0, b"a")
        disk.write_at(9 * MIB, b"a" * 4 * MIB)
        disk.flush()
        disk.trim(9 * MIB, 4 * MIB)
    assert file.size == 5 * MIB


def test_the_largest_disk_is_trimmed_quickly() -> None:
    file = empty(64 * TIB, block_size=32 * MIB)
    with VhdxDisk.load_writable(file) as disk:
        disk.write_at(64 * TIB - 5, b"abcde")
        disk.trim(0, 64 * TIB)
    assert VhdxDisk.load(file).info().blocks[PayloadState.ZERO] == 1


def test_more_changes_than_an_entry_holds_are_several_commits() -> None:
    """One block in each of 300 sectors of the table."""
    file = empty(300 * 512 * MIB)
    with VhdxDisk.load_writable(file) as disk:
        for number in range(300):
            disk.write_at(number * 512 * MIB, b"%d" % number)
        assert disk.read_at(299 * 512 * MIB, 3) == b"299"
    disk = VhdxDisk.load(file)
    for number in range(300):
        assert disk.read_at(number * 512 * MIB, 3).rstrip(b"\0") == b"%d" % number


@pytest.mark.parametrize(("offset", "length"), [(-1, 2), (SIZE, 1), (SIZE - 1, 2), (0, SIZE + 1)])
def test_what_is_not_on_the_disk_cannot_be_changed(offset: int, length: int) -> None:
    disk = VhdxDisk.load_writable(empty(SIZE))
    with pytest.raises(InvalidArgumentError):
        disk.write_at(offset, bytes(length))
    with pytest.raises(InvalidArgumentError):
        disk.trim(offset, length)


def test_a_disk_opened_for_reading_cannot_be_changed() -> None:
    disk = VhdxDisk.load(empty())
    with pytest.raises(FailedPreconditionError, match="writable"):
        disk.write_at(0, b"x")
    with pytest.raises(FailedPreconditionError, match="writable"):
        disk.trim(0, MIB)
    with pytest.raises(FailedPreconditionError, match="writable"):
        disk.flush()


def test_a_file_without_a_log_cannot_be_changed() -> None:
    file = empty()
    for at in (64 * KIB, 128 * KIB):
        file.write_at(at + 68, bytes(4))
        file.reseal(at, 4096)
    with pytest.raises(VhdxUnsupportedError, match="log"):
        VhdxDisk.load_writable(file)


def test_a_child_needs_its_parent() -> None:
    child, parent = kinds()["child"]
    for load in (VhdxDisk.load, VhdxDisk.load_writable):
        with pytest.raises(VhdxUnsupportedError, match="parent"):
            load(child)
    assert VhdxDisk.load(child, parent=parent).info().has_parent


def test_a_child_hides_what_was_trimmed_and_shows_the_rest() -> None:
    child, parent = kinds()["child"]
    with VhdxDisk.load_writable(child, parent=parent) as disk:
        disk.trim(4 * MIB, MIB)
        disk.write_at(MIB, b"n" * 512)
        assert disk.info().blocks == {PayloadState.NOT_PRESENT: 8}
    disk = VhdxDisk.load(child, parent=parent)
    assert disk.info().blocks == {
        PayloadState.NOT_PRESENT: 6,
        PayloadState.ZERO: 1,
        PayloadState.PARTIALLY_PRESENT: 1,
    }
    assert list(disk.own_ranges()) == [
        OwnRange(MIB, 512, is_zero=False),
        OwnRange(4 * MIB, MIB, is_zero=True),
    ]
    assert disk.read_at(MIB - 300, 1000) == b"p" * 300 + b"n" * 512 + b"p" * 188
    assert disk.read_at(4 * MIB, MIB) == bytes(MIB)


def test_a_block_of_a_child_that_is_all_its_own_is_fully_present() -> None:
    child, parent = kinds()["child"]
    with VhdxDisk.load_writable(child, parent=parent) as disk:
        disk.write_at(MIB, b"1" * (MIB // 2))
        disk.write_at(MIB + MIB // 2, b"2" * (MIB // 2))
    assert VhdxDisk.load(child, parent=parent).info().blocks[PayloadState.FULLY_PRESENT] == 1


class FailingFile(MemoryFile):
    """Refuses everything once it is told to."""

    broken = False

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        if self.broken:
            raise UnavailableError("no space left on device")
        super().write_at(offset, data)


def test_after_a_failure_nothing_more_is_written_and_the_old_state_opens() -> None:
    file = FailingFile(0)
    file.become(empty())
    disk = VhdxDisk.load_writable(file)
    disk.write_at(0, b"kept")
    disk.flush()
    file.broken = True
    with pytest.raises(UnavailableError, match="no space"):
        disk.write_at(MIB, b"lost")
    file.broken = False
    with pytest.raises(UnavailableError, match="open it again"):
        disk.write_at(2 * MIB, b"refused")
    with pytest.raises(UnavailableError, match="open it again"):
        disk.close()
    with VhdxDisk.load_writable(file) as again:
        assert again.info().log_dirty
        assert again.read_at(0, 4) == b"kept"
        assert again.read_at(MIB, 4) == bytes(4)
    assert not VhdxDisk.load(file).info().log_dirty


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    create_vhdx(path, GIB)
    with VhdxDisk.open(path, writable=True) as disk:
        disk.write_at(0, b"x")
        disk.flush()
        with pytest.raises(FailedPreconditionError, match="open for writing"):
            VhdxDisk.open(path, writable=True)
        program = (
            f"from snapshotter.vhdx import VhdxDisk; VhdxDisk.open({str(path)!r}, writable=True)"
        )
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert "FailedPreconditionError" in other.stderr
        with VhdxDisk.open(path) as reader:
            assert reader.read_at(0, 1) == b"x"
    with VhdxDisk.open(path, writable=True) as disk:
        assert disk.read_at(0, 1) == b"x"


@oracle.needs_qemu
@pytest.mark.skipif(sys.platform != "linux", reason="QEMU's locks are Linux's")
def test_qemu_and_we_keep_each_other_out(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    create_vhdx(path, GIB)
    argv = ["qemu-io", "-f", "vhdx", str(path)]
    with VhdxDisk.open(path, writable=True):
        refused = subprocess.run([*argv, "-c", "write 0 4k"], capture_output=True, text=True)
        assert 'Failed to get "write" lock' in refused.stderr
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as qemu:
        assert qemu.stdin is not None
        assert qemu.stdout is not None
        qemu.stdin.write("write -P 1 0 4k\n")
        qemu.stdin.flush()
        while "wrote" not in qemu.stdout.readline():
            pass
        with pytest.raises(FailedPreconditionError, match="virtual machine"):
            VhdxDisk.open(path, writable=True)
        qemu.communicate("quit\n")
    with VhdxDisk.open(path, writable=True) as disk:
        assert disk.read_at(0, 4096) == b"\1" * 4096


@oracle.needs_qemu
@pytest.mark.parametrize("block_size", [MIB, 32 * MIB])
@pytest.mark.parametrize("maker", ["qemu", "ours"])
def test_qemu_and_we_write_to_one_disk_in_turn(tmp_path: Path, maker: str, block_size: int) -> None:
    path, raw = tmp_path / "disk.vhdx", tmp_path / "disk.raw"
    size = 96 * MIB
    if maker == "qemu":
        oracle.create(path, size, block_size=block_size)
    else:
        create_vhdx(path, size, block_size=block_size)
    chance = random.Random(block_size)
    model = bytearray(size)
    for round_number in range(4):
        with VhdxDisk.open(path, writable=True) as disk:
            for _ in range(6):
                offset = chance.randrange(size)
                length = min(size - offset, chance.choice((1, 4096, 100_000, 2 * MIB)))
                data = chance.randbytes(length)
                disk.write_at(offset, data)
                model[offset : offset + length] = data
                offset = chance.randrange(size // MIB) * MIB
                disk.trim(offset, MIB)
                model[offset : offset + MIB] = bytes(MIB)
        oracle.check(path)
        commands = []
        for _ in range(4):
            offset, fill = chance.randrange(size // 65536) * 65536, chance.randint(1, 255)
            commands.append(f"write -P {fill} {offset} 64k")
            model[offset : offset + 65536] = bytes([fill]) * 65536
        oracle.io(path, *commands, killed=round_number == 2)
        if round_number == 2:  # QEMU's last metadata may not be there: what it replays counts
            copy = tmp_path / "copy.vhdx"
            shutil.copyfile(path, copy)
            oracle.repair(copy)
            model[:] = oracle.to_raw(copy, raw).read_bytes()
            with VhdxDisk.open(path, writable=True):
                pass
            oracle.check(path)
        assert oracle.to_raw(path, raw).read_bytes() == model

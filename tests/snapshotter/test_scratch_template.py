from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from snapshotter.errors import (
    AlreadyExistsError,
    Ext4CorruptError,
    FailedPreconditionError,
    InvalidArgumentError,
    VhdxCorruptError,
)
from snapshotter.scratch.template import ScratchTemplate, verify_scratch
from snapshotter.units import GIB, MIB
from snapshotter.vhdx import VhdxDisk, create_vhdx

from .vhdx import oracle
from .vhdx.dirtylog import make_dirty
from .vhdx.memory import MemoryFile

SIZE = 20 * GIB
PAYLOAD = 4 * MIB
SUPERBLOCK = PAYLOAD + 1024

needs_e2fsck = pytest.mark.skipif(
    shutil.which("e2fsck") is None, reason="e2fsck is not installed (package e2fsprogs)"
)


@pytest.fixture(scope="module")
def template() -> ScratchTemplate:
    return ScratchTemplate.build(SIZE)


@pytest.fixture
def scratch(template: ScratchTemplate, tmp_path: Path) -> Path:
    path = tmp_path / "sandbox.vhdx"
    template.write(path, durable=False)
    return path


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def without_checksums(path: Path) -> None:
    """Clear metadata_csum, so that a field of the superblock can be changed alone."""
    patch(path, SUPERBLOCK + 100, struct.pack("<I", 0))


@pytest.mark.parametrize("journal_mib", [0, 64, 128])
def test_a_20_gib_scratch_is_a_file_of_5_mib(tmp_path: Path, journal_mib: int) -> None:
    template = ScratchTemplate.build(SIZE, journal_mib=journal_mib)
    assert template.file_size <= 5_242_880
    path = tmp_path / "sandbox.vhdx"
    template.write(path)
    assert path.stat().st_size == template.file_size
    if sys.platform != "win32":  # NTFS files are not sparse unless asked
        assert path.stat().st_blocks * 512 <= 512 * 1024
    verify_scratch(path, size=SIZE)


def test_it_is_built_and_stored_in_a_moment(tmp_path: Path) -> None:
    ScratchTemplate.build(SIZE)
    started = time.process_time()  # the processor's time: what else runs does not count
    template = ScratchTemplate.build(SIZE)
    built = time.process_time()
    template.write(tmp_path / "sandbox.vhdx", durable=False)
    stored = time.process_time()
    # 0.3 ms and 0.1 ms; the bounds leave room for slower machines.
    assert built - started < 0.1
    assert stored - built < 0.1


def test_each_scratch_is_another_disk_with_the_same_content(
    template: ScratchTemplate, tmp_path: Path
) -> None:
    infos = []
    contents = []
    for name in ("a", "b"):
        template.write(tmp_path / name, durable=False)
        with VhdxDisk.open(tmp_path / name) as disk:
            infos.append(disk.info())
            contents.append(disk.read_at(0, MIB))
    first, second = infos
    assert first.disk_id != second.disk_id
    assert first.file_write_guid != second.file_write_guid
    assert first.data_write_guid != second.data_write_guid
    assert contents[0] == contents[1]


@oracle.needs_qemu
@needs_e2fsck
@pytest.mark.parametrize(("size", "journal_mib"), [(GIB, 0), (SIZE, 0), (SIZE, 64), (33 * GIB, 0)])
def test_qemu_and_e2fsck_find_nothing(tmp_path: Path, size: int, journal_mib: int) -> None:
    path = tmp_path / "sandbox.vhdx"
    ScratchTemplate.build(size, journal_mib=journal_mib, label="pod").write(path, durable=False)
    oracle.check(path)
    assert oracle.info(path)["virtual-size"] == size
    raw = oracle.to_raw(path, tmp_path / "sandbox.raw")
    done = subprocess.run(["e2fsck", "-fn", str(raw)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_an_existing_file_is_kept_unless_asked(template: ScratchTemplate, scratch: Path) -> None:
    before = scratch.read_bytes()
    with pytest.raises(AlreadyExistsError):
        template.write(scratch)
    assert scratch.read_bytes() == before
    template.write(scratch, overwrite=True)
    assert scratch.read_bytes() != before
    assert os.listdir(scratch.parent) == [scratch.name]


def test_a_size_that_no_scratch_can_have_is_refused() -> None:
    with pytest.raises(InvalidArgumentError):
        ScratchTemplate.build(4096)


def test_a_fresh_scratch_is_verified(scratch: Path) -> None:
    verify_scratch(scratch, size=SIZE)


def test_verifying_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        verify_scratch(tmp_path / "sandbox.vhdx", size=SIZE)


@pytest.mark.parametrize("content", [b"", b"hello", bytes(5 * MIB)])
def test_a_file_that_is_no_vhdx_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sandbox.vhdx").write_bytes(content)
    with pytest.raises(VhdxCorruptError):
        verify_scratch(tmp_path / "sandbox.vhdx", size=SIZE)


def test_a_half_written_scratch_is_refused(scratch: Path) -> None:
    os.truncate(scratch, 4 * MIB + 100)
    with pytest.raises(VhdxCorruptError, match="behind the file's end"):
        verify_scratch(scratch, size=SIZE)


def test_another_size_is_refused(scratch: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="remove it"):
        verify_scratch(scratch, size=SIZE + MIB)


def test_a_blank_disk_is_refused(tmp_path: Path) -> None:
    create_vhdx(tmp_path / "sandbox.vhdx", SIZE)
    with pytest.raises(Ext4CorruptError, match="magic"):
        verify_scratch(tmp_path / "sandbox.vhdx", size=SIZE)


def test_a_damaged_superblock_is_refused(scratch: Path) -> None:
    patch(scratch, SUPERBLOCK + 200, b"x")
    with pytest.raises(Ext4CorruptError, match="checksum"):
        verify_scratch(scratch, size=SIZE)


@pytest.mark.parametrize(("offset", "value"), [(4, 12345), (24, 5), (24, 0xFFFF_FFFF)])
def test_a_file_system_of_another_geometry_is_refused(
    scratch: Path, offset: int, value: int
) -> None:
    without_checksums(scratch)
    patch(scratch, SUPERBLOCK + offset, struct.pack("<I", value))
    with pytest.raises(Ext4CorruptError, match="geometry"):
        verify_scratch(scratch, size=SIZE)


def test_a_file_system_that_was_not_unmounted_is_refused(scratch: Path) -> None:
    without_checksums(scratch)
    patch(scratch, SUPERBLOCK + 58, struct.pack("<H", 0))
    with pytest.raises(FailedPreconditionError, match="e2fsck"):
        verify_scratch(scratch, size=SIZE)


def test_a_disk_with_a_dirty_log_is_refused(template: ScratchTemplate, tmp_path: Path) -> None:
    file = MemoryFile.of(template.content())
    make_dirty(file, bytes(MIB))
    path = tmp_path / "sandbox.vhdx"
    path.write_bytes(file.read_at(0, file.size))
    with pytest.raises(FailedPreconditionError, match="log is not empty"):
        verify_scratch(path, size=SIZE)

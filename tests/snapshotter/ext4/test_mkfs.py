"""A freshly formatted scratch satisfies e2fsck, the kernel and our own reader."""

from __future__ import annotations

import os
import time
import uuid
from itertools import pairwise
from pathlib import Path

import pytest

from snapshotter.blockio import LocalBlockFile
from snapshotter.errors import InvalidArgumentError
from snapshotter.ext4.format import Incompat
from snapshotter.ext4.mkfs import format_ext4
from snapshotter.ext4.reader import Ext4
from snapshotter.units import GIB, KIB, MIB, TIB
from tests.snapshotter.ext4.oracles import ContentDisk, debugfs, fsck, mounted, vast_file, write_raw

SCRATCH = 20 * GIB
UUID = uuid.UUID("01234567-89ab-cdef-0123-456789abcdef")

SIZES_GIB = [1, 5, 20, 20.5, 33, 64, 100]


@pytest.mark.parametrize("journal_mib", [0, 64])
@pytest.mark.parametrize("size_gib", SIZES_GIB)
def test_e2fsck_finds_nothing_to_say(tmp_path: Path, size_gib: float, journal_mib: int) -> None:
    content = format_ext4(int(size_gib * GIB), journal_mib=journal_mib)
    fsck(write_raw(content, tmp_path / "disk.raw"))


@pytest.mark.parametrize("size_gib", [1, 5, 20.5])
def test_e2fsck_finds_nothing_to_say_without_checksums(tmp_path: Path, size_gib: float) -> None:
    content = format_ext4(int(size_gib * GIB), journal_mib=64, checksums=False)
    fsck(write_raw(content, tmp_path / "disk.raw"))


@pytest.mark.parametrize("extra", [4 * KIB, 128 * MIB - 4 * KIB, 128 * MIB, 128 * MIB + 4 * KIB])
def test_a_last_group_of_any_size_is_fine(tmp_path: Path, extra: int) -> None:
    fsck(write_raw(format_ext4(1 * GIB + extra, journal_mib=4), tmp_path / "disk.raw"))


@pytest.mark.parametrize("journal_mib", [4, 128, 256])
def test_every_journal_size_is_fine(tmp_path: Path, journal_mib: int) -> None:
    fsck(write_raw(format_ext4(2 * GIB, journal_mib=journal_mib), tmp_path / "disk.raw"))


def test_everything_but_zeros_of_a_20_gib_disk_fits_its_first_mib() -> None:
    for journal_mib in (0, 64, 128):
        content = format_ext4(SCRATCH, journal_mib=journal_mib)
        offset, data = content.pieces[-1]
        assert offset + len(data) <= MIB
        assert sum(len(data) - data.count(0) for _, data in content.pieces) < 64 * KIB


def test_pieces_and_zeros_are_in_order_and_do_not_overlap() -> None:
    for checksums in (True, False):
        content = format_ext4(SCRATCH, journal_mib=64, checksums=checksums)
        ranges = [(offset, len(data)) for offset, data in content.pieces]
        assert ranges == sorted(ranges)
        assert list(content.zeros) == sorted(content.zeros)
        ranges = sorted([*ranges, *content.zeros])
        assert all(at + length <= after for (at, length), (after, _) in pairwise(ranges))
        assert sum(ranges[-1]) <= content.size == SCRATCH


def test_formatting_20_gib_takes_less_than_10_ms() -> None:
    format_ext4(SCRATCH)
    best = min(_timed() for _ in range(5))
    assert best < 0.010


def _timed() -> float:
    start = time.process_time()
    format_ext4(SCRATCH)
    return time.process_time() - start


def test_the_same_arguments_give_the_same_bytes() -> None:
    first = format_ext4(SCRATCH, uuid=UUID, created=1_700_000_000, label="scratch")
    assert format_ext4(SCRATCH, uuid=UUID, created=1_700_000_000, label="scratch") == first
    assert format_ext4(SCRATCH).pieces != format_ext4(SCRATCH).pieces


def test_the_root_is_empty_and_belongs_to_root() -> None:
    files = Ext4.open(ContentDisk(format_ext4(SCRATCH, uuid=UUID, created=1_700_000_000)))
    assert files.listdir("/") == ["lost+found"]
    root = files.stat("/")
    assert (root.mode, root.uid, root.gid, root.links) == (0o040755, 0, 0, 3)
    assert root.mtime_ns == 1_700_000_000 * 10**9
    assert files.stat("lost+found").mode == 0o040700
    assert files.superblock.uuid == UUID.bytes


def test_uuid_and_label_are_where_e2fsprogs_finds_them(tmp_path: Path) -> None:
    disk = write_raw(format_ext4(1 * GIB, uuid=UUID, label="scratch"), tmp_path / "disk.raw")
    shown = debugfs(disk, "show_super_stats -h")
    assert str(UUID) in shown
    assert "scratch" in shown


@pytest.mark.parametrize("size", [0, 1 * GIB - 4096, 64 * TIB + 4096, 1 * GIB + 512])
def test_sizes_out_of_range_are_refused(size: int) -> None:
    with pytest.raises(InvalidArgumentError, match=str(size)):
        format_ext4(size)


@pytest.mark.parametrize("journal_mib", [-1, 1, 3, 257])
def test_journals_out_of_range_are_refused(journal_mib: int) -> None:
    with pytest.raises(InvalidArgumentError, match="journal"):
        format_ext4(SCRATCH, journal_mib=journal_mib)


def test_labels_and_times_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="label"):
        format_ext4(SCRATCH, label="seventeen letters")
    with pytest.raises(InvalidArgumentError, match="created"):
        format_ext4(SCRATCH, created=-1)


def test_a_64_tib_disk_is_read_back() -> None:
    files = Ext4.open(ContentDisk(format_ext4(64 * TIB)))
    assert files.superblock.blocks_count == 64 * TIB // 4096
    assert files.listdir("/") == ["lost+found"]


@pytest.mark.root
def test_the_kernel_works_on_16_tib(tmp_path: Path) -> None:
    """From that size on block numbers and descriptors are wide; all of these are checked."""
    with vast_file() as disk:
        write_raw(format_ext4(16 * TIB, journal_mib=4), disk)
        with mounted(disk, tmp_path / "mnt", "rw") as root:
            (root / "folder").mkdir()
            (root / "folder" / "file").write_bytes(b"wide" * 5000)
            free = os.statvfs(root)
            assert free.f_blocks * free.f_frsize > 0.98 * 16 * TIB
        with LocalBlockFile.open(disk) as file:
            files = Ext4.open(file)
            assert files.superblock.incompat & Incompat.BIT64
            assert files.read("/folder/file") == b"wide" * 5000


@pytest.mark.root
@pytest.mark.parametrize("checksums", [True, False], ids=["checksums", "plain"])
@pytest.mark.parametrize("journal_mib", [0, 64])
def test_the_kernel_works_on_it_and_leaves_it_clean(
    tmp_path: Path, journal_mib: int, checksums: bool
) -> None:
    content = format_ext4(SCRATCH, journal_mib=journal_mib, checksums=checksums)
    disk = write_raw(content, tmp_path / "disk.raw")
    with mounted(disk, tmp_path / "mnt", "rw") as root:
        for number in range(200):
            folder = root / f"d{number}"
            folder.mkdir()
            (folder / "file").write_bytes(os.urandom(5000))
        (root / "big").write_bytes(bytes(range(256)) * (32 * KIB))
        for number in range(0, 200, 3):
            (root / f"d{number}" / "file").unlink()
            (root / f"d{number}").rmdir()
        free = os.statvfs(root)
        assert free.f_blocks * free.f_frsize > 0.98 * (SCRATCH - journal_mib * MIB)
    fsck(disk)
    with LocalBlockFile.open(disk) as file:
        files = Ext4.open(file)
        assert files.read("/big") == bytes(range(256)) * (32 * KIB)
        assert len(files.listdir("/")) == 2 + 200 - 67
        assert not files.needs_recovery

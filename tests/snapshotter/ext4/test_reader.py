"""Our reader sees what the kernel wrote, in whatever form of ext4 it wrote it."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from snapshotter.blockio import LocalBlockFile
from snapshotter.errors import (
    Ext4CorruptError,
    Ext4UnsupportedError,
    InvalidArgumentError,
    NotFoundError,
)
from snapshotter.ext4.mkfs import format_ext4
from snapshotter.ext4.reader import Ext4
from snapshotter.units import GIB, KIB, MIB
from tests.snapshotter.ext4.layers import DIR, SYM, converted, member, open_payload
from tests.snapshotter.ext4.oracles import MemoryDisk, mounted, write_raw

FORMS = {
    "default": [],
    "no journal": ["-O", "^has_journal"],
    "small blocks": ["-b", "1024"],
    "32 bits, no checksums": ["-O", "^64bit,^metadata_csum,^flex_bg"],
    "small inodes": ["-I", "128"],
    "checksum seed": ["-O", "metadata_csum_seed"],
}


def mke2fs(path: Path, *options: str, size: int = 64 * MIB) -> Path:
    if not shutil.which("mke2fs"):
        pytest.skip("mke2fs is not installed (package e2fsprogs)")
    with path.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mke2fs", "-qF", "-t", "ext4", *options, path], check=True)
    return path


def fill(root: Path) -> None:
    """Make every structure that the reader has to know."""
    chance = random.Random(5)
    many = root / "many"
    many.mkdir()
    for number in range(3000):  # a hashed directory of several levels with 1 KiB blocks
        (many / f"{number}-{'n' * 40}").touch()
    (root / "plain").write_bytes(chance.randbytes(300_000))
    with (root / "holes").open("wb") as file:
        for block in range(0, 1200, 3):  # more extents than an inode holds, and holes between
            file.seek(block * 4 * KIB)
            file.write(bytes([block % 255 + 1]) * 4 * KIB)
        file.truncate(1300 * 4 * KIB)
    with (root / "promised").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 100_000)
        file.write(b"start")
    (root / "fast").symlink_to("target")
    (root / "slow").symlink_to("t" * 800)
    os.mknod(root / "tty", stat.S_IFCHR | 0o600, os.makedev(4, 64))
    os.mknod(root / "far", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
    os.mkfifo(root / "pipe")
    for name, value in {"user.small": b"1", "user.large": b"v" * 700, "user.empty": b""}.items():
        os.setxattr(root / "plain", name, value)
    os.setxattr(root / "many", "trusted.overlay.opaque", b"y")
    os.utime(root / "plain", ns=(0, 1_234_567_890_123_456_789))
    os.chown(root / "plain", 100_000, 200_000)


def check(root: Path, files: Ext4) -> None:
    """Compare everything with what the kernel says."""
    seen = dict(files.walk())
    small_inodes = files.superblock.inode_size == 128
    paths = [
        "",
        *(
            os.path.relpath(os.path.join(folder, name), root)
            for folder, folders, names in os.walk(root)
            for name in [*folders, *names]
        ),
    ]
    assert {f"/{path}" for path in paths} == seen.keys()
    for path in paths:
        real, found = root / path, seen[f"/{path}"]
        info = real.lstat()
        assert (found.inode, found.mode, found.links) == (info.st_ino, info.st_mode, info.st_nlink)
        assert (found.uid, found.gid, found.size) == (info.st_uid, info.st_gid, info.st_size)
        unit = 10**9 if small_inodes else 1
        assert found.mtime_ns // unit == info.st_mtime_ns // unit
        if found.is_file:
            assert files.read(path) == real.read_bytes(), path
        elif found.is_symlink:
            assert files.readlink(path) == os.readlink(real)
        elif found.device:
            assert found.device == (os.major(info.st_rdev), os.minor(info.st_rdev))
        if not found.is_symlink and path != "lost+found":
            expected = {name: os.getxattr(real, name) for name in os.listxattr(real)}
            assert files.xattrs(path) == expected


@pytest.mark.root
@pytest.mark.parametrize("form", FORMS)
def test_everything_the_kernel_writes_is_read(tmp_path: Path, form: str) -> None:
    disk = mke2fs(tmp_path / "disk.raw", *FORMS[form])
    with mounted(disk, tmp_path / "mnt", "rw") as root:
        fill(root)
    with mounted(disk, tmp_path / "mnt", "ro") as root:
        check(root, open_payload(disk))


@pytest.mark.root
@pytest.mark.parametrize("journal_mib", [0, 64])
def test_a_scratch_in_use_is_read_as_it_is_on_disk(tmp_path: Path, journal_mib: int) -> None:
    disk = write_raw(format_ext4(1 * GIB, journal_mib=journal_mib), tmp_path / "disk.raw")
    copy = tmp_path / "copy.raw"
    with mounted(disk, tmp_path / "mnt", "rw") as root:
        (root / "synced").write_bytes(b"marker" * 1000)
        os.sync()
        subprocess.run(["cp", "--sparse=always", disk, copy], check=True)
    with LocalBlockFile.open(copy) as file:
        files = Ext4.open(file)
        assert files.needs_recovery == bool(journal_mib)
        if not journal_mib:  # with one, the directory may still be in the journal alone
            assert files.read("synced") == b"marker" * 1000
        assert "lost+found" in files.listdir("/")


@pytest.mark.root
@pytest.mark.parametrize(
    ("options", "message"),
    [(["-O", "^extent,^64bit"], "block map"), (["-O", "inline_data", "-I", "256"], "inline")],
)
def test_older_and_rarer_forms_of_files_are_refused(
    tmp_path: Path, options: list[str], message: str
) -> None:
    disk = mke2fs(tmp_path / "disk.raw", *options)
    with mounted(disk, tmp_path / "mnt", "rw") as root:
        (root / "file").write_bytes(b"x" * 40)
    with pytest.raises(Ext4UnsupportedError, match=message):
        open_payload(disk).read("file")


@pytest.mark.parametrize("feature", ["meta_bg,^resize_inode", "encrypt"])
def test_features_that_change_the_format_are_refused_by_name(tmp_path: Path, feature: str) -> None:
    disk = mke2fs(tmp_path / "disk.raw", "-O", feature)
    with pytest.raises(Ext4UnsupportedError, match=feature.split(",")[0].upper()):
        open_payload(disk)


def sample(tmp_path: Path) -> Ext4:
    return converted(
        tmp_path,
        member("d", kind=DIR),
        member("d/file", b"0123456789"),
        member("d/link", kind=SYM, link="file"),
    )


def test_parts_of_files_are_read(tmp_path: Path) -> None:
    files = sample(tmp_path)
    assert files.read("d/file", offset=3, length=4) == b"3456"
    assert files.read("d/file", offset=8, length=100) == b"89"
    assert files.read("d/file", offset=50) == b""
    assert b"".join(files.read_parts("/d/./file")) == b"0123456789"


def test_walk_gives_a_directory_before_what_is_in_it(tmp_path: Path) -> None:
    files = sample(tmp_path)
    assert [path for path, _ in files.walk("d")] == ["/d", "/d/file", "/d/link"]
    assert [path for path, _ in files.walk()] == ["/", "/d", "/d/file", "/d/link", "/lost+found"]
    assert [path for path, _ in files.walk("/d/file")] == ["/d/file"]


@pytest.mark.parametrize("path", ["x", "d/x", "d/file/x", "d/link/x", "x/y"])
def test_paths_that_are_not_there_are_not_found(tmp_path: Path, path: str) -> None:
    with pytest.raises(NotFoundError, match=path):
        sample(tmp_path).stat(path)


def test_questions_that_do_not_fit_the_type_are_the_callers_fault(tmp_path: Path) -> None:
    files = sample(tmp_path)
    for ask in (
        lambda: files.read("d"),
        lambda: files.read("d/link"),
        lambda: files.listdir("d/file"),
        lambda: files.readlink("d/file"),
        lambda: files.read("d/file", offset=-1),
        lambda: files.stat("d/../d"),
    ):
        with pytest.raises(InvalidArgumentError):
            ask()


@pytest.mark.parametrize("data", [b"", bytes(4096), b"\xff" * 8192])
def test_what_is_no_ext4_is_refused(data: bytes) -> None:
    with pytest.raises(Ext4CorruptError, match="superblock"):
        Ext4.open(MemoryDisk(data))

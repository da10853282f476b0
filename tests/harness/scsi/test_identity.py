from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import DiskError
from harness.scsi import identify


def test_links_hard_links_and_other_spellings_are_one_disk(disk: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(disk)
    (tmp_path / "hard").hardlink_to(disk)
    (tmp_path / "chain").symlink_to(tmp_path / "link")
    spellings: list[str | Path] = [
        disk,
        tmp_path / "link",
        tmp_path / "hard",
        tmp_path / "chain",
        f"{tmp_path}/./x/../{disk.name}".replace("/x/..", ""),
        os.path.relpath(disk),
    ]
    assert len({identify(each).identity for each in spellings}) == 1
    assert identify(tmp_path / "chain").path == disk.resolve()


@pytest.mark.root
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounts need root")
def test_a_file_seen_through_another_mount_is_one_disk(disk: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with mounted("--bind", str(disk.parent), at=elsewhere):
        assert identify(elsewhere / disk.name).identity == identify(disk).identity


@pytest.mark.root
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="loop mounts need root")
def test_other_case_on_a_volume_that_ignores_it_is_one_disk(tmp_path: Path) -> None:
    image, volume = tmp_path / "image", tmp_path / "volume"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    make = ["mkfs.ext4", "-q", "-O", "casefold", str(image)]
    if shutil.which("mkfs.ext4") is None or subprocess.run(make, check=False).returncode:
        pytest.skip("needs an mkfs.ext4 that knows -O casefold (package e2fsprogs)")
    volume.mkdir()
    with mounted("-o", "loop", str(image), at=volume):
        folder = volume / "folder"
        folder.mkdir()
        subprocess.run(["chattr", "+F", str(folder)], check=True)
        (folder / "Sandbox.vhdx").touch()
        names = ("Sandbox.vhdx", "sandbox.VHDX", "SANDBOX.vhdx")
        assert len({identify(folder / name).identity for name in names}) == 1


@contextlib.contextmanager
def mounted(*what: str, at: Path) -> Iterator[None]:
    """Mount something for the time of the context, or skip with the reason."""
    done = subprocess.run(["mount", *what, str(at)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this kernel does not mount it: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(at)], check=True)


def test_two_files_are_two_disks(disk: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.vhdx"
    copy.write_bytes(disk.read_bytes())
    assert identify(copy).identity != identify(disk).identity


def test_a_dangling_link_is_refused_with_its_name(tmp_path: Path) -> None:
    link = tmp_path / "sandbox.vhdx"
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(DiskError, match=r"sandbox\.vhdx.*No such file"):
        identify(link)


def test_a_directory_is_no_disk(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="not a regular file"):
        identify(tmp_path)


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(DiskError):
        identify(tmp_path / "a")

from __future__ import annotations

import os
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

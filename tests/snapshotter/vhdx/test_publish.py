from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from snapshotter.blockio import DiskContent
from snapshotter.errors import AlreadyExistsError, UnavailableError
from snapshotter.units import MIB
from snapshotter.vhdx import write_content

CONTENT = DiskContent(3 * MIB, ((0, b"first"), (MIB, b"second"), (3 * MIB - 4, b"last")))


@pytest.mark.parametrize("durable", [True, False])
def test_the_file_holds_every_piece_and_zeros_between(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file"
    write_content(path, CONTENT, durable=durable)
    raw = path.read_bytes()
    assert len(raw) == CONTENT.size
    for offset, data in CONTENT.pieces:
        assert raw[offset : offset + len(data)] == data
    assert sum(map(bool, raw)) == sum(len(data) for _, data in CONTENT.pieces)
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_not_in_a_piece_takes_no_room(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_content(path, DiskContent(1 << 40, ((1 << 39, b"x"),)))
    if sys.platform != "win32":  # NTFS files are not sparse unless asked
        assert path.stat().st_blocks * 512 < MIB


def test_an_existing_file_is_kept_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"mine")
    with pytest.raises(AlreadyExistsError, match="file exists already"):
        write_content(path, CONTENT)
    assert path.read_bytes() == b"mine"
    write_content(path, CONTENT, overwrite=True)
    assert path.stat().st_size == CONTENT.size
    assert os.listdir(tmp_path) == ["file"]


def test_a_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(AlreadyExistsError):
        write_content(path, CONTENT)
    assert path.is_symlink()


def test_of_many_writers_of_one_name_exactly_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "file"
    outcomes: list[str] = []

    def write(number: int) -> None:
        try:
            write_content(path, DiskContent(MIB, ((0, bytes([number])),)))
            outcomes.append(f"won {number}")
        except AlreadyExistsError:
            outcomes.append("lost")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [outcome for outcome in outcomes if outcome != "lost"]
    assert winner == f"won {path.read_bytes()[0]}"
    assert os.listdir(tmp_path) == ["file"]


def test_a_missing_directory_is_the_environments_fault(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="No such file"):
        write_content(tmp_path / "missing" / "file", CONTENT)


def test_a_size_limit_leaves_nothing(tmp_path: Path) -> None:
    script = """
import resource, sys
from snapshotter.blockio import DiskContent
from snapshotter.errors import UnavailableError
from snapshotter.vhdx import write_content
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    write_content(sys.argv[1], DiskContent(2 << 20, ((0, b"x"),)))
except UnavailableError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "file")],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert "File too large" in done.stdout, done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.root
@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("mount") is None,
    reason="mounting a small file system needs root",
)
def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        with pytest.raises(UnavailableError, match="No space left"):
            write_content(tmp_path / "file", DiskContent(2 * MIB, ((0, b"x" * 2 * MIB),)))
        assert os.listdir(tmp_path) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)

"""A scratch disk is the same disk however its file is allocated: sparse, dense or cloned."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.errors import AlreadyExistsError
from snapshotter.scratch.reflink import ReflinkSource
from snapshotter.scratch.template import Allocation, ScratchTemplate, verify_scratch
from snapshotter.units import GIB, MIB
from snapshotter.vhdx import VhdxDisk


@pytest.fixture(scope="module")
def template() -> ScratchTemplate:
    return ScratchTemplate.build(20 * GIB)


@pytest.fixture
def sharing(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system whose files can share blocks."""
    program = shutil.which("mkfs.xfs", path="/sbin:/usr/sbin")
    if os.geteuid() != 0 or program is None:
        pytest.skip("reflinks need root and mkfs.xfs (package xfsprogs)")
    image, place = tmp_path / "xfs.raw", tmp_path / "xfs"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(512 * MIB)
    subprocess.run([program, "-q", str(image)], check=True)
    mount = ["mount", "-o", "loop", str(image), str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no XFS here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(sys.platform == "win32", reason="counts allocated blocks")
def test_a_dense_disk_has_no_hole(template: ScratchTemplate, tmp_path: Path) -> None:
    template.write(tmp_path / "dense.vhdx", allocation=Allocation.DENSE)
    template.write(tmp_path / "sparse.vhdx")
    status = (tmp_path / "dense.vhdx").stat()
    assert status.st_blocks * 512 >= status.st_size == template.file_size
    assert (tmp_path / "sparse.vhdx").stat().st_blocks * 512 < MIB
    verify_scratch(tmp_path / "dense.vhdx", size=20 * GIB)


@pytest.mark.root
def test_clones_are_disks_of_their_own(template: ScratchTemplate, sharing: Path) -> None:
    with ReflinkSource.open(sharing, template) as source:
        assert source is not None
        for name in ("one.vhdx", "two.vhdx"):
            source.write(sharing / name)
            verify_scratch(sharing / name, size=20 * GIB)
        with pytest.raises(AlreadyExistsError):
            source.write(sharing / "one.vhdx")
    template.write(sharing / "plain.vhdx")
    ids = set()
    for path in sharing.iterdir():
        with VhdxDisk.open(path) as disk:
            ids.add(disk.info().disk_id)
    assert len(ids) == len(list(sharing.iterdir())) == 3
    # Beyond the metadata they are the same file.
    tails = {path.read_bytes()[3 * MIB :] for path in sharing.iterdir()}
    assert len(tails) == 1


def test_file_systems_that_cannot_share_blocks_say_so(
    template: ScratchTemplate, tmp_path: Path
) -> None:
    with ReflinkSource.open(
        Path("/dev/shm") if os.path.isdir("/dev/shm") else tmp_path, template
    ) as source:
        if source is not None:
            pytest.skip("this file system shares blocks")
    assert not list(tmp_path.iterdir())

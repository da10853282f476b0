"""Directories of more than one block are hashed: e2fsck agrees, and the kernel finds names fast."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.ext4.directory import unpack_directory_block
from snapshotter.ext4.dirhash import hash_names
from snapshotter.ext4.format import BLOCK_SIZE
from snapshotter.ext4.hashtree import pack_hashed_directory
from tests.snapshotter.ext4.layers import DIR, LNK, convert, files_of, member, tar
from tests.snapshotter.ext4.oracles import debugfs, mounted

SEED = uuid.UUID("01234567-89ab-cdef-0123-456789abcdef")


def names_of(count: int, length: int = 20) -> list[str]:
    return [f"name-{number:07}".ljust(length, "-") for number in range(count)]


@settings(max_examples=60)
@given(
    names=st.lists(
        st.binary(min_size=1, max_size=255).filter(lambda name: b"\0" not in name),
        min_size=1,
        max_size=40,
    )
)
def test_many_names_at_once_hash_as_one_by_one(names: list[bytes]) -> None:
    together = hash_names(names, SEED.bytes).tolist()
    assert together == [int(hash_names([name], SEED.bytes)[0]) for name in names]


def test_names_hash_as_e2fsprogs_hashes_them() -> None:
    if not shutil.which("debugfs"):
        pytest.skip("debugfs is not installed (package e2fsprogs)")
    names = ["a", "x" * 31, "y" * 32, "z" * 33, "long" * 60, "\u00e9\u00fc\u20ac" * 12]
    for name, hashed in zip(
        names, hash_names([n.encode() for n in names], SEED.bytes), strict=True
    ):
        command = f"dx_hash -h half_md4 -s {SEED} {name}"
        done = subprocess.run(
            ["debugfs", "-R", command], capture_output=True, text=True, check=True
        )
        assert f"is {int(hashed):#x} " in done.stdout


@pytest.mark.parametrize("checksums", [False, True], ids=["plain", "checksums"])
@pytest.mark.parametrize("count", [150, 3_000])
def test_e2fsck_accepts_hashed_directories(tmp_path: Path, count: int, checksums: bool) -> None:
    names = names_of(count)
    random.Random(1).shuffle(names)
    members = [member("d", kind=DIR), *(member(f"d/{name}") for name in names)]
    convert(tar(*members), tmp_path / "layer.vhd", checksums=checksums)
    files = files_of(tmp_path / "layer.vhd")
    assert sorted(files.listdir("d")) == sorted(names)

    disk = tmp_path / "layer.ext4"
    shown = debugfs(disk, "htree_dump d")
    assert "Hash Version: 1" in shown
    assert "Indirect levels: 0" in shown


def test_an_index_of_two_levels_is_accepted(tmp_path: Path) -> None:
    # 14 names to a block and 508 blocks to a root: more than 7,112 of the longest names.
    names = names_of(8_000, length=250)
    members = [
        member("d", kind=DIR),
        member("d/0"),
        *(member(f"d/{n}", kind=LNK, link="d/0") for n in names),
    ]
    convert(tar(*members), tmp_path / "layer.vhd", checksums=True)
    files = files_of(tmp_path / "layer.vhd")
    assert len(files.listdir("d")) == 8_001
    assert "Indirect levels: 1" in debugfs(tmp_path / "layer.ext4", "htree_dump d")


def test_names_of_one_hash_may_fill_more_than_a_block() -> None:
    entries = [(20 + number, b"%0200d" % number, 1) for number in range(100)]
    raw = pack_hashed_directory(12, 2, entries, [7000 if n < 60 else 9000 for n in range(100)])
    found = {
        entry.name
        for at in range(0, len(raw), BLOCK_SIZE)
        for entry in unpack_directory_block(raw[at : at + BLOCK_SIZE], at=at)
    }
    assert found == {b".", b"..", *(name for _, name, _ in entries)}
    keys = [int.from_bytes(raw[at : at + 4], "little") for at in range(40, 40 + 8 * 5, 8)]
    assert [key & 1 for key in keys if key & ~1 == 7000] == [1, 1, 1]


def test_a_directory_of_one_block_is_not_hashed(tmp_path: Path) -> None:
    convert(tar(*(member(f"d/{name}") for name in names_of(100))), tmp_path / "layer.vhd")
    files_of(tmp_path / "layer.vhd")
    assert "Flags: 0x80000\n" in debugfs(tmp_path / "layer.ext4", "stat d")


@pytest.mark.root
def test_the_kernel_finds_one_of_100000_names_in_twice_the_time_of_one_of_100(
    tmp_path: Path,
) -> None:
    many, few = names_of(100_000), names_of(100)
    members = [member("many/target"), member("few/target")]
    members += [
        member(f"{folder}/{name}", kind=LNK, link=f"{folder}/target-{index // 50_000}")
        for folder, names in (("many", many), ("few", few))
        for index, name in enumerate(names)
        if index % 50_000
    ]
    # A file can have 65,000 names: two targets carry the large directory.
    members[2:2] = [
        member(f"{folder}/target-{number}") for folder in ("many", "few") for number in (0, 1)
    ]
    convert(tar(*members), tmp_path / "layer.vhd")
    disk = tmp_path / "layer.ext4"
    disk.write_bytes((tmp_path / "layer.vhd").read_bytes()[:-512])
    rng = random.Random(5)
    samples: dict[str, list[float]] = {"many": [], "few": []}
    with mounted(disk, tmp_path / "mnt", "ro,noload") as root:
        for folder in samples:
            assert len(os.listdir(root / folder)) > 100  # and their blocks are in memory
        for _ in range(60):
            # Names that are not there: no dentry is remembered from an earlier round.
            asked = {
                folder: [str(root / folder / f"absent-{rng.random()}") for _ in range(100)]
                for folder in samples
            }
            for folder, paths in asked.items():
                began = time.perf_counter()
                for path in paths:
                    os.path.lexists(path)
                samples[folder].append(time.perf_counter() - began)
        assert sorted(os.listdir(root / "few")) == sorted(
            ["target", "target-0", "target-1", *few[1:]]
        )
    # The best of each: on a loaded machine medians compare the load.
    assert min(samples["many"]) <= 2 * min(samples["few"])

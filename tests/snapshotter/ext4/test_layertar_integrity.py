"""Layers with ext4's own checksums, and layers with a dm-verity tree."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from snapshotter.ext4.format import RoCompat
from snapshotter.vhd import FOOTER_SIZE, FixedVhd
from tests.snapshotter.ext4.layers import CHR, DIR, SYM, convert, files_of, member, tar
from tests.snapshotter.ext4.oracles import mounted

XATTRS = {"user.big": "x" * 300, "security.capability": "y" * 20}


def sample() -> bytes:
    return tar(
        member("etc", kind=DIR, mode=0o755),
        member("etc/passwd", b"root:x:0:0\n" * 1000, xattrs=XATTRS),
        member("etc/slow", kind=SYM, link="x" * 300),
        member("etc/fast", kind=SYM, link="passwd"),
        member("dev/null", kind=CHR, device=(1, 3)),
        *(member(f"many/{number:04}", b"%d" % number) for number in range(500)),
    )


def test_e2fsck_accepts_every_checksum(tmp_path: Path) -> None:
    convert(sample(), tmp_path / "layer.vhd", checksums=True)
    files = files_of(tmp_path / "layer.vhd")
    assert files.superblock.ro_compat & RoCompat.METADATA_CSUM
    assert files.xattrs("etc/passwd")["user.big"] == b"x" * 300
    assert len(files.listdir("many")) == 500
    assert files.readlink("etc/slow") == "x" * 300


@pytest.mark.root
def test_the_kernel_mounts_a_layer_with_checksums(tmp_path: Path) -> None:
    convert(sample(), tmp_path / "layer.vhd", checksums=True)
    disk = tmp_path / "disk"
    disk.write_bytes((tmp_path / "layer.vhd").read_bytes()[:-FOOTER_SIZE])
    with mounted(disk, tmp_path / "mnt", "ro,noload") as root:
        assert (root / "many" / "0123").read_bytes() == b"123"
        assert os.getxattr(root / "etc/passwd", "user.big") == b"x" * 300
        assert sorted(os.listdir(root / "many")) == [f"{number:04}" for number in range(500)]


def root_hash(data: bytes) -> str:
    """Compute a dm-verity root hash the plain way: hash blocks until one hash is left."""
    salt = bytes(32)
    digests = [
        hashlib.sha256(salt + data[at : at + 4096]).digest() for at in range(0, len(data), 4096)
    ]
    while len(digests) > 1:
        joined = b"".join(digests)
        joined += bytes(-len(joined) % 4096)
        digests = [
            hashlib.sha256(salt + joined[at : at + 4096]).digest()
            for at in range(0, len(joined), 4096)
        ]
    return digests[0].hex()


@pytest.mark.parametrize("size", [0, 600_000, 70_000_000])
def test_the_verity_tree_is_that_of_the_file_system(tmp_path: Path, size: int) -> None:
    target = tmp_path / "layer.vhd"
    converted = convert(tar(member("f", b"7" * size)), target, verity=True)
    verity = converted.verity
    assert verity is not None
    with FixedVhd.open(target) as disk:
        assert disk.size == converted.disk_size == verity.hash_offset + verity.size
        assert verity.root_hash == root_hash(disk.read_at(0, verity.hash_offset))
        assert disk.read_at(verity.hash_offset, 8) == b"verity\0\0"


def test_veritysetup_accepts_the_tree_and_notices_a_change(tmp_path: Path) -> None:
    if not shutil.which("veritysetup"):
        pytest.skip("veritysetup is not installed (package cryptsetup-bin)")
    target = tmp_path / "layer.vhd"
    verity = convert(sample(), target, verity=True).verity
    assert verity is not None

    def verify() -> int:
        command = ["veritysetup", "verify", str(target), str(target), verity.root_hash]
        offset = f"--hash-offset={verity.hash_offset}"
        return subprocess.run([*command, offset], capture_output=True, check=False).returncode

    assert verify() == 0
    with target.open("r+b") as file:
        file.seek(verity.hash_offset - 5000)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    assert verify() != 0


def test_the_same_tar_gives_the_same_bytes_with_both(tmp_path: Path) -> None:
    for name in ("one", "two"):
        convert(sample(), tmp_path / name, checksums=True, verity=True)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()

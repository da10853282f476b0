"""With metadata_csum, one changed bit in any structure that is read is found."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from snapshotter.errors import Ext4CorruptError
from snapshotter.ext4.extent import unpack_node
from snapshotter.ext4.format import BLOCK_SIZE
from snapshotter.ext4.inode import InodeFlag
from snapshotter.ext4.reader import Ext4
from snapshotter.ext4.volume import Volume
from snapshotter.units import MIB
from tests.snapshotter.ext4.layers import DIR, convert, member, tar
from tests.snapshotter.ext4.oracles import MemoryDisk
from tests.snapshotter.ext4.test_layertar_sparse import old_sparse


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    target = tmp_path_factory.mktemp("disk") / "layer.vhd"
    many = [member(f"many/{number:05}{'n' * 240}") for number in range(8_000)]
    raw = tar(
        member("d", kind=DIR), member("d/file", b"x", xattrs={"user.large": "x" * 500}), *many
    )
    convert(old_sparse(MIB, [(0, 1)], b"x")[:-1024] + raw, target, checksums=True)
    return target.read_bytes()[:-512]


def place_of(disk: bytes, structure: str) -> int:
    """Return the offset of a byte of a structure, in the middle of what it uses."""
    volume = Volume.open(MemoryDisk(disk))
    files = Ext4(volume)

    def first_block(path: str) -> int:
        inode = volume.inode(files.stat(path).inode)
        return unpack_node(inode.block).extents[0].physical

    many = volume.inode(files.stat("many").inode)
    assert many.flags & InodeFlag.INDEX
    places = {
        "group descriptor": BLOCK_SIZE + 12,
        "inode": volume.inode_place(files.stat("d/file").inode) + 8,
        "directory": first_block("d") * BLOCK_SIZE + 24 + 8,
        "directory index": first_block("many") * BLOCK_SIZE + 40,
        "directory index node": (first_block("many") + 1) * BLOCK_SIZE + 16,
        "hashed leaf": (first_block("many") + 9) * BLOCK_SIZE + 8,
        "xattr block": volume.inode(files.stat("d/file").inode).xattr_block * BLOCK_SIZE + 4000,
    }
    return places[structure]


@pytest.mark.parametrize(
    "structure",
    [
        "group descriptor",
        "inode",
        "directory",
        "directory index",
        "directory index node",
        "hashed leaf",
        "xattr block",
    ],
)
def test_a_changed_bit_is_found(disk: bytes, structure: str) -> None:
    at = place_of(disk, structure)
    damaged = bytearray(disk)
    damaged[at] ^= 1
    files = Ext4.open(MemoryDisk(damaged))
    with pytest.raises(Ext4CorruptError, match="checksum"):
        assert [files.xattrs(path) for path, _ in files.walk()]


def test_a_changed_bit_of_an_extent_tree_is_found(tmp_path: Path) -> None:
    pieces = "".join(f"{at * 8192},1," for at in range(10))
    info, data = member("f", b"0123456789")
    info.pax_headers = {"GNU.sparse.size": "90000", "GNU.sparse.map": pieces.rstrip(",")}
    convert(tar((info, data)), tmp_path / "layer.vhd", checksums=True)
    disk = bytearray((tmp_path / "layer.vhd").read_bytes()[:-512])
    files = Ext4.open(MemoryDisk(disk))
    assert files.read("f", offset=8192, length=2) == b"1\0"
    volume = Volume.open(MemoryDisk(disk))
    (child,) = unpack_node(volume.inode(files.stat("f").inode).block).children
    disk[child * BLOCK_SIZE + 20] ^= 1
    with pytest.raises(Ext4CorruptError, match="extent block checksum"):
        Ext4.open(MemoryDisk(disk)).read("f")


@pytest.mark.parametrize(
    "features", ["metadata_csum", "^metadata_csum,uninit_bg", "^metadata_csum"]
)
def test_file_systems_of_mke2fs_are_read_with_their_checksums(
    tmp_path: Path, features: str
) -> None:
    if not shutil.which("mke2fs"):
        pytest.skip("mke2fs is not installed (package e2fsprogs)")
    tree = tmp_path / "tree"
    (tree / "many").mkdir(parents=True)
    names = [f"{number:04}".ljust(60, "x") for number in range(700)]
    for name in names:
        (tree / "many" / name).write_bytes(name.encode())
    image = tmp_path / "disk"
    command = ["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", features, "-d", str(tree)]
    subprocess.run([*command, str(image), "64M"], check=True, capture_output=True)
    # e2fsck builds the index that mke2fs -d leaves out.
    done = subprocess.run(["e2fsck", "-fyD", str(image)], capture_output=True, check=False)
    assert done.returncode in (0, 1), done.stdout
    files = Ext4.open(MemoryDisk(image.read_bytes()))
    assert sorted(files.listdir("many")) == names
    assert files.read(f"many/{names[99]}") == names[99].encode()
    damaged = bytearray(image.read_bytes())
    damaged[BLOCK_SIZE + 12] ^= 1  # the free blocks of group 0
    if features == "^metadata_csum":
        assert Ext4.open(MemoryDisk(damaged)).listdir("many")
    else:
        with pytest.raises(Ext4CorruptError, match="checksum"):
            Ext4.open(MemoryDisk(damaged)).listdir("many")

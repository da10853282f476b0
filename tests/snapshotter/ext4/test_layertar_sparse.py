"""Sparse members keep their content and their holes, in every form that GNU tar writes."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from snapshotter.errors import LayerError
from snapshotter.ext4.layertar import convert_layer
from snapshotter.ext4.sparse import MAX_SPARSE_SIZE, plan_sparse
from snapshotter.units import GIB, KIB, MIB
from tests.snapshotter.ext4.layers import convert, files_of, member, tar
from tests.snapshotter.ext4.oracles import debugfs

FORMS = {
    "old GNU": ["--format=gnu"],
    "PAX 0.0": ["--format=pax", "--sparse-version=0.0"],
    "PAX 0.1": ["--format=pax", "--sparse-version=0.1"],
    "PAX 1.0": ["--format=pax", "--sparse-version=1.0"],
}


def gnu_tar(directory: Path, *arguments: str) -> bytes:
    """Return what GNU tar makes of a directory."""
    if not shutil.which("tar"):
        pytest.skip("GNU tar is not installed (package tar)")
    command = ["tar", "--sparse", "--hole-detection=raw", *arguments, "-C", str(directory), "-c"]
    return subprocess.run([*command, "."], check=True, capture_output=True).stdout


def sparse_file(path: Path, size: int, pieces: dict[int, bytes]) -> bytes:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data)
    return path.read_bytes()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_sparse_member_arrives(tmp_path: Path, form: str) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    contents = {
        "few": sparse_file(tree / "few", 3 * MIB + 7, {512: b"a" * 700, 2 * MIB: b"b" * 5000}),
        "many": sparse_file(
            tree / "many", 4 * MIB, {at * 20_480: b"%04d" % at * 130 for at in range(200)}
        ),
        "tail": sparse_file(tree / "tail", MIB, {MIB - 3: b"end"}),
        "hole": sparse_file(tree / "hole", 5 * MIB, {}),
    }
    (tree / "plain").write_bytes(b"plain")
    target = tmp_path / "layer.vhd"
    convert(gnu_tar(tree, *FORMS[form]), target)
    files = files_of(target)
    for name, data in contents.items():
        assert files.stat(name).size == len(data), name
        assert files.read(name) == data, name
    assert files.read("/plain") == b"plain"
    assert target.stat().st_size < 3 * MIB  # the holes are holes


def test_chunks_of_any_length_give_the_same_image(tmp_path: Path) -> None:
    class Trickle(io.RawIOBase):
        def __init__(self, raw: bytes) -> None:
            self._raw = io.BytesIO(raw)

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: object) -> int:
            view = memoryview(buffer)  # type: ignore[arg-type]
            return self._raw.readinto(view[:301])

    tree = tmp_path / "tree"
    tree.mkdir()
    sparse_file(tree / "f", MIB, {at * 24_576 + 100: bytes([at]) * 9000 for at in range(40)})
    raw = gnu_tar(tree, "--format=gnu")
    convert(raw, tmp_path / "whole.vhd")
    convert_layer(Trickle(raw), tmp_path / "cut.vhd")  # type: ignore[arg-type]
    assert (tmp_path / "whole.vhd").read_bytes() == (tmp_path / "cut.vhd").read_bytes()


def old_sparse(size: int, fragments: list[tuple[int, int]], data: bytes) -> bytes:
    """Return a tar of one old GNU sparse member of at most four fragments."""
    info = tarfile.TarInfo("sparse")
    info.size = len(data)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    for number, fragment in enumerate(fragments):
        at = 386 + 24 * number
        for offset, value in zip((at, at + 12), fragment, strict=True):
            header[offset : offset + 12] = struct.pack(">BxxxQ", 0x80, value)
    header[483:495] = struct.pack(">BxxxQ", 0x80, size)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % 512) + bytes(1024)


def test_files_of_terabytes_cost_only_their_data(tmp_path: Path) -> None:
    size = 9 * 1024 * GIB + 5
    raw = old_sparse(size, [(0, 4), (8 * 1024 * GIB, 4), (size, 0)], b"headtail")
    convert(raw, tmp_path / "layer.vhd")
    files = files_of(tmp_path / "layer.vhd")
    assert files.stat("sparse").size == size
    assert files.read("sparse", length=6) == b"head\0\0"
    assert files.read("sparse", offset=8 * 1024 * GIB, length=6) == b"tail\0\0"
    assert (tmp_path / "layer.vhd").stat().st_size < MIB


@pytest.mark.parametrize(
    ("size", "fragments", "data", "problem"),
    [
        (100, [(0, 8), (4, 8)], b"x" * 16, "sparse map"),
        (100, [(96, 8)], b"x" * 8, "sparse map"),
        (100, [(0, 8)], b"x" * 9, "its map tells of 8 bytes"),
        (MAX_SPARSE_SIZE + 1, [(0, 8)], b"x" * 8, "ext4 holds"),
    ],
)
def test_maps_that_cannot_be_are_refused(
    tmp_path: Path, size: int, fragments: list[tuple[int, int]], data: bytes, problem: str
) -> None:
    with pytest.raises(LayerError, match=problem):
        convert(old_sparse(size, fragments, data), tmp_path / "layer.vhd")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "records",
    [
        {"GNU.sparse.map": "0,1,2"},
        {"GNU.sparse.map": "0,x", "GNU.sparse.size": "9"},
        {"GNU.sparse.major": "2", "GNU.sparse.minor": "0", "GNU.sparse.size": "9"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"},
    ],
)
def test_records_that_make_no_map_are_refused(tmp_path: Path, records: dict[str, str]) -> None:
    info, data = member("f", b"?" * 600)
    info.pax_headers = dict(records)
    with pytest.raises(LayerError, match="sparse"):
        convert(tar((info, data)), tmp_path / "layer.vhd")


def test_replaced_sparse_files_give_their_blocks_back(tmp_path: Path) -> None:
    first = old_sparse(MIB, [(0, 4096), (512 * KIB, 4096)], b"x" * 8192)[:-1024]
    convert(first + tar(member("sparse", b"new")), tmp_path / "layer.vhd")
    assert files_of(tmp_path / "layer.vhd").read("sparse") == b"new"


def test_thousands_of_fragments_make_a_deep_extent_tree(tmp_path: Path) -> None:
    count = 1500  # 340 to a leaf, four in the inode
    tree = tmp_path / "tree"
    tree.mkdir()
    data = sparse_file(tree / "f", count * 8192, {at * 8192: b"%d" % at for at in range(count)})
    convert(gnu_tar(tree, "--format=posix"), tmp_path / "layer.vhd")
    files = files_of(tmp_path / "layer.vhd")
    assert files.read("f") == data
    assert "(ETB" in debugfs(tmp_path / "layer.ext4", "stat f")
    assert os.path.getsize(tmp_path / "layer.vhd") < 7 * MIB


def test_neighbouring_fragments_share_their_blocks() -> None:
    plan = plan_sparse([(10, 5), (20, 5), (4090, 10), (9000, 1)], 20_000, first_block=100)
    assert plan.extents.tolist() == [[0, 100, 3]]
    assert plan.parts == ((10, 5), (5, 5), (4065, 10), (4900, 1))
    assert plan.zeros_after == 3 * 4096 - 9001

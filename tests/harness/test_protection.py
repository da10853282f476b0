"""Trees after layers, as the host adds and reads them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.gcs.codec import from_json, to_json
from harness.gcs.prot import MappedVirtualDisk
from harness.protection import add_verity, verity_of
from harness.scsi import MountConfig
from snapshotter.errors import Ext4CorruptError, Ext4UnsupportedError
from snapshotter.ext4.layertar import convert_layer
from snapshotter.vhd import FixedVhd


def layer(target: Path, *, verity: bool) -> Path:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo("file")
        member.size = 700_000
        archive.addfile(member, io.BytesIO(b"7" * member.size))
    stream.seek(0)
    convert_layer(stream, target, verity=verity, durable=False)
    return target


def test_a_tree_that_is_added_is_the_one_that_comes_with_a_conversion(tmp_path: Path) -> None:
    bare = layer(tmp_path / "bare.vhd", verity=False)
    converted = layer(tmp_path / "whole.vhd", verity=True)
    added = add_verity(bare, tmp_path / "added.vhd")
    assert added == verity_of(tmp_path / "added.vhd") == verity_of(converted)
    with FixedVhd.open(converted) as one, FixedVhd.open(tmp_path / "added.vhd") as other:
        assert one.size == other.size
        tree = added.ext4_size + 4096
        assert one.read_at(tree, one.size) == other.read_at(tree, other.size)
        assert one.read_at(0, added.ext4_size) == other.read_at(0, added.ext4_size)


def test_a_layer_without_a_tree_or_with_a_strange_one_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Ext4CorruptError, match="dm-verity superblock"):
        verity_of(layer(tmp_path / "bare.vhd", verity=False))
    strange = layer(tmp_path / "strange.vhd", verity=True)
    size = verity_of(strange).ext4_size
    with strange.open("r+b") as file:
        file.seek(size + 32)
        file.write(b"sha512")
    with pytest.raises(Ext4UnsupportedError, match="sha512"):
        verity_of(strange)


def test_the_guest_is_told_in_hcsshims_words(tmp_path: Path) -> None:
    info = verity_of(layer(tmp_path / "layer.vhd", verity=True))
    told = to_json(MappedVirtualDisk(mount_path="/m", lun=1, read_only=True, verity=info))
    assert told["VerityInfo"] == {
        "Ext4SizeInBytes": info.ext4_size,
        "Version": 1,
        "Algorithm": "sha256",
        "SuperBlock": True,
        "RootDigest": info.root_digest,
        "Salt": "00" * 32,
        "BlockSize": 4096,
    }
    assert from_json(MappedVirtualDisk, told).verity == info
    assert "VerityInfo" not in to_json(MappedVirtualDisk(mount_path="/m"))


def test_only_what_cannot_be_written_is_verified(tmp_path: Path) -> None:
    info = verity_of(layer(tmp_path / "layer.vhd", verity=True))
    with pytest.raises(UsageError, match="read-only"):
        MountConfig(verity=info)
    plain = MountConfig(read_only=True)
    assert MountConfig(read_only=True, verity=info).formatting != plain.formatting

"""From the snapshotter's mounts to the disks of a container."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.containers import disks_of
from harness.errors import UsageError
from snapshotter import Mount


def _layer(directory: Path) -> Path:
    directory.mkdir()
    (directory / "layer.vhd").write_bytes(b"layer")
    return directory


def _mount(source: Path, parents: list[Path], *, mode: str = "rw") -> Mount:
    paths = json.dumps([str(parent) for parent in parents])
    return Mount("lcow-layer", str(source), (mode, f"parentLayerPaths={paths}"))


def test_a_read_write_mount_is_its_parents_layers_and_its_resolved_scratch(tmp_path: Path) -> None:
    base, top, own = _layer(tmp_path / "1"), _layer(tmp_path / "2"), tmp_path / "3"
    own.mkdir()
    disk = tmp_path / "disk.vhdx"
    disk.write_bytes(b"scratch")
    (own / "sandbox.vhdx").symlink_to(disk)
    disks = disks_of([_mount(own, [top, base])])
    assert disks.layers == (top / "layer.vhd", base / "layer.vhd")
    assert disks.scratch == disk


def test_a_read_only_mount_has_its_source_as_topmost_layer_and_no_scratch(tmp_path: Path) -> None:
    base, top = _layer(tmp_path / "1"), _layer(tmp_path / "2")
    disks = disks_of([_mount(top, [base], mode="ro")])
    assert disks.layers == (top / "layer.vhd", base / "layer.vhd")
    assert disks.scratch is None


def test_null_parents_as_go_writes_them_are_no_layers(tmp_path: Path) -> None:
    (tmp_path / "sandbox.vhdx").touch()
    mount = Mount("lcow-layer", str(tmp_path), ("rw", "parentLayerPaths=null"))
    assert disks_of([mount]).layers == ()


def test_a_dangling_scratch_link_is_refused_naming_it(tmp_path: Path) -> None:
    (tmp_path / "sandbox.vhdx").symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match=r"sandbox\.vhdx is not there"):
        disks_of([_mount(tmp_path, [])])


@pytest.mark.parametrize(
    "mounts",
    [[], [Mount("bind", "/x", ("rw",))], [Mount("lcow-layer", "/x", ("rw",))] * 2],
    ids=["none", "another type", "two"],
)
def test_anything_but_one_lcow_layer_mount_is_refused(mounts: list[Mount]) -> None:
    with pytest.raises(UsageError, match="exactly one lcow-layer mount"):
        disks_of(mounts)

"""From the snapshotter's mounts to the disks of a container."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.containers import ContainerRootfs, LcowDisks, disks_of
from harness.errors import ComputeServiceError, DiskError, GuestError, NoSlotError, UsageError
from harness.gcs.prot import CombinedLayers
from harness.scsi import ScsiManager
from snapshotter import Mount
from tests.fakes.scsi_host import FakeScsiHost


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


class LayerTable:
    """Implements LayerGuest: the overlays of a guest, and an error for the next call."""

    def __init__(self) -> None:
        self.mounted: list[str] = []
        self.fail: Exception | None = None

    def add_combined_layers(self, layers: CombinedLayers) -> None:
        self._meet()
        self.mounted.append(layers.container_root_path)

    def remove_combined_layers(self, layers: CombinedLayers) -> None:
        self._meet()
        self.mounted.remove(layers.container_root_path)

    def _meet(self) -> None:
        fault, self.fail = self.fail, None
        if fault is not None:
            raise fault


@pytest.fixture
def disks(tmp_path: Path) -> LcowDisks:
    for name in ("top.vhd", "base.vhd", "scratch.vhdx"):
        (tmp_path / name).write_bytes(b"")
    return LcowDisks((tmp_path / "top.vhd", tmp_path / "base.vhd"), tmp_path / "scratch.vhdx")


def _built(scsi: ScsiManager, guest: LayerTable, name: str, disks: LcowDisks) -> ContainerRootfs:
    root = ContainerRootfs(scsi, guest, name)
    root.build(disks, "pod", timeout_s=10)
    return root


@pytest.mark.parametrize("operation", ["unmount", "eject", "detach"])
def test_c4_a_release_that_failed_midway_is_repeated_and_gives_back_each_disk_once(
    disks: LcowDisks, operation: str
) -> None:
    """(C) 4: the layer above forgot what it had released, so a retry found no reservation."""
    vm, guest = FakeScsiHost(), LayerTable()
    scsi = ScsiManager(vm, vm)
    root, other = (_built(scsi, guest, name, disks) for name in ("c1", "c2"))
    other.unmount()
    other.release_disks()
    root.unmount()
    vm.fail(operation, ComputeServiceError("busy", hresult=0x80070020))
    with pytest.raises(DiskError, match="busy"):
        root.release_disks()
    with _rootfs_of_others(scsi, guest, disks):
        root.release_disks()
        root.release_disks()
        assert {each.refcount for each in scsi.snapshot().attachments} == {1}
    assert vm.empty
    assert vm.violations == []


@contextlib.contextmanager
def _rootfs_of_others(scsi: ScsiManager, guest: LayerTable, disks: LcowDisks) -> Iterator[None]:
    """Have another container on the same disks for the time of the context."""
    root = _built(scsi, guest, "another", disks)
    try:
        yield
    finally:
        root.unmount()
        root.release_disks()


def test_an_overlay_that_cannot_be_removed_keeps_its_disks(disks: LcowDisks) -> None:
    vm, guest = FakeScsiHost(), LayerTable()
    root = _built(ScsiManager(vm, vm), guest, "c1", disks)
    guest.fail = GuestError("busy", hresult=0x80004005, request="ModifySettings")
    with pytest.raises(GuestError):
        root.unmount()
    assert root.path == "/run/gcs/c/c1/rootfs"
    assert len(vm.disks) == 3
    root.unmount()
    root.unmount()
    root.release_disks()
    assert vm.empty
    assert guest.mounted == []


def test_without_a_free_slot_nothing_of_a_root_is_kept(disks: LcowDisks) -> None:
    vm, guest = FakeScsiHost(), LayerTable()
    scsi = ScsiManager(vm, vm, controllers=1)
    with contextlib.ExitStack() as others:
        for number in range(62):
            path = disks.layers[0].with_name(f"other{number}.vhd")
            path.write_bytes(b"")
            others.enter_context(scsi.acquire(path, holder=f"other {number}"))
        root = ContainerRootfs(scsi, guest, "c1")
        with pytest.raises(NoSlotError, match=r"all 64 SCSI slots are taken.*other 0"):
            root.build(disks, "pod", timeout_s=10)
        root.unmount()
        root.release_disks()
        assert len(vm.disks) == 62
        assert guest.mounted == []
    assert vm.empty

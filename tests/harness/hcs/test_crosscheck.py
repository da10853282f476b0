"""Windows's virtual disks against ours, with QEMU in Windows's place."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.hcs.crosscheck import MERGED, OURS, THEIRS, CrossCheck, Difference, cross_check
from harness.hcs.virtdisk import VirtDisk
from harness.hcs.virtdiskapi import DiskInfo, InfoVersion
from snapshotter.vhdx import create_vhdx
from tests.fakes.virtdisk import CORRUPT, FakeVirtDisk

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-img") is None, reason="qemu-img is not installed (package qemu-utils)"
)

FAMILY = ("dynamic.vhdx", "child.vhdx")


@pytest.fixture
def windows(tmp_path: Path) -> FakeVirtDisk:
    (tmp_path / "devices").mkdir()
    (tmp_path / "work").mkdir()
    return FakeVirtDisk(tmp_path / "devices")


@pytest.fixture
def work(tmp_path: Path, windows: FakeVirtDisk) -> Path:
    del windows
    return tmp_path / "work"


def run(windows: FakeVirtDisk, work: Path, disks: Collection[str]) -> list[Difference]:
    """The differences; nothing is left open, attached or on disk."""
    found = CrossCheck(windows.library(), disks=disks).run(work)
    assert windows.opens == {}
    assert list(work.iterdir()) == []
    assert list(windows.place.iterdir()) == []
    return found


def test_two_independent_readers_see_the_same_disks(windows: FakeVirtDisk, work: Path) -> None:
    check = CrossCheck(windows.library())
    assert check.run(work) == []
    assert check.compared > 700
    assert windows.opens == {}
    assert list(work.iterdir()) == list(windows.place.iterdir()) == []
    assert windows.calls.count("AttachVirtualDisk") == len(OURS) + len(THEIRS)
    assert windows.calls.count("DetachVirtualDisk") == len(OURS) + len(THEIRS)
    assert windows.calls.count("MergeVirtualDisk") == 1
    made = {name for name in THEIRS if name.endswith("child.vhdx")}
    assert made == {"windows-child.vhdx", "windows-grandchild.vhdx"}


def _change(member: str, value: int) -> Callable[[DiskInfo], None]:
    def lie(info: DiskInfo) -> None:
        place = info.Of
        *path, last = member.split(".")
        for name in path:
            place = getattr(place, name)
        setattr(place, last, value)

    return lie


@pytest.mark.parametrize(
    ("what", "lie", "disk", "named"),
    [
        (InfoVersion.SIZE, _change("Size.VirtualSize", 1 << 20), "dynamic.vhdx", "size"),
        (InfoVersion.SIZE, _change("Size.BlockSize", 1 << 20), "dynamic.vhdx", "block size"),
        (InfoVersion.SIZE, _change("Size.SectorSize", 520), "dynamic.vhdx", "logical sector size"),
        (
            *(InfoVersion.VIRTUAL_STORAGE_TYPE, _change("VirtualStorageType.DeviceId", 1)),
            *("layer.vhd", "format"),
        ),
        (InfoVersion.PROVIDER_SUBTYPE, _change("ProviderSubtype", 3), "fixed.vhdx", "kind"),
        (InfoVersion.PROVIDER_SUBTYPE, _change("ProviderSubtype", 9), "dynamic.vhdx", "kind"),
        (
            *(InfoVersion.VHD_PHYSICAL_SECTOR_SIZE, _change("VhdPhysicalSectorSize", 512)),
            *("dynamic.vhdx", "physical sector size"),
        ),
        (
            *(InfoVersion.VIRTUAL_DISK_ID, _change("VirtualDiskId.Data1", 7)),
            *("dynamic.vhdx", "identifier"),
        ),
        (
            *(InfoVersion.PARENT_LOCATION, _change("ParentLocation.ParentResolved", 0)),
            *("child.vhdx", "parent"),
        ),
    ],
)
def test_each_fact_that_differs_is_named(
    windows: FakeVirtDisk,
    work: Path,
    what: InfoVersion,
    lie: Callable[[DiskInfo], None],
    disk: str,
    named: str,
) -> None:
    windows.lies[what] = lie
    found = run(windows, work, {disk, "dynamic.vhdx"} if disk == "child.vhdx" else {disk})
    assert [(each.disk, each.what) for each in found] == [(disk, named)]
    assert str(found[0]).startswith(f"{disk}: {named}: ours ")


def test_a_parent_at_another_place_is_a_difference(
    windows: FakeVirtDisk, work: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.touch()

    windows.parents["child.vhdx"] = other
    (found,) = run(windows, work, FAMILY)
    assert (found.disk, found.what, found.windows) == ("child.vhdx", "parent", str(other))


@pytest.mark.parametrize("disk", ["scratch.vhdx", "dynamic.vhdx", "layer.vhd", "windows.vhdx"])
@pytest.mark.parametrize("where", ["start", "end"])
def test_a_single_byte_of_content_that_differs_is_found(
    windows: FakeVirtDisk, work: Path, disk: str, where: str
) -> None:
    def flip(device: Path) -> None:
        at = 0 if where == "start" else device.stat().st_size - 1
        with device.open("r+b") as file:
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ 1]))

    windows.spoil = flip
    (found,) = run(windows, work, {disk})
    assert found.disk == disk
    assert found.what.startswith("content from ")


def test_a_device_that_comes_a_moment_later_is_waited_for(
    windows: FakeVirtDisk, work: Path
) -> None:
    late: list[threading.Thread] = []

    def hide(device: Path) -> None:
        away = device.with_suffix(".away")
        device.rename(away)
        late.append(threading.Timer(0.1, lambda: away.rename(device)))
        late[-1].start()

    windows.spoil = hide
    assert run(windows, work, {"layer.vhd"}) == []
    late[0].join()


def test_a_file_that_windows_changes_though_it_only_reads_is_a_difference(
    windows: FakeVirtDisk, work: Path
) -> None:
    def touch(device: Path) -> None:
        (opened,) = windows.opens.values()
        with opened.path.open("r+b") as file:
            file.seek(600)
            file.write(b"x")
        del device

    windows.spoil = touch
    (found,) = run(windows, work, {"fixed.vhdx"})
    assert found.what == "the file after it was attached"


def test_a_merge_that_loses_data_is_a_difference(windows: FakeVirtDisk, work: Path) -> None:
    def lose(raw: Path) -> None:
        with raw.open("r+b") as file:
            file.seek(40 << 20)
            file.write(bytes(512))

    windows.spoil = lose
    (found,) = run(windows, work, {MERGED})
    assert found.what == "content from 0x2800000 on"


@pytest.mark.parametrize(
    "name",
    [
        "OpenVirtualDisk",
        "GetVirtualDiskInformation",
        "AttachVirtualDisk",
        "GetVirtualDiskPhysicalPath",
        "DetachVirtualDisk",
    ],
)
def test_a_refusal_is_a_difference_and_the_other_disks_are_looked_at(
    windows: FakeVirtDisk, work: Path, name: str
) -> None:
    windows.refuse[name] = CORRUPT
    found = run(windows, work, {"fixed.vhdx", "layer.vhd"})
    assert [each.disk for each in found] == ["fixed.vhdx", "layer.vhd"]
    for each in found:
        assert each.what == "Windows refuses it"
        assert "0xc03a0005" in each.windows


@pytest.mark.parametrize("name", ["CreateVirtualDisk", "MergeVirtualDisk"])
def test_what_windows_cannot_make_or_merge_is_a_difference(
    windows: FakeVirtDisk, work: Path, name: str
) -> None:
    windows.refuse[name] = 5
    found = run(windows, work, {"windows-fixed.vhd", MERGED})
    assert len(found) == 1
    assert "Access is denied (0x5)" in str(found[0])


def test_a_disk_of_windows_that_our_check_complains_of_is_a_difference(
    windows: FakeVirtDisk, work: Path
) -> None:
    def damage(device: Path) -> None:
        (opened,) = windows.opens.values()
        with opened.path.open("r+b") as file:
            file.seek(256 << 10)  # the second region table
            file.write(b"nope")
        del device

    windows.spoil = damage
    found = run(windows, work, {"windows.vhdx"})
    assert any("region table" in each.what for each in found), found


def test_what_is_no_disk_is_refused_with_its_path(windows: FakeVirtDisk, work: Path) -> None:
    (work / "text.vhdx").write_text("x" * 600_000)
    library = windows.library()
    for name in ("text.vhdx", "missing.vhdx"):
        with pytest.raises(OSError, match=name), library.opened(work / name):
            pass
    assert windows.opens == {}


def test_a_long_path_of_a_parent_is_read_whole(windows: FakeVirtDisk, work: Path) -> None:
    deep = work / ("d" * 200) / ("e" * 200)
    deep.mkdir(parents=True)
    create_vhdx(deep / "parent.vhdx", 1 << 20)
    library = windows.library()
    library.create(deep / "child.vhdx", parent=deep / "parent.vhdx")
    with library.opened(deep / "child.vhdx") as disk:
        assert disk.info().parent == str(deep / "parent.vhdx")


@pytest.mark.skipif(sys.platform == "win32", reason="there it is")
def test_other_systems_are_told_that_the_api_is_on_windows(work: Path) -> None:
    with pytest.raises(UsageError, match="on Windows alone"):
        VirtDisk.load()
    with pytest.raises(UsageError, match="on Windows alone"):
        cross_check(work)

"""A scratch disk is the same disk however its file is allocated: sparse, dense or cloned."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter import Snapshotter
from snapshotter.blockio import LocalBlockFile
from snapshotter.errors import AlreadyExistsError
from snapshotter.labels import LOCATION
from snapshotter.scratch.reflink import ReflinkSource
from snapshotter.scratch.refs import NamedSource
from snapshotter.scratch.template import ScratchTemplate, verify_scratch
from snapshotter.shelf import Owner, Shelf
from snapshotter.units import GIB, MIB
from snapshotter.vhdx import Allocation, VhdxDisk
from tests.fakes.ntfs import FakeNtfs, NtfsPlatform


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


def disk_id(path: Path) -> uuid.UUID:
    with VhdxDisk.open(path) as disk:
        return disk.info().disk_id


def is_shared(path: Path) -> bool:
    """Whether the file shares blocks with another, as FIEMAP tells it (ioctl_fiemap(2))."""
    command = ["filefrag", "-v", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return "shared" in done.stdout


@pytest.mark.root
def test_clones_are_disks_of_their_own(template: ScratchTemplate, sharing: Path) -> None:
    with ReflinkSource.open(sharing, template) or pytest.fail("XFS shares blocks") as source:
        for name in ("one.vhdx", "two.vhdx"):
            assert source.write_staged(sharing / name)
            verify_scratch(sharing / name, size=20 * GIB)
        with pytest.raises(AlreadyExistsError):
            source.write_staged(sharing / "one.vhdx")
    template.write(sharing / "plain.vhdx")
    assert len({disk_id(path) for path in sharing.iterdir()}) == len(list(sharing.iterdir())) == 3
    # Beyond the metadata they are the same file.
    tails = {path.read_bytes()[3 * MIB :] for path in sharing.iterdir()}
    assert len(tails) == 1


@pytest.mark.root
def test_writing_to_one_clone_leaves_the_others_alone(
    template: ScratchTemplate, sharing: Path
) -> None:
    with ReflinkSource.open(sharing, template) or pytest.fail("XFS shares blocks") as source:
        source.write_staged(sharing / "one.vhdx")
        with VhdxDisk.open(sharing / "one.vhdx", writable=True) as disk:
            disk.write_at(0, b"x" * 3 * MIB)
        source.write_staged(sharing / "two.vhdx")
    verify_scratch(sharing / "two.vhdx", size=20 * GIB)


@pytest.mark.root
def test_what_cannot_be_cloned_after_all_leaves_nothing(
    template: ScratchTemplate, sharing: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with ReflinkSource.open(sharing, template) or pytest.fail("XFS shares blocks") as source:
        assert not source.write_staged(elsewhere / "sandbox.vhdx")
    assert not list(elsewhere.iterdir())


@pytest.mark.root
@pytest.mark.skipif(shutil.which("filefrag") is None, reason="filefrag is not installed")
def test_a_store_clones_where_files_can_share_blocks(sharing: Path) -> None:
    with Snapshotter.open(sharing / "root") as store:
        store.prepare("a")
        store.prepare("b")
        disks = [shared.path for key in "ab" if (shared := store.shared_disk(key))]
        assert len({disk_id(path) for path in disks}) == 2
        for path in disks:
            assert is_shared(path)
            verify_scratch(path, size=20 * GIB)
    # Nothing keeps the file system busy: the fixture unmounts it.


@pytest.mark.root
def test_a_disk_that_fits_is_made_where_its_template_would_not_fit(sharing: Path) -> None:
    with Snapshotter.open(sharing / "root") as store:
        with (sharing / "ballast").open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, shutil.disk_usage(sharing).free - 3 * MIB)
        store.prepare("pod")
        disk = store.shared_disk("pod")
        assert disk is not None
        verify_scratch(disk.path, size=20 * GIB)
        assert disk.path.stat().st_blocks * 512 < MIB


@pytest.mark.root
@pytest.mark.skipif(shutil.which("filefrag") is None, reason="filefrag is not installed")
def test_a_location_elsewhere_clones_by_itself(sharing: Path, tmp_path: Path) -> None:
    place = sharing / "fast"
    with Snapshotter.open(tmp_path / "root", scratch_locations=[place]) as store:
        store.prepare("there", labels={LOCATION: str(place)})
        store.prepare("here")
        there, here = store.shared_disk("there"), store.shared_disk("here")
        assert there is not None
        assert here is not None
        assert is_shared(there.path)
        assert not is_shared(here.path)


@pytest.mark.skipif(sys.platform == "win32", reason="counts allocated blocks")
def test_a_store_writes_disks_out_where_sparse_ones_may_be_refused(
    tmp_path: Path, ntfs: FakeNtfs
) -> None:
    for name, platform in (("ntfs", NtfsPlatform(ntfs)), ("here", None)):
        with Snapshotter.open(tmp_path / name, durable=False, platform=platform) as store:
            store.prepare("pod")
            disk = store.shared_disk("pod")
            assert disk is not None
            status = disk.path.stat()
            assert (status.st_blocks * 512 >= status.st_size) == (name == "ntfs")


class Recording(FakeNtfs):
    """A volume of ReFS that counts what is cloned."""

    cloned = 0

    def duplicate_extents(
        self, target: int, source: int, *, source_offset: int, target_offset: int, length: int
    ) -> None:
        super().duplicate_extents(
            target, source, source_offset=source_offset, target_offset=target_offset, length=length
        )
        self.cloned += length


def test_a_store_on_refs_clones(tmp_path: Path) -> None:
    volume = Recording(refs=True)
    platform = NtfsPlatform(volume)
    place = tmp_path / "fast"
    with Snapshotter.open(
        tmp_path / "root", durable=False, platform=platform, scratch_locations=[place]
    ) as store:
        store.prepare("first")
        before = volume.cloned
        store.prepare("a")
        store.prepare("b")
        assert volume.cloned - before == 2 * 5 * MIB
        store.prepare("there", labels={LOCATION: str(place)})
        disks = [
            shared.path
            for key in ("first", "a", "b", "there")
            if (shared := store.shared_disk(key))
        ]
        assert len({disk_id(path) for path in disks}) == 4
        for path in disks:
            verify_scratch(path, size=20 * GIB)
        with VhdxDisk.open(disks[0], writable=True) as disk:
            disk.write_at(0, b"x" * 3 * MIB)
        store.prepare("c")
        latest = store.shared_disk("c")
        assert latest is not None
        verify_scratch(latest.path, size=20 * GIB)
        store.cleanup()  # the template of a living process is no garbage
        before = volume.cloned
        store.prepare("d")
        assert volume.cloned - before == 5 * MIB
    left = [path.name for path in (tmp_path / "root" / "scratch").iterdir()]
    assert all(name.isdecimal() for name in left)


def test_the_template_that_a_killed_process_left_on_refs_is_garbage(tmp_path: Path) -> None:
    platform = NtfsPlatform(Recording(refs=True))
    killed = os.fork()
    if killed == 0:
        try:
            Snapshotter.open(tmp_path, durable=False, platform=platform).prepare("pod")
        finally:
            os._exit(0)
    os.waitpid(killed, 0)
    assert any(path.name.startswith("new-") for path in (tmp_path / "scratch").iterdir())
    with Snapshotter.open(tmp_path, durable=False, platform=platform) as store:
        store.cleanup()
        assert store.stat("pod").name == "pod"
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["1"]


def test_a_disk_is_written_where_refs_refuses_to_clone_after_all(tmp_path: Path) -> None:
    volume = Recording(refs=True)
    with Snapshotter.open(tmp_path, durable=False, platform=NtfsPlatform(volume)) as store:
        store.prepare("first")
        volume.refs = False
        store.prepare("second")
        disk = store.shared_disk("second")
        assert disk is not None
        verify_scratch(disk.path, size=20 * GIB)
        assert os.listdir(disk.path.parent) == [disk.path.name]


class Scanned(NtfsPlatform):
    """A disk that is cloned is opened by somebody else, who lets nobody write to it."""

    scanner: LocalBlockFile | None = None

    def reflink(self, source: Path, target: Path) -> None:
        super().reflink(source, target)
        if target.suffix == ".vhdx":
            self.scanner = LocalBlockFile.open(target, writable=True)


def test_a_clone_that_cannot_be_written_to_is_none(
    template: ScratchTemplate, tmp_path: Path
) -> None:
    platform = Scanned(FakeNtfs(refs=True))
    owner = Owner.enter(tmp_path / "owners", platform)
    shelf = Shelf(tmp_path / "scratch", owner, platform, durable=False)
    shelf.create()
    source = NamedSource.open(shelf, template, platform) or pytest.fail("ReFS clones")
    assert not source.write_staged(tmp_path / "disk.vhdx")
    assert platform.scanner is not None
    platform.scanner.close()
    assert not (tmp_path / "disk.vhdx").exists()
    (tmp_path / "disk.vhdx").touch()
    with pytest.raises(AlreadyExistsError):
        source.write_staged(tmp_path / "disk.vhdx")
    source.close()
    source.close()
    assert os.listdir(tmp_path / "scratch") == []
    owner.leave()


def test_file_systems_that_cannot_share_blocks_say_so(
    template: ScratchTemplate, tmp_path: Path
) -> None:
    place = Path("/dev/shm") if os.path.isdir("/dev/shm") else tmp_path
    source = ReflinkSource.open(place, template)
    if source is not None:
        source.close()
        pytest.skip("this file system shares blocks")
    assert not list(tmp_path.iterdir())

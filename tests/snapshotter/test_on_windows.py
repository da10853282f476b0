"""A store on a volume where open files are in the way and links need a privilege."""

from __future__ import annotations

import gzip
import io
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapshotter import Snapshotter, import_image
from snapshotter.backup import back_up, restore
from snapshotter.errors import (
    DiskInUseError,
    FailedPreconditionError,
    NotFoundError,
    UnavailableError,
)
from snapshotter.labels import LOCATION, OWNER_KEY, REUSE_SCRATCH
from snapshotter.layers import apply_layer
from tests.fakes.ntfs import FakeNtfs, NtfsPlatform
from tests.snapshotter.archives import docker_members, image, tar

SHARE = {REUSE_SCRATCH: "true", OWNER_KEY: "pod"}


@pytest.fixture
def windows(tmp_path: Path, ntfs: FakeNtfs) -> Iterator[Snapshotter]:
    with Snapshotter.open(
        tmp_path / "root", durable=False, platform=NtfsPlatform(ntfs), busy_wait_s=0.2
    ) as snapshotter:
        yield snapshotter


@contextmanager
def held_for(ntfs: FakeNtfs, path: Path, seconds: float) -> Iterator[None]:
    """Have a file open for a while from now on, as a virus scanner does."""
    opened = threading.Event()

    def scan() -> None:
        with ntfs.hold(path):
            opened.set()
            time.sleep(seconds)

    scanner = threading.Thread(target=scan)
    scanner.start()
    opened.wait()
    yield
    scanner.join()


def disk(store: Snapshotter, key: str) -> Path:
    shared = store.shared_disk(key)
    assert shared is not None
    return shared.path


def directories(store: Snapshotter) -> list[str]:
    return sorted(
        str(path.relative_to(store.root))
        for name in ("snapshots", "scratch")
        for path in (store.root / name).iterdir()
    )


def test_an_attached_disk_refuses_its_removal_as_containerds_collector_wants_it(
    windows: Snapshotter, ntfs: FakeNtfs
) -> None:
    windows.prepare("pod")
    before = directories(windows)
    with ntfs.hold(disk(windows, "pod")):
        with pytest.raises(FailedPreconditionError, match="still uses it") as caught:
            windows.remove("pod")
        assert isinstance(caught.value, DiskInUseError)
        assert directories(windows) == before
        assert windows.stat("pod").name == "pod"
    windows.remove("pod")
    assert directories(windows) == []


def test_a_removal_waits_for_a_scanner(windows: Snapshotter, ntfs: FakeNtfs) -> None:
    windows.prepare("pod")
    with held_for(ntfs, disk(windows, "pod"), 0.05):
        windows.remove("pod")
    assert directories(windows) == []


def test_a_file_open_in_the_snapshots_own_directory_takes_the_whole_removal_back(
    windows: Snapshotter, ntfs: FakeNtfs
) -> None:
    windows.prepare("pod")
    note = windows.directory("pod") / "open.log"
    note.write_text("x")
    before = directories(windows)
    with ntfs.hold(note), pytest.raises(DiskInUseError, match=r"snapshots/1.*denied") as caught:
        windows.remove("pod")
    assert caught.value.may_pass
    assert directories(windows) == before
    assert (windows.directory("pod") / "sandbox.vhdx").resolve(strict=True).is_file()


class ScannedPlatform(NtfsPlatform):
    """A scanner opens every disk as soon as it is staged, and closes it after a few tries."""

    def __init__(self, kernel: FakeNtfs, tries: int, shelf: str = "") -> None:
        super().__init__(kernel)
        self.left = tries
        self.shelf = shelf
        self.refused = 0

    def rename(self, source: Path, target: Path) -> None:
        staged = source.name.startswith("new-") and source.parent.name.endswith(self.shelf)
        if staged and self.left:
            self.left -= 1
            self.refused += 1
            with self.kernel.hold(source):
                super().rename(source, target)
        super().rename(source, target)


@pytest.mark.parametrize("shelf", ["scratch", "snapshots"])
def test_publishing_waits_for_a_scanner(tmp_path: Path, ntfs: FakeNtfs, shelf: str) -> None:
    platform = ScannedPlatform(ntfs, tries=4, shelf=shelf)
    with Snapshotter.open(tmp_path, durable=False, platform=platform) as store:
        store.prepare("pod")
        assert platform.refused == 4
        assert directories(store) == ["scratch/1", "snapshots/1"]
        assert (store.directory("pod") / "sandbox.vhdx").resolve(strict=True).is_file()


def test_a_scanner_in_the_way_of_a_restored_directory_does_not_hinder_the_open(
    tmp_path: Path, ntfs: FakeNtfs
) -> None:
    platform = ScannedPlatform(ntfs, tries=0, shelf="snapshots")
    with Snapshotter.open(tmp_path, durable=False, platform=platform) as store:
        store.prepare("pod")
        shutil.rmtree(store.directory("pod"))
    platform.left = 1
    with Snapshotter.open(tmp_path, durable=False, platform=platform) as store:
        assert platform.refused == 1
        assert directories(store) == ["scratch/1"]
        store.cleanup()
        assert directories(store) == ["scratch/1", "snapshots/1"]
        assert (store.directory("pod") / "sandbox.vhdx").resolve(strict=True).is_file()


def test_publishing_gives_up_within_its_bound_and_leaves_nothing(
    tmp_path: Path, ntfs: FakeNtfs
) -> None:
    platform = ScannedPlatform(ntfs, tries=1000)
    with Snapshotter.open(tmp_path, durable=False, platform=platform, busy_wait_s=0.05) as store:
        started = time.monotonic()
        with pytest.raises(DiskInUseError, match="open"):
            store.prepare("pod")
        assert time.monotonic() - started < 2
        with pytest.raises(NotFoundError):
            store.stat("pod")
        assert directories(store) == []


def test_others_work_while_a_removal_waits(tmp_path: Path, ntfs: FakeNtfs) -> None:
    platform = NtfsPlatform(ntfs)
    with Snapshotter.open(tmp_path, durable=False, platform=platform, busy_wait_s=30) as store:
        store.prepare("pod")
        with ntfs.hold(disk(store, "pod")):
            removing = threading.Thread(target=store.remove, args=("pod",))
            removing.start()
            for number in range(5):
                store.view(f"v{number}")
                time.sleep(0.01)
            assert removing.is_alive()
        removing.join(timeout=30)
        assert not removing.is_alive()
        assert [info.name for info in store.walk()] == [f"v{number}" for number in range(5)]


def test_others_work_while_a_publication_waits(tmp_path: Path, ntfs: FakeNtfs) -> None:
    platform = ScannedPlatform(ntfs, tries=1_000_000)
    with Snapshotter.open(tmp_path, durable=False, platform=platform, busy_wait_s=30) as store:
        preparing = threading.Thread(target=store.prepare, args=("pod",))
        preparing.start()
        while not platform.refused:
            time.sleep(0.005)
        for number in range(5):
            store.view(f"v{number}")
            time.sleep(0.01)
        assert preparing.is_alive()
        platform.left = 0  # the scanner has seen enough
        preparing.join(timeout=30)
        assert not preparing.is_alive()
        assert [info.name for info in store.walk()] == ["pod", *(f"v{n}" for n in range(5))]


def test_what_cannot_be_deleted_now_is_deleted_by_the_next_cleanup(
    windows: Snapshotter, ntfs: FakeNtfs
) -> None:
    orphan = windows.root / "scratch/77"
    orphan.mkdir()
    (orphan / "sandbox.vhdx").write_bytes(b"x")
    with ntfs.hold(orphan / "sandbox.vhdx"):
        assert windows.cleanup() == 0
    assert windows.cleanup() == 1
    assert directories(windows) == []


def test_our_own_files_are_closed_before_they_are_moved(windows: Snapshotter) -> None:
    # The fake finds every descriptor of this process: one left open would fail the rename.
    for number in range(3):
        windows.prepare(f"p{number}")
    for number in range(3):
        windows.remove(f"p{number}")
    assert directories(windows) == []


# -- without the privilege to make links


@pytest.fixture
def unprivileged(tmp_path: Path) -> Iterator[Snapshotter]:
    platform = NtfsPlatform(FakeNtfs(privileged=False))
    locations = [tmp_path / "fast"]
    with Snapshotter.open(
        tmp_path / "root", durable=False, platform=platform, scratch_locations=locations
    ) as snapshotter:
        yield snapshotter


def test_without_links_a_snapshot_has_a_disk_of_its_own(unprivileged: Snapshotter) -> None:
    (mount,) = unprivileged.prepare("pod")
    own = Path(mount.source) / "sandbox.vhdx"
    assert own.is_file()
    assert not own.is_symlink()
    assert unprivileged.shared_disk("pod") is None
    assert unprivileged.usage("pod").size > 1 << 15
    unprivileged.remove("pod")
    assert directories(unprivileged) == []


@pytest.mark.parametrize("labels", [SHARE, {LOCATION: "{fast}"}])
def test_without_links_what_needs_them_is_refused_naming_the_fix(
    unprivileged: Snapshotter, tmp_path: Path, labels: dict[str, str]
) -> None:
    unprivileged.prepare("pod")
    before = directories(unprivileged)
    wanted = {name: value.format(fast=tmp_path / "fast") for name, value in labels.items()}
    with pytest.raises(FailedPreconditionError, match=r"developer mode.*Privilege") as caught:
        unprivileged.prepare("c1", labels=wanted)
    assert not isinstance(caught.value, DiskInUseError)
    assert directories(unprivileged) == before


def test_a_disk_made_without_links_is_not_shared_once_there_are_some(
    unprivileged: Snapshotter, tmp_path: Path
) -> None:
    unprivileged.prepare("pod")
    with Snapshotter.open(
        tmp_path / "root", durable=False, platform=NtfsPlatform(FakeNtfs())
    ) as store:
        with pytest.raises(NotFoundError, match="links were refused"):
            store.prepare("c1", labels=SHARE)
        store.prepare("pod2")
        store.prepare("c1", labels={**SHARE, OWNER_KEY: "pod2"})


def test_a_privilege_lost_meanwhile_is_named(windows: Snapshotter, ntfs: FakeNtfs) -> None:
    windows.prepare("pod")
    ntfs.privileged = False
    before = directories(windows)
    with pytest.raises(UnavailableError, match="developer mode"):
        windows.prepare("c1", labels=SHARE)
    assert directories(windows) == before


def test_a_root_longer_than_windows_plain_paths_works(tmp_path: Path, ntfs: FakeNtfs) -> None:
    root = tmp_path / ("r" * 120) / ("s" * 120)
    with Snapshotter.open(root, durable=False, platform=NtfsPlatform(ntfs)) as store:
        store.prepare("pod")
        store.prepare("c1", labels=SHARE)
        assert disk(store, "c1") == disk(store, "pod")
        store.remove("pod")
        store.remove("c1")
        assert directories(store) == []


# -- paths that are too long for the plain spelling


@pytest.fixture
def far_away(tmp_path: Path) -> tuple[Path, NtfsPlatform]:
    """A root that nobody finds by its plain spelling, as one of 260 characters on Windows."""
    place = tmp_path / "far"
    (place / "fast").mkdir(parents=True)
    drive = Path("/no such drive")
    return drive, NtfsPlatform(FakeNtfs(drive=(drive, place)))


def test_nothing_in_a_store_is_looked_for_by_its_plain_spelling(
    far_away: tuple[Path, NtfsPlatform], tmp_path: Path
) -> None:
    drive, platform = far_away
    root = drive / "store"
    with Snapshotter.open(root, platform=platform, scratch_locations=[drive / "fast"]) as store:
        store.prepare("pod")
        store.prepare("c1", labels=SHARE)
        store.prepare("c2", labels={LOCATION: str(drive / "fast")})
        assert disk(store, "c1") == disk(store, "pod")
        assert store.usage("c2").size > 1 << 15
        archive = tmp_path / "image.tar.gz"  # compressed: it is spooled into the root
        archive.write_bytes(gzip.compress(tar(docker_members(image("a", "b")))))
        imported = import_image(store, archive)
        mounts = store.prepare("extract-1")
        layer = io.BytesIO(tar({"etc/os": b"x"}))
        apply_layer(mounts, layer, reuse=store.layers, platform=platform)
        store.commit("again", "extract-1")
        assert store.usage("again").size > 0
        store.prepare("on", imported.top)
        back_up(root, drive / "copy.db", platform=platform)
        for key in ("on", "again", "c2", "c1", "pod"):
            store.remove(key)
        assert store.cleanup() == 0
    restore(drive / "copy.db", root, platform=platform)
    with Snapshotter.open(root, platform=platform) as store:
        assert {"pod", "c1", "c2", "on", "again"} < {info.name for info in store.walk()}
    assert not drive.exists()

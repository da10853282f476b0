"""Files of removed snapshots go a moment after the call, where the store is opened so."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter import Snapshotter
from snapshotter.deletion import Deletion
from snapshotter.errors import UnavailableError
from snapshotter.platform.posix import PosixPlatform


class BlockedPlatform(PosixPlatform):
    """Deletes nothing before it may."""

    def __init__(self) -> None:
        self.may_delete = threading.Event()
        self.deleted: list[str] = []

    def remove_tree(self, path: Path) -> None:
        assert self.may_delete.wait(30)
        super().remove_tree(path)
        self.deleted.append(path.name)


@pytest.fixture
def platform() -> Iterator[BlockedPlatform]:
    platform = BlockedPlatform()
    yield platform
    platform.may_delete.set()


def test_a_removal_does_not_wait_for_files(tmp_path: Path, platform: BlockedPlatform) -> None:
    with Snapshotter.open(tmp_path, durable=False, delete_later=True, platform=platform) as store:
        store.prepare("a")
        store.remove("a")
        assert list(store.walk()) == []
        assert [name[:3] for name in os.listdir(tmp_path / "snapshots")] == ["rm-"]
        assert [name[:3] for name in os.listdir(tmp_path / "scratch")] == ["rm-"]
        platform.may_delete.set()
    assert [os.listdir(tmp_path / name) for name in ("scratch", "snapshots")] == [[], []]


def test_cleanup_waits_for_what_is_being_deleted(tmp_path: Path) -> None:
    with Snapshotter.open(tmp_path, durable=False, delete_later=True) as store:
        for number in range(3):
            store.view(f"v{number}")
            store.remove(f"v{number}")
        assert store.cleanup() == 0
        assert os.listdir(tmp_path / "snapshots") == []
        store.view("v")
        store.remove("v")  # a second burst
        store.cleanup()
        assert os.listdir(tmp_path / "snapshots") == []


def test_what_a_killed_process_still_had_to_delete_goes_at_the_next_open(
    tmp_path: Path, platform: BlockedPlatform
) -> None:
    store = Snapshotter.open(tmp_path, durable=False, delete_later=True, platform=platform)
    store.view("v")
    store.remove("v")
    with Snapshotter.open(tmp_path, durable=False):
        assert os.listdir(tmp_path / "snapshots") == []
    platform.may_delete.set()
    store.close()


def test_a_full_disk_is_tried_again_once_the_removed_files_are_gone(tmp_path: Path) -> None:
    class FullPlatform(PosixPlatform):
        """Has room for one directory."""

        def make_directory(self, path: Path) -> None:
            if path.parent.name == "snapshots" and os.listdir(path.parent):
                raise OSError(28, "No space left on device", str(path))
            super().make_directory(path)

    with Snapshotter.open(
        tmp_path, durable=False, delete_later=True, platform=FullPlatform()
    ) as store:
        store.view("a")
        with pytest.raises(UnavailableError, match="No space left"):
            store.view("b")
        store.remove("a")
        store.view("b")
        assert [info.name for info in store.walk()] == ["b"]


def test_what_cannot_be_moved_is_deleted_where_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class StuckPlatform(PosixPlatform):
        def rename(self, source: Path, target: Path) -> None:
            if source.name == "rm-2":
                raise OSError(16, "Device or resource busy", str(source))
            super().rename(source, target)

    for number in (1, 2):
        (tmp_path / f"rm-{number}/deep").mkdir(parents=True)
    deletion = Deletion(StuckPlatform(), later=True)
    deletion.delete([tmp_path / "rm-1", tmp_path / "rm-2", tmp_path / "rm-3"])
    assert deletion.finish()
    assert not deletion.finish()
    deletion.close()
    assert os.listdir(tmp_path) == []
    assert caplog.records == []


def test_whoever_removes_too_much_deletes_by_himself(
    tmp_path: Path, platform: BlockedPlatform
) -> None:
    deletion = Deletion(platform, later=True)
    for number in range(1001):
        (tmp_path / str(number)).mkdir()
    deletion.delete(tmp_path / str(number) for number in range(1000))
    assert platform.deleted == []
    platform.may_delete.set()
    deletion.delete([tmp_path / "1000"])
    assert "1000" in platform.deleted
    deletion.close()
    assert os.listdir(tmp_path) == []
    (tmp_path / "late").mkdir()
    deletion.delete([tmp_path / "late"])
    assert os.listdir(tmp_path) == []

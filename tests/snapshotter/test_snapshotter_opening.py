"""Roots: what is opened, moved, refused, and where its disks may be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snapshotter import Snapshotter
from snapshotter.errors import (
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from snapshotter.labels import LOCATION


def test_what_was_stored_is_there_after_reopening(tmp_path: Path) -> None:
    with Snapshotter.open(tmp_path) as store:
        mounts = store.prepare("a", labels={"l": "ä"})
        info = store.stat("a")
    with Snapshotter.open(tmp_path, create=False) as store:
        assert store.stat("a") == info
        assert store.mounts("a") == mounts
        assert (Path(mounts[0].source) / "sandbox.vhdx").is_file()


def test_a_relative_root_gives_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Snapshotter.open("here", durable=False) as store:
        (mount,) = store.prepare("a")
    assert mount.source == str(tmp_path / "here/snapshots/1")
    assert Path(os.readlink(f"{mount.source}/sandbox.vhdx")).is_absolute()


def test_a_moved_root_keeps_its_scratch_disks(tmp_path: Path) -> None:
    with Snapshotter.open(tmp_path / "old", durable=False) as store:
        store.prepare("a")
    (tmp_path / "old").rename(tmp_path / "new")
    with Snapshotter.open(tmp_path / "new", durable=False) as store:
        (mount,) = store.mounts("a")
        assert (Path(mount.source) / "sandbox.vhdx").resolve().is_relative_to(tmp_path / "new")


def test_a_store_that_is_not_there_is_not_made_unasked(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no snapshotter store"):
        Snapshotter.open(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="cannot create the root"):
        Snapshotter.open(tmp_path / "file")


def test_metadata_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metadata.db").write_bytes(b"bolt" * 4096)
    with pytest.raises(UnavailableError, match="no store of lcow-snapshotter"):
        Snapshotter.open(tmp_path)


def test_closing_twice_is_fine_and_later_calls_say_so(tmp_path: Path) -> None:
    store = Snapshotter.open(tmp_path, durable=False)
    store.close()
    store.close()
    with pytest.raises(UnavailableError, match="closed"):
        store.stat("a")
    assert list((tmp_path / "owners").iterdir()) == []


def test_a_default_size_out_of_bounds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="not possible"):
        Snapshotter.open(tmp_path, default_scratch_size=1)


@pytest.fixture
def fast(tmp_path: Path) -> Path:
    (tmp_path / "fast").mkdir()
    return tmp_path / "fast"


def test_an_allowed_location_holds_the_disk(tmp_path: Path, fast: Path) -> None:
    root = tmp_path / "root"
    with Snapshotter.open(root, durable=False, scratch_locations=[fast]) as store:
        (mount,) = store.prepare("a", labels={LOCATION: str(fast)})
        disk = (Path(mount.source) / "sandbox.vhdx").resolve()
        assert disk.is_relative_to(fast)
        assert disk.is_file()
    with Snapshotter.open(root, durable=False) as store:
        store.remove("a")
    assert [path.name for path in fast.rglob("*") if path.is_file()] == ["scratch.vhdx"]


def test_a_location_nobody_allowed_is_refused(store: Snapshotter, fast: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"location.*not inside an allowed"):
        store.prepare("a", labels={LOCATION: str(fast)})

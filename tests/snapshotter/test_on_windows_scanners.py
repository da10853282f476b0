"""Files of ours that a scanner, or another process, has open for a moment."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from snapshotter import Snapshotter
from snapshotter.backup import back_up
from snapshotter.errors import (
    UnavailableError,
)
from snapshotter.layers import apply_layer
from snapshotter.platform.winerror import SHARING_VIOLATION, windows_error
from tests.fakes.ntfs import FakeNtfs, NtfsPlatform
from tests.snapshotter.archives import tar


class Scanned:
    """A rename or replacement that meets an open file a few times."""

    def __init__(self, ntfs: FakeNtfs, name: str, tries: int) -> None:
        self.refused = 0
        real = ntfs.move_file

        def move_file(source: str, target: str, flags: int) -> None:
            if name in source and self.refused < tries:
                self.refused += 1
                raise windows_error(SHARING_VIOLATION, source)
            real(source, target, flags)

        ntfs.move_file = move_file  # type: ignore[method-assign]


def test_an_unfinished_removal_that_a_scanner_has_open_is_still_put_back_at_the_open(
    tmp_path: Path, ntfs: FakeNtfs
) -> None:
    platform = NtfsPlatform(ntfs)
    with Snapshotter.open(tmp_path, durable=False, platform=platform) as store:
        store.prepare("pod")
        (store.directory("pod") / "note").write_text("precious")
        removed = store.directory("pod")
    removed.rename(removed.with_name(f"rm-{removed.name}"))  # killed before its commit
    scanner = Scanned(ntfs, "rm-", 3)
    with Snapshotter.open(tmp_path, durable=False, platform=platform) as store:
        assert scanner.refused == 3
        assert (store.directory("pod") / "note").read_text() == "precious"


def test_an_unfinished_removal_that_stays_open_refuses_the_store_and_loses_nothing(
    tmp_path: Path, ntfs: FakeNtfs
) -> None:
    platform = NtfsPlatform(ntfs)
    with Snapshotter.open(tmp_path, durable=False, platform=platform) as store:
        store.prepare("pod")
        (store.directory("pod") / "note").write_text("precious")
        removed = store.directory("pod")
    aside = removed.with_name(f"rm-{removed.name}")
    removed.rename(aside)
    with (
        ntfs.hold(aside / "note"),
        pytest.raises(UnavailableError, match="recover"),
        Snapshotter.open(tmp_path, durable=False, platform=platform),
    ):
        pass
    with Snapshotter.open(tmp_path, durable=False, platform=platform) as store:
        assert (store.directory("pod") / "note").read_text() == "precious"


def test_a_clone_of_a_layer_that_a_scanner_opens_is_used_when_it_lets_go(tmp_path: Path) -> None:
    ntfs = FakeNtfs(refs=True)
    with Snapshotter.open(tmp_path, durable=False, platform=NtfsPlatform(ntfs)) as store:
        data = tar({"etc/os": b"x"})
        first = apply_layer(store.prepare("extract-1"), io.BytesIO(data), reuse=store.layers)
        scanner = Scanned(ntfs, ".layer.vhd.", 2)
        unread = io.BytesIO(b"")
        mounts = store.prepare("extract-2")
        again = apply_layer(mounts, unread, diff_id=first.diff_id, reuse=store.layers)
        assert scanner.refused == 2
        assert again == first


def test_a_backup_that_a_scanner_opens_is_there_when_it_lets_go(
    tmp_path: Path, ntfs: FakeNtfs
) -> None:
    platform = NtfsPlatform(ntfs)
    with Snapshotter.open(tmp_path / "root", durable=False, platform=platform) as store:
        store.prepare("pod")
        scanner = Scanned(ntfs, ".copy.db", 2)
        back_up(tmp_path / "root", tmp_path / "copy.db", platform=platform)
    assert scanner.refused == 2
    assert (tmp_path / "copy.db").is_file()


class LookedAt(type(Path())):  # type: ignore[misc] # the system's own kind of path
    """A lock file that another process has open for a moment, to see whether it is locked."""

    def unlink(self, missing_ok: bool = False) -> None:
        del missing_ok
        raise windows_error(SHARING_VIOLATION, str(self))


class LookedAtPlatform(NtfsPlatform):
    looking = False

    def long(self, path: Path) -> Path:
        found = super().long(path)
        return LookedAt(found) if self.looking and found.suffix == ".lock" else found


def test_a_store_is_closed_while_another_process_looks_whether_it_is_open(
    tmp_path: Path, ntfs: FakeNtfs
) -> None:
    platform = LookedAtPlatform(ntfs)
    store = Snapshotter.open(tmp_path, durable=False, platform=platform)
    platform.looking = True
    store.close()
    assert len(list((tmp_path / "owners").iterdir())) == 1
    with Snapshotter.open(tmp_path, durable=False, platform=platform):
        pass  # nor does the file that could not be deleted hinder anybody
    platform.looking = False
    with Snapshotter.open(tmp_path, durable=False, platform=platform):
        assert len(list((tmp_path / "owners").iterdir())) == 1

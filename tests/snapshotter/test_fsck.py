"""Every kind of damage is found, named and mended; what is in use is left alone."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from snapshotter import Snapshotter
from snapshotter.errors import NotFoundError, UnavailableError
from snapshotter.fsck import Outcome, Problem, Report, check
from snapshotter.labels import DIFF_ID, LOCATION, OWNER_KEY, REUSE_SCRATCH
from snapshotter.platform import Platform
from snapshotter.units import GIB

SHARE = {REUSE_SCRATCH: "true", OWNER_KEY: "pod"}


@pytest.fixture
def root(tmp_path: Path, platform: Platform) -> Path:
    """A store with a layer, a pod on it, a sharer, a view, and a disk at a location."""
    root = tmp_path / "root"
    with Snapshotter.open(
        root,
        durable=False,
        platform=platform,
        default_scratch_size=GIB,
        scratch_locations=[tmp_path / "fast"],
    ) as store:
        store.prepare("extract-1 layer")
        (store.directory("extract-1 layer") / "layer.vhd").write_text("layer")
        store.commit("layer", "extract-1 layer", labels={DIFF_ID: "sha256:aa"})
        store.prepare("pod", "layer")
        store.prepare("c1", "layer", labels=SHARE)
        store.view("v", "layer")
        store.prepare("elsewhere", labels={LOCATION: str(tmp_path / "fast")})
    return root


def problems(report: Report) -> dict[Problem, Outcome]:
    return {found.problem: found.outcome for found in report.findings}


def contents(*directories: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for directory in directories
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith("metadata.db")
    }


def sql(root: Path, *statements: str) -> None:
    with closing(sqlite3.connect(root / "metadata.db")) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


# What may be wrong: how it is made, and what is found.


def orphan(root: Path) -> None:
    (root / "snapshots/77").mkdir()
    (root / "scratch/77").mkdir()


def staging(root: Path) -> None:
    (root / "snapshots/new-00ff-1").mkdir()


def removal(root: Path) -> None:
    (root / "scratch/rm-99").mkdir()


def interrupted(root: Path) -> None:
    (root / "snapshots/2").rename(root / "snapshots/rm-2")


def lost_active(root: Path) -> None:
    shutil.rmtree(root / "snapshots/2")


def lost_view_of_nothing(root: Path) -> None:
    sql(root, "UPDATE snapshot SET parent_id = NULL WHERE key = 'v'")


def dangling(root: Path) -> None:
    link = root / "snapshots/3/sandbox.vhdx"
    link.unlink()
    link.symlink_to("/nowhere/sandbox.vhdx")


def missing_link(root: Path) -> None:
    (root / "snapshots/2/sandbox.vhdx").unlink()


def unrecorded(root: Path) -> None:
    sql(root, "DELETE FROM share WHERE snapshot_id = 3")


def lost_disk(root: Path) -> None:
    shutil.rmtree(root / "scratch/1")


def unheld(root: Path) -> None:
    sql(root, "INSERT INTO scratch (size, location) VALUES (1073741824, '')")


def template(root: Path) -> None:
    (root.parent / "fast/scratch_1.vhdx").write_bytes(b"rubbish")


MENDABLE: dict[Callable[[Path], None], Problem] = {
    orphan: Problem.ORPHAN_DIRECTORY,
    staging: Problem.STALE_STAGING,
    removal: Problem.STALE_REMOVAL,
    interrupted: Problem.INTERRUPTED_REMOVAL,
    lost_active: Problem.MISSING_DIRECTORY,
    lost_view_of_nothing: Problem.MISSING_DIRECTORY,
    dangling: Problem.DANGLING_LINK,
    missing_link: Problem.DANGLING_LINK,
    unrecorded: Problem.UNRECORDED_SHARE,
    lost_disk: Problem.MISSING_DISK,
    unheld: Problem.UNHELD_SCRATCH,
    template: Problem.DAMAGED_TEMPLATE,
}
SAFE = (
    orphan,
    staging,
    removal,
    interrupted,
    lost_active,
    lost_view_of_nothing,
    dangling,
    missing_link,
)


def test_a_sound_store_has_nothing_to_be_found(root: Path, platform: Platform) -> None:
    report = check(root, repair=True, platform=platform)
    assert report.clean
    assert report.findings == ()
    assert not report.in_use


@pytest.mark.parametrize("damage", MENDABLE, ids=lambda damage: damage.__name__)
def test_damage_is_found_without_changing_anything_and_mended_when_asked(
    root: Path, platform: Platform, damage: Callable[[Path], None]
) -> None:
    damage(root)
    fast = root.parent / "fast"
    before = contents(root, fast)
    found = problems(check(root, repair=False, platform=platform))
    assert found == {MENDABLE[damage]: Outcome.FOUND}
    assert contents(root, fast) == before
    mended = check(root, repair=True, platform=platform)
    assert problems(mended) == {MENDABLE[damage]: Outcome.MENDED}
    assert mended.clean
    assert check(root, repair=False, platform=platform).findings == ()
    with Snapshotter.open(root, durable=False, platform=platform) as store:
        assert store.stat("layer")
        assert store.stat("elsewhere")


def test_mending_a_lost_directory_keeps_the_disk(root: Path, platform: Platform) -> None:
    disk = (root / "scratch/1/sandbox.vhdx").read_bytes()
    lost_active(root)
    lost_view_of_nothing(root)
    check(root, repair=True, platform=platform)
    with Snapshotter.open(root, durable=False, platform=platform) as store:
        assert store.directory("v").is_dir()
        assert (store.directory("pod") / "sandbox.vhdx").read_bytes() == disk


def test_a_lost_disk_takes_the_containers_with_it_and_nothing_else(
    root: Path, platform: Platform
) -> None:
    lost_disk(root)
    check(root, repair=True, platform=platform)
    with Snapshotter.open(root, durable=False, platform=platform) as store:
        assert [info.name for info in store.walk()] == ["elsewhere", "layer", "v"]


@pytest.mark.parametrize("damage", MENDABLE, ids=lambda damage: damage.__name__)
def test_while_another_process_works_only_what_is_safe_is_mended(
    root: Path, platform: Platform, damage: Callable[[Path], None]
) -> None:
    # As good as another process: its lock file is all that tells.
    with Snapshotter.open(root, durable=False, platform=platform):
        damage(root)  # after that one recovered
        report = check(root, repair=True, platform=platform)
        assert report.in_use
        expected = Outcome.MENDED if damage in SAFE else Outcome.BLOCKED
        assert problems(report) == {MENDABLE[damage]: expected}


def test_what_nobody_can_mend_is_told(root: Path, platform: Platform) -> None:
    (root / "snapshots/1/layer.vhd").unlink()  # two containers stand on it
    disk = root / "scratch/1/sandbox.vhdx"
    disk.write_bytes(b"no vhdx")
    report = check(root, repair=True, platform=platform)
    assert problems(report) == {
        Problem.LOST_LAYER: Outcome.UNMENDABLE,
        Problem.DAMAGED_DISK: Outcome.UNMENDABLE,
    }
    assert not report.clean
    assert disk.read_bytes() == b"no vhdx"


def test_a_lost_layer_that_nothing_stands_on_is_removed(root: Path, platform: Platform) -> None:
    with Snapshotter.open(root, durable=False, platform=platform) as store:
        for key in ("c1", "pod", "v"):
            store.remove(key)
    (root / "snapshots/1/layer.vhd").unlink()
    assert problems(check(root, repair=True, platform=platform)) == {
        Problem.LOST_LAYER: Outcome.MENDED
    }
    assert check(root, repair=False, platform=platform).clean


@pytest.mark.parametrize("children", [True, False])
def test_a_layer_whose_directory_is_lost_is_removed_where_nothing_stands_on_it(
    root: Path, platform: Platform, *, children: bool
) -> None:
    if not children:
        with Snapshotter.open(root, durable=False, platform=platform) as store:
            for key in ("c1", "pod", "v"):
                store.remove(key)
    shutil.rmtree(root / "snapshots/1")
    outcome = Outcome.UNMENDABLE if children else Outcome.MENDED
    report = check(root, repair=True, platform=platform)
    assert problems(report) == {Problem.MISSING_DIRECTORY: outcome}
    with Snapshotter.open(root, durable=False, platform=platform) as store:
        assert ("layer" in {info.name for info in store.walk()}) is children
    assert check(root, repair=False, platform=platform).clean is not children


def test_a_store_that_is_not_there_or_not_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        check(tmp_path, repair=True)
    (tmp_path / "metadata.db").write_bytes(b"bolt" * 4096)
    with pytest.raises(UnavailableError, match="backup"):
        check(tmp_path, repair=True)
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.commit()
    (tmp_path / "other.db").replace(tmp_path / "metadata.db")
    with pytest.raises(UnavailableError, match="no store"):
        check(tmp_path, repair=True)


def test_damaged_metadata_is_told(root: Path, platform: Platform) -> None:
    sql(root, "PRAGMA foreign_keys = OFF", "DELETE FROM scratch WHERE id = 1")
    report = check(root, repair=False, platform=platform)
    assert Problem.METADATA_DAMAGED in problems(report)

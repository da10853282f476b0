"""`fsck`, `backup`, `restore` and `import-bolt` as commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from snapshotter import Snapshotter
from snapshotter.cli.app import app
from snapshotter.labels import LOCATION
from tests.snapshotter.bolt.golden import golden_database


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def document(*arguments: str | Path, schema: str, code: int = 0) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.exit_code == code, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    assert value["schema"] == f"lcow-snapshotter.{schema}/1"
    return value


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with Snapshotter.open(tmp_path / "root", durable=False) as store:
        store.prepare("a")
    return tmp_path / "root"


def test_fsck_lists_then_mends(root: Path) -> None:
    assert run("fsck", "--root", root).stdout == "nothing found\n"
    (root / "snapshots/77").mkdir()
    for options in ([], ["--repair", "--dry-run"]):
        listed = document("fsck", "--root", root, *options, schema="fsck", code=1)
        assert [found["outcome"] for found in listed["findings"]] == ["found"]
    assert (root / "snapshots/77").is_dir()
    done = run("fsck", "--root", root, "--repair")
    assert done.exit_code == 0
    assert "orphan-directory  mended" in done.stdout
    assert not (root / "snapshots/77").exists()
    assert document("fsck", "--root", root, schema="fsck")["clean"]


def test_a_backup_is_made_and_restored(tmp_path: Path, root: Path) -> None:
    out = tmp_path / "b.db"
    made = document("backup", out, "--root", root, schema="backup")
    assert made["size"] == out.stat().st_size
    again = run("backup", out, "--root", root)
    assert again.exit_code == 1
    assert "exists" in again.stderr
    run("snapshots", "rm", "a", "--root", root)
    kept = document("restore", out, "--root", root, schema="restore")["kept"]
    assert Path(kept).is_file()
    assert "a " in run("snapshots", "ls", "--root", root).stdout


def test_containerds_metadata_is_adopted(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "metadata.db").write_bytes(golden_database())
    new = tmp_path / "new"
    done = document("import-bolt", old / "metadata.db", "--root", new, schema="adopted")
    assert (done["snapshots"], done["scratches"], done["problems"]) == (7, 0, [])
    listed = document("snapshots", "ls", "--root", new, schema="snapshots")["snapshots"]
    assert len(listed) == 7
    again = run("import-bolt", old / "metadata.db", "--root", new)
    assert again.exit_code == 1
    assert "not empty" in again.stderr
    bad = run("import-bolt", new / "metadata.db", "--root", tmp_path / "third")
    assert bad.exit_code == 1
    assert "no bbolt database" in bad.stderr


def test_a_location_has_to_be_allowed(tmp_path: Path, root: Path) -> None:
    label = f"{LOCATION}={tmp_path / 'fast/deep'}"
    prepare = ("snapshots", "prepare", "b", "--root", root, "--label", label)
    refused = run(*prepare)
    assert refused.exit_code == 1
    assert "not inside an allowed" in refused.stderr
    done = run(*prepare, "--scratch-location", tmp_path / "fast")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "fast/deep/scratch.vhdx").is_file()

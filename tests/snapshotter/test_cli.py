"""The command `lcow-snapshotter`: in this process, and as its own where that matters."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from snapshotter import Snapshotter
from snapshotter.cli.app import app
from snapshotter.ext4.mkfs import format_ext4
from snapshotter.ext4.reader import Ext4
from snapshotter.labels import OWNER_KEY, REUSE_SCRATCH
from snapshotter.units import GIB, MIB
from snapshotter.vhdx import VhdxDisk, emit_vhdx, write_content
from tests.snapshotter.archives import Image, digest, docker_members, image, link, tar, write

REPOSITORY = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from snapshotter.cli import main; main()"]


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
    return tmp_path / "root"


def test_an_image_is_imported_and_listed(tmp_path: Path, root: Path) -> None:
    archive = write(tmp_path / "i.tar", docker_members(image("a", "b")))
    first = document("image", "import", archive, "--root", root, schema="image")
    assert first["names"] == ["demo:latest"]
    assert first["config"]["cmd"] == ["-c", "true"]
    assert [layer["reused"] for layer in first["layers"]] == [False, False]
    again = run("image", "import", archive, "--root", root)
    assert again.exit_code == 0
    assert again.stdout.count("reused") == 2
    assert again.stderr == ""
    listed = document("snapshots", "ls", "--root", root, schema="snapshots")["snapshots"]
    assert {entry["key"] for entry in listed} == {layer["snapshot"] for layer in first["layers"]}
    assert {entry["kind"] for entry in listed} == {"committed"}


def test_a_life_of_a_snapshot(root: Path) -> None:
    mounts = document("snapshots", "prepare", "a", "--root", root, schema="mounts")["mounts"]
    assert mounts[0]["type"] == "lcow-layer"
    assert document("snapshots", "mounts", "a", "--root", root, schema="mounts")["mounts"] == mounts
    assert document("snapshots", "usage", "a", "--root", root, schema="usage")["inodes"] >= 2
    label = ("--label", "x=y=z")
    done = document("snapshots", "commit", "A", "a", "--root", root, *label, schema="snapshot")
    assert done["snapshot"]["labels"] == {"x": "y=z"}
    run("snapshots", "view", "v", "--parent", "A", "--root", root)
    listed = run("snapshots", "ls", "--root", root, "--filter", "kind==view").stdout.split("\n")
    assert listed[:2] == ["KEY  PARENT  KIND", "v    A       view"]
    removed = document("snapshots", "rm", "v", "A", "--root", root, schema="removed")
    assert removed["removed"] == ["v", "A"]


def test_info_shows_who_shares_what(root: Path) -> None:
    with Snapshotter.open(root) as store:
        store.prepare("pod")
        store.prepare("c1", labels={REUSE_SCRATCH: "true", OWNER_KEY: "pod"})
    shown = document("snapshots", "info", "c1", "--sharing", "--root", root, schema="snapshot")
    assert shown["scratch"]["size"] == 20 * GIB
    assert shown["scratch"]["holders"] == [
        {"key": "pod", "kind": "active", "owner": True},
        {"key": "c1", "kind": "active", "owner": False},
    ]
    text = run("snapshots", "info", "c1", "--sharing", "--root", root).stdout
    assert "owner    pod (active)" in text
    assert "sharer   c1 (active)" in text


def test_a_scratch_disk_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "s.vhdx"
    made = document("scratch", "create", out, "--size-gb", "3", schema="scratch")
    assert made["size"] == 3 * GIB
    assert made["file_size"] == out.stat().st_size <= 5 * MIB
    with VhdxDisk.open(out) as disk:
        assert disk.size == 3 * GIB
    shown = document("vhdx", "info", out, schema="vhdx")
    assert (shown["size"], shown["log_dirty"]) == (3 * GIB, False)
    assert run("vhdx", "info", out).exit_code == 0
    again = run("scratch", "create", out)
    assert again.exit_code == 1
    assert "exists" in again.stderr


def test_a_layer_of_its_own_and_a_look_into_it(tmp_path: Path) -> None:
    layer = tar({"etc/motd": b"hi\xff", "sh": link("bin/sh"), ".wh.gone": b""})
    (tmp_path / "l.tar").write_bytes(layer)
    out = tmp_path / "l.vhd"
    made = document("layer", "import", tmp_path / "l.tar", out, schema="layer")
    assert (made["diff_id"], made["uncompressed_size"]) == (digest(layer), len(layer))
    entries = document("vhdx", "ls", out, "/", schema="ls")["entries"]
    found = {entry["name"]: entry for entry in entries}
    assert found["sh"]["target"] == "bin/sh"
    assert found["gone"]["whiteout"]
    assert "sh -> bin/sh" in run("vhdx", "ls", out).stdout
    assert run("vhdx", "cat", out, "etc/motd").stdout_bytes == b"hi\xff"
    shown = document("vhdx", "cat", out, "/etc/motd", schema="cat")
    assert base64.b64decode(shown["base64"]) == b"hi\xff"
    missing = run("vhdx", "cat", out, "/none")
    assert missing.exit_code == 1
    assert "/none" in missing.stderr


def test_a_layer_can_carry_checksums_and_a_dm_verity_tree(tmp_path: Path) -> None:
    (tmp_path / "l.tar").write_bytes(tar({"file": b"content"}))
    source, out = tmp_path / "l.tar", tmp_path / "l.vhd"
    made = document("layer", "import", source, out, "--checksums", "--verity", schema="layer")
    assert re.fullmatch("[0-9a-f]{64}", str(made["verity_root_hash"]))


def test_a_layer_beyond_the_limit_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "l.tar").write_bytes(tar({"a": b"", "b": b"", "c": b""}))
    done = run("layer", "import", tmp_path / "l.tar", tmp_path / "l.vhd", "--max-entries", "2")
    assert done.exit_code == 1
    assert not (tmp_path / "l.vhd").exists()


def test_a_scratch_disk_that_can_grow_is_no_larger(tmp_path: Path) -> None:
    made = document(
        "scratch", "create", tmp_path / "s.vhdx", "--grow-to-gb", "1000", schema="scratch"
    )
    assert made["file_size"] == 5 << 20


def test_a_scratch_disk_has_the_label_and_uuid_that_are_asked_for(tmp_path: Path) -> None:
    out, named = tmp_path / "s.vhdx", uuid.uuid4()
    document(
        *("scratch", "create", out, "--size-gb", "1", "--label", "pod", "--uuid", str(named)),
        schema="scratch",
    )
    with VhdxDisk.open(out) as disk:
        superblock = Ext4.open(disk).superblock
    assert superblock.label.rstrip(b"\0") == b"pod"
    assert superblock.uuid == named.bytes


def test_a_layer_that_is_not_what_was_expected_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "l.tar").write_bytes(tar({"a": b""}))
    expected = digest(b"another")
    done = run("layer", "import", tmp_path / "l.tar", tmp_path / "l.vhd", "--diff-id", expected)
    assert done.exit_code == 1
    assert expected in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["l.tar"]


def test_a_vhdx_is_listed_through_its_file_system(tmp_path: Path) -> None:
    path = tmp_path / "d.vhdx"
    write_content(path, emit_vhdx(format_ext4(GIB, label="x")))
    assert document("vhdx", "ls", path, schema="ls")["path"] == "/"


# -- errors


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["snapshots", "ls", "--root", "none"], 1, "no snapshotter store"),
        (["snapshots", "ls"], 2, "--root"),
        (["snapshots", "frobnicate"], 2, "frobnicate"),
        (["snapshots", "prepare", "a", "--root", "r", "--label", "x"], 2, "NAME=VALUE"),
        (["image", "import", "none.tar", "--root", "r"], 1, "none.tar"),
        (["vhdx", "info", "none.vhdx"], 1, "none.vhdx"),
        (["vhdx", "ls", "pyproject.toml"], 1, "pyproject.toml"),
        (["scratch", "create", "no/such/dir/x.vhdx"], 3, "no/such/dir"),
        (["scratch", "create", "x.vhdx", "--size-gb", "0"], 2, "size-gb"),
        (["scratch", "create", "x.vhdx", "--uuid", "mine"], 1, "--uuid mine"),
        (["scratch", "create", "x.vhdx", "--label", "l" * 17], 1, "longer than 16"),
        (["layer", "import", "none.tar", "x.vhd"], 1, "none.tar"),
    ],
)
def test_errors_are_one_line_with_the_right_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("x = 1\n" * 100)
    done = run(*arguments)
    assert done.exit_code == code, done.stderr
    assert text in done.stderr
    if code != 2:
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("lcow-snapshotter: ")


def test_the_command_exits_as_the_operation_did(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "snapshots", "ls", "--root", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("lcow-snapshotter: there is no snapshotter store")
    assert done.stderr.count("\n") == 1


def test_an_error_is_a_document_too(root: Path) -> None:
    with Snapshotter.open(root):
        pass
    shown = document("snapshots", "info", "x", "--root", root, schema="error", code=1)
    assert shown["error"]["kind"] == "NotFoundError"
    assert "'x'" in shown["error"]["message"]


def test_a_digest_mismatch_ends_with_a_clean_store(tmp_path: Path, root: Path) -> None:
    members = docker_members(image("a"))
    name = next(name for name in members if name.endswith("layer.tar"))
    members[name] = image("evil").layers[0]
    done = run("image", "import", write(tmp_path / "i.tar", members), "--root", root)
    assert done.exit_code == 1
    assert image("a").diff_ids[0] in done.stderr
    assert document("snapshots", "ls", "--root", root, schema="snapshots")["snapshots"] == []


def test_an_interrupt_ends_with_130_and_a_clean_store(tmp_path: Path, root: Path) -> None:
    big = Image((image("a").layers[0], tar({f"f{n}": bytes(200_000) for n in range(600)})))
    archive = write(tmp_path / "i.tar", docker_members(big))
    with subprocess.Popen(
        [*COMMAND, "image", "import", str(archive), "--root", str(root)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    ) as process:
        deadline = time.monotonic() + 30
        while not (root / "snapshots/2").exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert errors.count("\n") == 1
    with Snapshotter.open(root) as store:
        assert [info.name for info in store.walk()] == big.diff_ids[:1]
    assert len(list((root / "snapshots").iterdir())) == 1


def test_help_is_quick_to_load() -> None:
    heavy = ("numpy", "rich", "isal", "zstandard")
    code = f"import sys, snapshotter.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stdout == "[]\n"

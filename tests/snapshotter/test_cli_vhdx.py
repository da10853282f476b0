"""The command `lcow-snapshotter vhdx`, on real files."""

from __future__ import annotations

import os
import pty
import random
import subprocess
from pathlib import Path

import pytest

from snapshotter.blockio import LocalBlockFile
from snapshotter.units import GIB, KIB, MIB
from snapshotter.vhdx import (
    VhdxDisk,
    create_child,
    create_vhdx,
    open_chain,
)
from tests.snapshotter.vhdx import oracle
from tests.snapshotter.vhdxcommand import COMMAND, chain, document, failure, run


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(random.Random(1).randbytes(3 * MIB + 512))
        file.truncate(40 * MIB)
    return path


@pytest.mark.parametrize("fixed", [(), ("--fixed",)])
def test_an_empty_disk_is_made_as_asked(tmp_path: Path, fixed: tuple[str, ...]) -> None:
    path = tmp_path / "a.vhdx"
    options = ("--size", "64M", "--block-size", "2M", "--logical-sector", "4096")
    physical = ("--physical-sector", "512")
    made = document("create", path, *options, *physical, *fixed, schema="vhdx-create")
    assert made["size"] == 64 * MIB
    assert made["file_size"] == path.stat().st_size == (68 * MIB if fixed else 4 * MIB)
    shown = document("info", path, schema="vhdx")
    assert shown["block_size"] == 2 * MIB
    assert shown["logical_sector_size"] == 4096
    assert shown["physical_sector_size"] == 512
    assert shown["leave_blocks_allocated"] == bool(fixed)
    assert shown["blocks"] == {"fully_present" if fixed else "not_present": 32}
    assert "parent" not in shown


@pytest.mark.parametrize(
    ("text", "size"),
    [("67108864", 64 * MIB), ("64M", 64 * MIB), ("65536 KiB", 64 * MIB), ("1gb", GIB)],
)
def test_sizes_are_written_as_people_do(tmp_path: Path, text: str, size: int) -> None:
    made = document("create", tmp_path / "a.vhdx", "--size", text, schema="vhdx-create")
    assert made["size"] == size


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5G", "1E", "0x10", "1M1"])
def test_what_is_no_size_is_a_usage_error(tmp_path: Path, text: str) -> None:
    done = run("create", tmp_path / "a.vhdx", "--size", text)
    assert done.exit_code == 2
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--size", "1G", "--parent", "b.vhdx"),
        ("--parent", "b.vhdx", "--fixed"),
        ("--parent", "b.vhdx", "--logical-sector", "512"),
        ("--parent", "b.vhdx", "--physical-sector", "512"),
    ],
)
def test_a_disk_has_a_size_or_a_parent(tmp_path: Path, options: tuple[str, ...]) -> None:
    done = run("create", tmp_path / "a.vhdx", *options)
    assert done.exit_code == 2
    assert "Error: Invalid value" in done.stderr


def test_a_differencing_disk_shows_its_chain(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vhdx", tmp_path / "child.vhdx"
    create_vhdx(base, GIB)
    made = document("create", child, "--parent", base, schema="vhdx-create")
    assert (made["size"], made["file_size"]) == (GIB, 4 * MIB)
    shown = document("info", child, schema="vhdx")
    assert shown["parent"]["relative_path"] == ".\\base.vhdx"
    assert (
        shown["parent"]["parent_linkage"]
        == document("info", base, schema="vhdx")["data_write_guid"]
    )
    assert shown["chain"] == [str(child), str(base)]
    assert f"{child} on {base}" in run("info", child).stdout


def test_a_child_that_lost_its_parent_still_shows_what_it_is(tmp_path: Path) -> None:
    create_vhdx(tmp_path / "base.vhdx", GIB)
    create_child(tmp_path / "child.vhdx", tmp_path / "base.vhdx")
    (tmp_path / "base.vhdx").unlink()
    shown = document("info", tmp_path / "child.vhdx", schema="vhdx")
    assert str(tmp_path / "base.vhdx") in shown["chain_problem"]
    assert "chain" not in shown
    line = failure("convert", tmp_path / "child.vhdx", tmp_path / "out.raw")
    assert str(tmp_path / "base.vhdx") in line
    checked = document("check", tmp_path / "child.vhdx", schema="vhdx-check", code=1)
    assert checked["findings"][0]["structure"] == "parent locator"


@oracle.needs_qemu
def test_a_disk_goes_through_every_format(tmp_path: Path, raw: Path) -> None:
    vhdx, vhd, back = tmp_path / "a.vhdx", tmp_path / "b.vhd", tmp_path / "c.raw"
    made = document("convert", raw, vhdx, "--block-size", "4M", schema="vhdx-convert")
    assert (made["format"], made["size"]) == ("vhdx", 40 * MIB)
    oracle.check(vhdx)
    compare = ["qemu-img", "compare", "-f", "raw", "-F", "vhdx", str(raw), str(vhdx)]
    assert "identical" in subprocess.run(compare, capture_output=True, text=True).stdout
    assert run("convert", vhdx, vhd).exit_code == 0
    assert run("convert", vhd, back).exit_code == 0
    assert back.read_bytes() == raw.read_bytes()
    assert run("convert", raw, tmp_path / "d.img", "--to", "vhdx", "--fixed").exit_code == 0
    oracle.check(tmp_path / "d.img")


def test_what_a_conversion_prints_says_what_was_made(tmp_path: Path, raw: Path) -> None:
    done = run("convert", raw, tmp_path / "a.vhdx")
    assert done.stdout == f"{tmp_path / 'a.vhdx'}: 40.0 MiB disk as vhdx, 3.0 MiB of data\n"
    assert done.stderr == ""


def test_a_file_that_is_there_is_replaced_by_force_alone(tmp_path: Path, raw: Path) -> None:
    out = tmp_path / "out.vhdx"
    out.write_bytes(b"precious")
    line = failure("convert", raw, out)
    assert line == (f"lcow-snapshotter: {out} exists already; remove it or choose another name\n")
    assert out.read_bytes() == b"precious"
    assert run("convert", raw, out, "--force").exit_code == 0
    assert document("info", out, schema="vhdx")["size"] == 40 * MIB


def test_a_disk_may_be_converted_over_itself(tmp_path: Path, raw: Path) -> None:
    path = tmp_path / "a.vhdx"
    run("convert", raw, path)
    assert run("convert", path, path, "--fixed", "--force").exit_code == 0
    assert document("info", path, schema="vhdx")["leave_blocks_allocated"]
    with VhdxDisk.open(path) as disk:
        assert disk.read_at(0, 40 * MIB) == raw.read_bytes()


@pytest.mark.parametrize(
    "arguments", [("info",), ("check",), ("replay",), ("resize", "1G"), ("merge",)]
)
def test_a_missing_file_is_named_with_what_to_do(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    verb, *rest = arguments
    assert "check the path" in failure(verb, tmp_path / "none.vhdx", *rest)


@pytest.mark.parametrize("arguments", [("info",), ("replay",), ("resize", "1G"), ("merge",)])
def test_a_file_that_is_no_vhdx_is_named(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    path = tmp_path / "text.vhdx"
    path.write_text("no disk" * 1000)
    verb, *rest = arguments
    line = failure(verb, path, *rest)
    assert line.startswith(f"lcow-snapshotter: {path}: file identifier")
    assert path.read_text() == "no disk" * 1000


def dirty(path: Path) -> bytes:
    """Write to a disk in a process that ends without closing it; return the file."""
    pid = os.fork()
    if pid == 0:
        disk = VhdxDisk.open(path, writable=True)
        disk.write_at(5 * MIB, b"logged")
        disk.flush()
        os._exit(0)
    os.waitpid(pid, 0)
    return path.read_bytes()


def test_a_dirty_log_is_replayed_once(tmp_path: Path) -> None:
    path = tmp_path / "a.vhdx"
    create_vhdx(path, 64 * MIB)
    dirty(path)
    assert document("info", path, schema="vhdx")["log_dirty"]
    done = document("replay", path, schema="vhdx-replay")
    assert done["was_dirty"]
    assert done["replayed_entries"] > 0
    after = path.read_bytes()
    assert not document("replay", path, schema="vhdx-replay")["was_dirty"]
    assert "nothing to replay" in run("replay", path).stdout
    assert path.read_bytes() == after
    with VhdxDisk.open(path) as disk:
        assert disk.read_at(5 * MIB, 6) == b"logged"
        assert not disk.info().log_dirty


def test_a_childs_log_is_replayed_without_its_parent(tmp_path: Path) -> None:
    create_vhdx(tmp_path / "base.vhdx", 64 * MIB)
    create_child(tmp_path / "child.vhdx", tmp_path / "base.vhdx")
    pid = os.fork()
    if pid == 0:
        chain = open_chain(tmp_path / "child.vhdx", writable=True)
        chain.top.write_at(5 * MIB, b"logged")
        chain.top.flush()
        os._exit(0)
    os.waitpid(pid, 0)
    (tmp_path / "base.vhdx").rename(tmp_path / "away")
    assert document("replay", tmp_path / "child.vhdx", schema="vhdx-replay")["was_dirty"]
    (tmp_path / "away").rename(tmp_path / "base.vhdx")
    with open_chain(tmp_path / "child.vhdx") as chain:
        assert chain.read_at(5 * MIB, 6) == b"logged"


@oracle.needs_qemu
def test_a_disk_is_resized(tmp_path: Path) -> None:
    path = tmp_path / "a.vhdx"
    create_vhdx(path, 64 * MIB)
    done = document("resize", path, "100M", schema="vhdx-resize")
    assert (done["old_size"], done["size"]) == (64 * MIB, 100 * MIB)
    oracle.check(path)
    assert "shrink" in failure("resize", path, "32M")
    assert document("info", path, schema="vhdx")["size"] == 100 * MIB
    assert "32.0 MiB now" in run("resize", path, "32M", "--shrink").stdout
    oracle.check(path)


@oracle.needs_qemu
def test_a_child_is_merged_into_its_parent(tmp_path: Path) -> None:
    base, child, expected = chain(tmp_path)
    done = document("merge", child, schema="vhdx-merge")
    assert (done["path"], done["child"]) == (str(base), str(child))
    oracle.check(base)
    assert oracle.to_raw(base, tmp_path / "base.raw").read_bytes() == expected


@oracle.needs_qemu
def test_a_chain_is_merged_into_a_new_file_and_stays_as_it_is(tmp_path: Path) -> None:
    base, child, expected = chain(tmp_path)
    before = base.read_bytes(), child.read_bytes()
    out = tmp_path / "out.vhdx"
    assert "without a parent" in run("merge", child, "--into", out).stdout
    assert (base.read_bytes(), child.read_bytes()) == before
    oracle.check(out)
    assert oracle.to_raw(out, tmp_path / "out.raw").read_bytes() == expected
    assert "exists already" in failure("merge", child, "--into", out)
    assert run("merge", child, "--into", out, "--force").exit_code == 0


def test_a_disk_without_a_parent_is_not_merged(tmp_path: Path) -> None:
    base, _, _ = chain(tmp_path)
    assert "no parent" in failure("merge", base)
    assert "vhdx convert" in failure("merge", base, "--into", tmp_path / "out.vhdx")
    assert run("merge", base, "--force").exit_code == 2


def test_a_disk_in_use_is_not_changed(tmp_path: Path) -> None:
    base, child, _ = chain(tmp_path)
    with LocalBlockFile.open(base, writable=True):
        assert str(base) in failure("merge", child)
        assert str(base) in failure("resize", base, "1G")
        assert str(base) in failure("replay", base)


def test_a_sound_disk_is_said_to_be_sound(tmp_path: Path) -> None:
    _, child, _ = chain(tmp_path)
    assert document("check", child, schema="vhdx-check") == {
        "schema": "lcow-snapshotter.vhdx-check/1",
        "path": str(child),
        "ok": True,
        "findings": [],
        "repaired": [],
    }
    assert run("check", child).stdout == f"{child}: sound\n"


def test_findings_end_with_1_and_repair_puts_right_what_it_can(tmp_path: Path) -> None:
    path = tmp_path / "a.vhdx"
    create_vhdx(path, 64 * MIB)
    dirty(path)
    with path.open("r+b") as file:
        file.seek(256 * KIB)
        file.write(bytes(4096))
    found = document("check", path, schema="vhdx-check", code=1)
    assert not found["ok"]
    assert {finding["structure"] for finding in found["findings"]} >= {"log"}
    for finding in found["findings"]:
        assert {"structure", "section", "offset", "value"} <= set(finding)
    text = run("check", path)
    assert text.exit_code == 1
    assert "--repair" in text.stdout
    done = document("check", path, "--repair", schema="vhdx-check")
    assert done["ok"]
    assert len(done["repaired"]) == len(found["findings"])
    assert run("check", path).exit_code == 0
    with VhdxDisk.open(path) as disk:
        assert disk.read_at(5 * MIB, 6) == b"logged"


def test_what_cannot_be_repaired_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.vhdx"
    create_vhdx(path, 64 * MIB)
    with path.open("r+b") as file:
        file.seek(3 * MIB)
        file.write(b"\5")
    before = path.read_bytes()
    done = run("check", path, "--repair")
    assert done.exit_code == 1
    assert "BAT entry 0 at 0x300000" in done.stdout
    assert "restore it from a copy" in done.stdout
    assert path.read_bytes() == before


def test_a_terminal_sees_how_far_it_is_and_a_pipe_does_not(tmp_path: Path, raw: Path) -> None:
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "vhdx", "convert", str(raw), str(tmp_path / "a.vhdx")],
        stderr=follower,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    ) as process:
        output, _ = process.communicate(timeout=60)
    os.close(follower)
    seen = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:
            break
        if not part:
            break
        seen += part
    os.close(leader)
    assert process.returncode == 0
    assert b"converting disk.raw" in seen
    assert b"40.0" in seen
    assert output.count("\n") == 1
    assert "converting" not in output


def test_the_verbs_are_listed_in_help() -> None:
    shown = run("--help").stdout
    verbs = ("create", "info", "check", "convert", "replay", "resize", "merge", "ls", "cat")
    places = [shown.index(f"  {verb} ") for verb in verbs]
    assert places == sorted(places)

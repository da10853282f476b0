"""`vhdx ls` and `vhdx cat`: what is in a disk, without mounting it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from snapshotter.cli.app import app
from snapshotter.ext4.mkfs import format_ext4
from snapshotter.units import GIB, MIB
from snapshotter.vhdx import (
    open_chain,
)
from tests.snapshotter.archives import write
from tests.snapshotter.ext4.oracles import mounted
from tests.snapshotter.vhdxcommand import document, failure, run


def test_files_are_listed_and_read_through_a_chain(tmp_path: Path) -> None:
    layer = write(tmp_path / "layer.tar", {"a/hello": b"in the base"})
    vhd, base, child = (tmp_path / name for name in ("l.vhd", "base.vhdx", "child.vhdx"))
    imported = CliRunner().invoke(app, ["layer", "import", str(layer), str(vhd)])
    assert imported.exit_code == 0, imported.stderr
    assert run("convert", vhd, base).exit_code == 0
    assert run("create", child, "--parent", base).exit_code == 0
    with open_chain(child, writable=True) as opened:
        at = next(
            start
            for start in range(0, opened.size, 4096)
            if opened.read_at(start, 11) == b"in the base"
        )
        opened.top.write_at(at, b"in the CHIL")
    names = document("ls", child, "/a", schema="ls")["entries"]
    assert [entry["name"] for entry in names] == ["hello"]
    assert run("cat", child, "/a/hello").stdout == "in the CHIL"
    assert run("cat", base, "/a/hello").stdout == "in the base"
    encoded = document("cat", child, "/a/hello", schema="cat")["base64"]
    assert base64.b64decode(encoded) == b"in the CHIL"


def test_a_raw_disk_is_looked_into_too(tmp_path: Path) -> None:
    content = format_ext4(GIB)
    with (tmp_path / "disk.img").open("wb") as file:
        file.truncate(content.size)
        for offset, data in content.pieces:
            file.seek(offset)
            file.write(data)
    names = document("ls", tmp_path / "disk.img", schema="ls")["entries"]
    assert [entry["name"] for entry in names] == ["lost+found"]


def test_a_disk_whose_journal_waits_is_listed_with_a_warning(tmp_path: Path) -> None:
    content = format_ext4(GIB, journal_mib=4, checksums=False)
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(content.size)
        for offset, data in content.pieces:
            file.seek(offset)
            file.write(data)
    assert run("ls", disk).stderr == ""
    with disk.open("r+b") as file:
        file.seek(1024 + 0x60)  # s_feature_incompat
        flags = int.from_bytes(file.read(4), "little")
        file.seek(1024 + 0x60)
        file.write((flags | 4).to_bytes(4, "little"))  # EXT4_FEATURE_INCOMPAT_RECOVER
    done = run("ls", disk, "--json")
    assert (done.exit_code, done.stderr.count("\n")) == (0, 1)
    assert f"{disk}: the journal waits to be replayed" in done.stderr
    assert json.loads(done.stdout)["entries"][0]["name"] == "lost+found"


@pytest.mark.root
def test_a_file_is_listed_whose_xattrs_are_kept_in_a_way_that_is_not_read(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-O", "ea_inode", str(disk)], check=True)
    with mounted(disk, tmp_path / "mnt", "rw") as root:
        (root / "file").write_bytes(b"read")
        os.setxattr(root / "file", "user.large", b"x" * 20_000)
    found = {e["name"]: e for e in document("ls", disk, schema="ls")["entries"]}
    assert (found["file"]["size"], found["file"]["xattrs"]) == (4, None)
    assert found["lost+found"]["xattrs"] == {}
    assert run("cat", disk, "/file").stdout == "read"


def layer(folder: Path, *members: tarfile.TarInfo) -> Path:
    """A layer disk of members without content."""
    with tarfile.open(
        folder / "layer.tar", "w", format=tarfile.PAX_FORMAT, errors="surrogateescape"
    ) as archive:
        for info in members:
            archive.addfile(info)
    vhd = folder / "layer.vhd"
    done = CliRunner().invoke(app, ["layer", "import", str(folder / "layer.tar"), str(vhd)])
    assert done.exit_code == 0, done.stderr
    return vhd


def test_a_listing_tells_what_an_inode_says(tmp_path: Path) -> None:
    device = tarfile.TarInfo("tty")
    device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 4, 64
    device.mode, device.uid, device.gid, device.mtime = 0o620, 7, 5, 1_500_000_000.25
    device.pax_headers = {"SCHILY.xattr.trusted.a": "b"}
    again = tarfile.TarInfo("again")
    again.type, again.linkname = tarfile.LNKTYPE, "tty"
    vhd = layer(tmp_path, device, again)
    (entry,) = document("ls", vhd, "/tty", schema="ls")["entries"]
    assert entry == {
        "name": "/tty",
        "mode": 0o020620,
        "uid": 7,
        "gid": 5,
        "size": 0,
        "links": 2,
        "mtime_ns": 1_500_000_000_250_000_000,
        "whiteout": False,
        "xattrs": {"trusted.a": base64.b64encode(b"b").decode()},
        "device": [4, 64],
    }
    heads, row = run("ls", vhd, "/tty").stdout.splitlines()
    assert heads.split() == ["MODE", "OWNER", "SIZE", "MODIFIED", "NAME"]
    assert row.split() == ["crw--w----", "7:5", "4,64", "2017-07-14", "02:40:00", "/tty"]


def test_names_of_a_layer_do_not_steer_the_terminal(tmp_path: Path) -> None:
    hostile = "a\x1b[2J\udcff\n-rw-r--r--  0:0  forged"
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, hostile
    vhd = layer(tmp_path, tarfile.TarInfo(hostile), link)
    shown = run("ls", vhd).stdout
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 4  # the heads, lost+found, and two
    assert shown.count("a\\x1b[2J\\xff\\n-rw-r--r--  0:0  forged") == 2
    names = {entry["name"] for entry in document("ls", vhd, schema="ls")["entries"]}
    assert hostile in names
    assert "\x1b" not in failure("cat", vhd, f"{hostile}/below")


def test_times_before_1970_and_behind_2038_are_shown(tmp_path: Path) -> None:
    old, late = tarfile.TarInfo("old"), tarfile.TarInfo("late")
    old.mtime, late.mtime = -1, 10**10
    shown = run("ls", layer(tmp_path, old, late)).stdout
    assert "1969-12-31 23:59:59  old" in shown
    assert "2286-11-20 17:46:40  late" in shown

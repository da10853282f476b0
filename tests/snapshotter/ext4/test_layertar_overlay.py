"""The kernel's overlayfs shows the merged view that the layers' whiteouts ask for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from snapshotter.vhd import FOOTER_SIZE
from tests.snapshotter.ext4.layers import DIR, convert, files_of, member, tar
from tests.snapshotter.ext4.oracles import mounted

BASE = [
    member("etc/gone", b"1"),
    member("etc/kept", b"2"),
    member("opaque/below", b"3"),
    member("redone/below", b"4"),
    member("removed/below", b"5"),
]
CHANGE = [
    member("etc/.wh.gone"),
    member("opaque/.wh..wh..opq"),
    member("opaque/new", b"6"),
    member(".wh.redone"),
    member("redone", kind=DIR),
    member("redone/new", b"7"),
    member(".wh.removed"),
    member("etc/.wh.never-there"),
]
MERGED = {"etc/kept": b"2", "opaque/new": b"6", "redone/new": b"7"}


@pytest.mark.root
def test_whiteouts_hide_what_lower_layers_have(tmp_path: Path) -> None:
    disks = []
    for name, members in (("base", BASE), ("change", CHANGE)):
        disk = tmp_path / f"{name}.vhd"
        convert(tar(*members), disk)
        files_of(disk)
        payload = disk.read_bytes()[:-FOOTER_SIZE]
        (tmp_path / f"{name}.raw").write_bytes(payload)
        disks.append(tmp_path / f"{name}.raw")
    merged = tmp_path / "merged"
    merged.mkdir()
    with (
        mounted(disks[0], tmp_path / "base", "ro") as base,
        mounted(disks[1], tmp_path / "change", "ro") as change,
    ):
        result = subprocess.run(
            ["mount", "-t", "overlay", "-o", f"ro,lowerdir={change}:{base}", "overlay", merged],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            pytest.skip(f"no overlayfs here: {result.stderr.strip()}")
        try:
            found = {
                str(path.relative_to(merged)): path.read_bytes()
                for path in merged.rglob("*")
                if not path.is_dir()
            }
            assert found == MERGED
            assert not (merged / "removed").exists()
        finally:
            subprocess.run(["umount", merged], check=True)

"""The guest's root as an archive and as a disk: the same files, the same bytes every time."""

from __future__ import annotations

import io
import stat
from pathlib import Path

import pytest

from harness.errors import ImageBuildError
from harness.image.cpio import read_entries
from harness.image.layout import Layout
from harness.image.rootdisk import write_disk
from snapshotter.ext4.reader import Ext4
from snapshotter.vhd import FixedVhd


def layout() -> Layout:
    made = Layout()
    made.file("/init", b"#!/bin/sh\n", mode=0o755)
    made.file("/bin/tool", b"\x7fELF", mode=0o755)
    made.link("/sbin/alias", "../bin/tool")
    made.character_device("/dev/null", major=1, minor=3)
    made.directory("/tmp")
    return made


def test_the_disk_has_what_the_archive_has(tmp_path: Path) -> None:
    archive = io.BytesIO()
    layout().write(archive)
    archive.seek(0)
    entries = list(read_entries(archive))
    assert entries == list(layout().entries())
    write_disk(entries, tmp_path / "root.vhd")
    with FixedVhd.open(tmp_path / "root.vhd") as disk:
        files = Ext4.open(disk)
        found = {path: status for path, status in files.walk() if path != "/lost+found"}
        assert found.keys() - {"/"} == {f"/{entry.name}" for entry in layout().entries()}
        assert files.read("/usr/bin/tool") == b"\x7fELF"
        assert files.readlink("/sbin") == "usr/sbin"
        assert files.readlink("/usr/sbin/alias") == "../bin/tool"
        assert stat.S_IMODE(found["/init"].mode) == 0o755
        assert stat.S_IMODE(found["/tmp"].mode) == 0o1777
        assert found["/dev/null"].device == (1, 3)


def test_the_same_layout_gives_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name in ("a", "b"):
        archive = io.BytesIO()
        layout().write(archive)
        write_disk(layout().entries(), tmp_path / name)
        written.append((archive.getvalue(), (tmp_path / name).read_bytes()))
    assert written[0] == written[1]


@pytest.mark.parametrize("archive", [b"", b"no archive", b"070701" + b"0" * 104])
def test_an_archive_that_is_cut_is_an_error(archive: bytes) -> None:
    with pytest.raises(ImageBuildError, match="cpio"):
        list(read_entries(io.BytesIO(archive)))

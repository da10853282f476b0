"""The ELF parser, on real packages. Oracle: the dynamic loader's own `--list`."""

from __future__ import annotations

import re
import subprocess

import pytest

from harness.image.elf import ElfFile, ElfFormatError, library_closure, section
from harness.image.userland import Userland


def test_a_dynamic_program_names_its_loader_and_libraries(userland: Userland) -> None:
    data = userland.tree.read("/usr/bin/crun")
    assert data is not None
    crun = ElfFile.parse(data)
    assert crun.interpreter == "/lib64/ld-linux-x86-64.so.2"
    assert "libc.so.6" in crun.needed
    assert crun.soname is None


def test_a_static_program_needs_nothing(userland: Userland) -> None:
    data = userland.tree.read("/bin/busybox")
    assert data is not None
    assert ElfFile.parse(data) == ElfFile()


def test_the_closure_is_what_the_loader_itself_loads(userland: Userland) -> None:
    paths = userland.libraries(["/usr/bin/crun"])
    files = {path: userland.tree.find(path) for path in paths}
    loader = files["/lib64/ld-linux-x86-64.so.2"]
    crun = userland.tree.find("/usr/bin/crun")
    assert loader is not None
    assert crun is not None
    folders = {str(file.source.parent) for file in files.values() if file is not None}
    listed = subprocess.run(
        [loader.source, "--library-path", ":".join(folders), "--list", crun.source],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(re.findall(r"^\s*(lib\S+) =>", listed.stdout, re.MULTILINE))
    found = {path.rpartition("/")[2] for path in paths}
    assert {name for name in found if name.startswith("lib")} == loaded


def test_missing_libraries_are_named_with_who_needs_them(userland: Userland) -> None:
    crun = userland.tree.read("/usr/bin/crun")
    _, missing = library_closure(["/usr/bin/crun"], lambda path: {"/usr/bin/crun": crun}.get(path))
    assert {library.needed_by for library in missing} == {"/usr/bin/crun"}
    assert "libc.so.6" in {library.soname for library in missing}


def test_a_script_needs_no_library() -> None:
    assert library_closure(["/init"], lambda path: b"#!/bin/sh\n") == ([], [])


@pytest.mark.parametrize("size", [0, 3, 20, 63, 64, 100])
def test_a_file_cut_short_is_refused(userland: Userland, size: int) -> None:
    data = userland.tree.read("/usr/bin/crun")
    assert data is not None
    with pytest.raises(ElfFormatError):
        ElfFile.parse(data[:size])


def test_a_section_is_found_by_its_name(userland: Userland) -> None:
    data = userland.tree.read("/usr/bin/crun")
    assert data is not None
    assert (section(data, ".interp") or b"").startswith(b"/lib64/ld-linux")
    assert section(data, ".modinfo") is None

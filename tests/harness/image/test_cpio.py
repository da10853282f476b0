"""The cpio writer. Oracles: a reader written from the format's description, busybox's cpio."""

from __future__ import annotations

import io
import subprocess
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.image.cpio import CpioWriter, DeviceKind
from harness.image.userland import Userland


@dataclass(frozen=True)
class Entry:
    name: str
    mode: int
    content: bytes
    links: int = 1
    device: tuple[int, int] = (0, 0)


def read(archive: bytes) -> list[Entry]:
    found: list[Entry] = []
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = archive[at + 110 : at + 110 + fields[11]]
        assert name.endswith(b"\0")
        start = -(-(at + 110 + fields[11]) // 4) * 4
        content = archive[start : start + fields[6]]
        at = -(-(start + fields[6]) // 4) * 4
        if name == b"TRAILER!!!\0":
            assert archive[at:].strip(b"\0") == b""
            return found
        assert fields[2:4] == [0, 0]
        assert fields[5] == 0
        found.append(
            Entry(name[:-1].decode(), fields[1], content, fields[4], (fields[9], fields[10]))
        )


names = st.text(
    st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=40
).filter(lambda name: not name.startswith("/") and name != "TRAILER!!!")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(names, st.binary(max_size=200), st.integers(0, 0o7777)), max_size=8))
def test_what_is_written_is_read_back(files: list[tuple[str, bytes, int]]) -> None:
    out = io.BytesIO()
    archive = CpioWriter(out)
    for name, content, mode in files:
        archive.file(name, content, mode=mode)
    archive.finish()
    assert read(out.getvalue()) == [Entry(n, 0o100000 | m, c) for n, c, m in files]
    assert archive.size == len(out.getvalue())
    assert archive.size % 512 == 0


def sample() -> bytes:
    out = io.BytesIO()
    archive = CpioWriter(out)
    archive.directory("dev")
    archive.device("dev/console", DeviceKind.CHARACTER, major=5, minor=1)
    archive.device("dev/sda", DeviceKind.BLOCK, major=8, minor=0, mode=0o640)
    archive.file("init", b"#!/bin/sh\n", mode=0o755)
    archive.symlink("bin", "usr/bin")
    archive.finish()
    return out.getvalue()


def test_every_kind_of_entry_has_its_mode_and_numbers() -> None:
    assert read(sample()) == [
        Entry("dev", 0o40755, b"", links=2),
        Entry("dev/console", 0o20600, b"", device=(5, 1)),
        Entry("dev/sda", 0o60640, b"", device=(8, 0)),
        Entry("init", 0o100755, b"#!/bin/sh\n"),
        Entry("bin", 0o120777, b"usr/bin"),
    ]


def test_the_same_calls_give_the_same_bytes() -> None:
    assert sample() == sample()


@pytest.mark.parametrize("name", ["", "/init", "a\0b", "TRAILER!!!"])
def test_a_name_that_no_reader_would_accept_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a path"):
        CpioWriter(io.BytesIO()).file(name, b"")


def test_busybox_lists_the_archive(userland: Userland) -> None:
    busybox = userland.tree.find("/bin/busybox")
    assert busybox is not None
    listed = subprocess.run(
        [busybox.source, "cpio", "-t"], input=sample(), capture_output=True, check=True
    )
    assert listed.stdout.decode().split() == ["dev", "dev/console", "dev/sda", "init", "bin"]

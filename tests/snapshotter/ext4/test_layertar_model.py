"""Converted layers against three judges: a model of extraction, GNU tar, and the kernel's ext4."""

from __future__ import annotations

import io
import os
import random
import shutil
import stat
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.ext4.layertar import convert_layer
from snapshotter.ext4.reader import Ext4
from snapshotter.units import KIB, MIB
from snapshotter.vhd import FOOTER_SIZE, FixedVhd
from tests.snapshotter.ext4.layers import (
    CHR,
    DIR,
    FIFO,
    LNK,
    REG,
    SYM,
    convert,
    files_of,
    member,
    tar,
)
from tests.snapshotter.ext4.oracles import fsck, mounted

NAMES = st.sampled_from(["a", "b", "c", "a/a", "a/b", "b/a", "b/a/c", "a/b/c/d", "c/c"])
KINDS = st.sampled_from([REG, REG, DIR, SYM, FIFO, CHR, LNK])


@dataclass
class Node:
    kind: bytes
    data: bytes = b""
    mode: int = 0o755
    uid: int = 0
    children: dict[str, Node] = field(default_factory=dict)


class Step(NamedTuple):
    """One member of a layer."""

    name: str
    kind: bytes
    data: bytes
    link: str
    mode: int
    uid: int


class RefusedError(Exception):
    """The model cannot place the member."""


STEPS = st.lists(
    st.builds(
        Step,
        name=NAMES,
        kind=KINDS,
        data=st.binary(max_size=40),
        link=NAMES,
        mode=st.integers(0, 0o7777),
        uid=st.integers(0, 3),
    ),
    max_size=14,
)


def place(root: Node, name: str, node: Node) -> None:
    *path, base = name.split("/")
    at = root
    for part in path:
        if part not in at.children:
            at.children[part] = Node(DIR, mode=at.mode, uid=at.uid)
        at = at.children[part]
        if at.kind != DIR:
            raise RefusedError
    old = at.children.get(base)
    if node.kind == DIR and old is not None and old.kind == DIR:
        old.mode, old.uid = node.mode, node.uid
    else:
        at.children[base] = node


def find(root: Node, name: str) -> Node:
    at = root
    for part in name.split("/"):
        if part not in at.children:
            raise RefusedError
        at = at.children[part]
    if at.kind == DIR:
        raise RefusedError
    return at


def flatten(node: Node, path: str = "") -> dict[str, Node]:
    found = {path or "/": node}
    for name, child in node.children.items():
        found.update(flatten(child, f"{path}/{name}"))
    return found


def compare(root: Node, files: Ext4) -> None:
    expected = flatten(root)
    found = dict(files.walk())
    del found["/lost+found"]
    assert found.keys() == expected.keys()
    kinds = {DIR: stat.S_IFDIR, REG: stat.S_IFREG, SYM: stat.S_IFLNK, FIFO: stat.S_IFIFO}
    kinds[CHR] = stat.S_IFCHR
    links: dict[int, int] = {}
    for path, node in expected.items():
        links[id(node)] = links.get(id(node), 0) + 1
        mode = 0o777 if node.kind == SYM else node.mode
        assert found[path].mode == kinds[node.kind] | mode, path
        assert found[path].uid == node.uid
        if node.kind == REG:
            assert files.read(path) == node.data
        elif node.kind == SYM:
            assert files.readlink(path).encode() == node.data
    for path, node in expected.items():
        if node.kind == DIR:
            below = sum(child.kind == DIR for child in node.children.values())
            assert found[path].links == 2 + below + (path == "/")  # lost+found
        else:
            assert found[path].links == links[id(node)]


def model_of(steps: list[Step]) -> Node:
    root = Node(DIR)
    for step in steps:
        if step.kind == LNK:
            node = find(root, step.link)
        else:
            content = step.link.encode() if step.kind == SYM else step.data
            node = Node(step.kind, content, step.mode, step.uid)
        place(root, step.name, node)
    return root


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_random_layers_have_the_tree_of_the_model(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Step]
) -> None:
    kept: list[Step] = []
    for step in steps:
        try:
            model_of([*kept, step])
        except RefusedError:
            continue
        kept.append(step)
    raw = tar(
        *(
            member(
                step.name,
                step.data if step.kind == REG else b"",
                kind=step.kind,
                link=step.link,
                mode=step.mode,
                uid=step.uid,
                device=(1, 3),
            )
            for step in kept
        )
    )
    target = tmp_path_factory.mktemp("model") / "layer.vhd"
    convert(raw, target)
    compare(model_of(kept), files_of(target))


def sample_tree(root: Path) -> None:
    """Make a tree with a bit of everything."""
    chance = random.Random(3)
    for number in range(40):
        folder = root / f"d{number % 7}" / f"sub{number}"
        folder.mkdir(parents=True)
        for index in range(10):
            file = folder / f"file-{index}-{'x' * chance.randrange(60)}"
            file.write_bytes(chance.randbytes(chance.choice([0, 10, 4096, 70_000])))
            os.utime(file, ns=(0, chance.randrange(10**18)))
            file.chmod(chance.choice([0o600, 0o755, 0o4711]))
        (folder / "fast").symlink_to("../fast")
        (folder / "slow").symlink_to("s" * 200)
        os.link(folder / "slow", folder / "slow-again")
        os.link(next(folder.glob("file-0-*")), root / f"hard{number}")
        os.mkfifo(folder / "pipe")
        os.setxattr(folder, "user.note", b"\x00\xff" * number)
    (root / "unicode-ü-\udcff").write_bytes(b"u")


def gnu_tar(folder: Path, form: str) -> bytes:
    if not shutil.which("tar"):
        pytest.skip("GNU tar is not installed")
    extra = ["--xattrs"] if form == "pax" else []
    return subprocess.run(
        ["tar", *extra, f"--format={form}", "-C", folder, "-cf", "-", "."],
        capture_output=True,
        check=True,
    ).stdout


def describe(root: Path) -> dict[str, object]:
    """Return what lstat and reading say of everything below `root`, without lost+found."""
    found: dict[str, object] = {}
    numbers: dict[int, int] = {}
    for folder, folders, names in os.walk(root):
        if Path(folder) == root and "lost+found" in folders:
            folders.remove("lost+found")
        folders.sort()
        for name in sorted([*names, *folders]):
            path = Path(folder, name)
            info = path.lstat()
            content: object = None
            if stat.S_ISREG(info.st_mode):
                content = path.read_bytes()
            elif stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            xattrs = (
                {}
                if stat.S_ISLNK(info.st_mode)
                else {
                    key: os.getxattr(path, key)
                    for key in os.listxattr(path)
                    if key.startswith("user.")
                }
            )
            found[os.fspath(path.relative_to(root))] = (
                info.st_mode,
                info.st_uid,
                info.st_gid,
                info.st_mtime_ns,
                0 if stat.S_ISDIR(info.st_mode) else info.st_size,
                numbers.setdefault(info.st_ino, len(numbers)),
                content,
                xattrs,
            )
    return found


@pytest.mark.root
@pytest.mark.parametrize("form", ["pax", "gnu"])
def test_the_kernel_shows_what_gnu_tar_packed(tmp_path: Path, form: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    try:
        sample_tree(source)
    except OSError as error:
        pytest.skip(f"the file system of the tests cannot hold the sample: {error}")
    target = tmp_path / "layer.vhd"
    convert(gnu_tar(source, form), target)
    with target.open("rb+") as file:
        file.truncate(os.path.getsize(target) - FOOTER_SIZE)
    fsck(target)
    expected = describe(source)
    if form == "gnu":  # no fractions of seconds, no xattrs
        expected = {
            path: (*info[:3], info[3] // 10**9 * 10**9, *info[4:7], {})  # type: ignore[index]
            for path, info in expected.items()
        }
    with mounted(target, tmp_path / "mnt", "ro") as root:
        assert describe(root) == expected


class _LongTar(io.RawIOBase):
    """A tar with one file of `size` bytes that count their own blocks, made while it is read."""

    def __init__(self, size: int) -> None:
        info = tarfile.TarInfo("large")
        info.size = size
        self._head = info.tobuf(tarfile.PAX_FORMAT)
        self._total = len(self._head) + size + 1024
        self._end = len(self._head) + size
        self._place = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        count = min(len(buffer), self._total - self._place)
        if self._place < len(self._head):
            count = min(count, len(self._head) - self._place)
            buffer[:count] = self._head[self._place : self._place + count]
        else:
            buffer[:count] = bytes(count)
            mark = -(self._place - len(self._head)) % (16 * MIB)
            if mark + 8 <= count and self._place + mark < self._end:
                number = (self._place - len(self._head) + mark) // (16 * MIB)
                buffer[mark : mark + 8] = number.to_bytes(8, "little")
        self._place += count
        return count


@pytest.mark.parametrize("size", [512 * MIB, 512 * MIB + 4 * KIB], ids=["4 extents", "a tree"])
def test_files_at_the_edge_of_the_inodes_extents_arrive(tmp_path: Path, size: int) -> None:
    target = tmp_path / "layer.vhd"
    convert_layer(_LongTar(size), target)  # type: ignore[arg-type]
    with FixedVhd.open(target) as disk:
        files = Ext4.open(disk)
        assert files.stat("large").size == size
        for number in range(size // (16 * MIB)):
            raw = files.read("large", offset=number * 16 * MIB, length=8)
            assert int.from_bytes(raw, "little") == number
        assert files.read("large", offset=size - 10, length=100) == bytes(10)
    with target.open("rb+") as file:
        file.truncate(os.path.getsize(target) - FOOTER_SIZE)
    fsck(target)
    target.unlink()

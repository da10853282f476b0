"""Any tree of an overlay's upper directory, through the tar and the layer, is what it was."""

from __future__ import annotations

import os
import stat
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snapshotter.ext4.layertar import convert_layer
from snapshotter.ext4.reader import Ext4
from snapshotter.linuxhost.uppertar import upper_tar
from snapshotter.vhd import FixedVhd

pytestmark = pytest.mark.usefixtures("as_root")

# Names are bytes on Linux; these have text that is none, and lengths beyond a tar header's.
NAMES = st.one_of(
    st.sampled_from([b"a", b"b", b"dir", b"\xff\xfe", b".hidden", b"n" * 120, b"\xc3\xa4" * 60]),
    st.binary(min_size=1, max_size=12).filter(
        lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
    ),
).filter(lambda name: not name.startswith(b".wh.") and name != b"lost+found")
OWNERS = st.sampled_from([0, 1, 65534, 0x1FFFFF, 0xFFFFFFFE])
TIMES = st.sampled_from([0, 1, -1, 1_700_000_000_123_456_789, -1_500_000_001, 2**33 * 10**9])
FILES = st.tuples(
    st.just("file"),
    st.binary(max_size=5000),
    st.dictionaries(
        st.sampled_from(["user.a", "trusted.b", "security.c"]), st.binary(min_size=1, max_size=99)
    ),
)
LEAVES = st.one_of(
    FILES,
    st.tuples(
        st.just("link"), st.binary(min_size=1, max_size=200).filter(lambda t: b"\0" not in t)
    ),
    st.just(("whiteout",)),
    st.just(("fifo",)),
)
TREES = st.recursive(
    st.dictionaries(NAMES, LEAVES, max_size=5),
    lambda inner: st.dictionaries(
        NAMES, st.one_of(LEAVES, st.tuples(st.just("dir"), inner, st.booleans())), max_size=5
    ),
    max_leaves=20,
)


def build(folder: bytes, tree: dict[bytes, tuple[object, ...]], owner: int, when: int) -> None:
    for name, (kind, *rest) in tree.items():
        path = os.path.join(folder, name)
        match kind, *rest:
            case "file", bytes(data), dict(xattrs):
                Path(os.fsdecode(path)).write_bytes(data)
                for key, value in xattrs.items():
                    os.setxattr(path, key, value)
            case "link", bytes(target):
                os.symlink(target, path)
            case ("whiteout",):
                os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
            case ("fifo",):
                os.mkfifo(path, 0o640)
            case "dir", dict(inner), bool(opaque):
                os.mkdir(path, 0o751)
                if opaque:
                    os.setxattr(path, "trusted.overlay.opaque", b"y")
                build(path, inner, owner, when)
        os.chown(path, owner, owner, follow_symlinks=False)
        os.utime(path, ns=(0, when), follow_symlinks=False)


def on_disk(folder: bytes, prefix: str = "") -> dict[str, tuple[object, ...]]:
    """Path to what counts, by the system's own calls."""
    found: dict[str, tuple[object, ...]] = {}
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        status = os.lstat(path)
        shown = f"{prefix}/{os.fsdecode(name)}"
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = Path(os.fsdecode(path)).read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.fsdecode(os.readlink(path))
        elif stat.S_ISDIR(status.st_mode):
            found |= on_disk(path, shown)
        xattrs = {
            key: os.getxattr(path, key, follow_symlinks=False)
            for key in os.listxattr(path, follow_symlinks=False)
        }
        is_whiteout = stat.S_ISCHR(status.st_mode)
        owner, when = (None, None) if is_whiteout else (status.st_uid, status.st_mtime_ns)
        mode = stat.S_IFMT(status.st_mode) if is_whiteout else status.st_mode
        found[shown] = (mode, owner, when, content, xattrs)
    return found


def in_layer(ext4: Ext4, path: str = "") -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for name in ext4.listdir(path or "/"):
        shown = f"{path}/{name}"
        if shown == "/lost+found":
            continue
        status = ext4.stat(shown)
        content: object = None
        if stat.S_ISREG(status.mode):
            content = ext4.read(shown)
        elif stat.S_ISLNK(status.mode):
            content = ext4.readlink(shown)
        elif stat.S_ISDIR(status.mode):
            found |= in_layer(ext4, shown)
        is_whiteout = stat.S_ISCHR(status.mode)
        owner, when = (None, None) if is_whiteout else (status.uid, status.mtime_ns)
        mode = stat.S_IFMT(status.mode) if is_whiteout else status.mode
        found[shown] = (mode, owner, when, content, ext4.xattrs(shown))
    return found


@settings(max_examples=40)
@given(tree=TREES, owner=OWNERS, when=TIMES)
@example(tree={b"a": ("link", b"./b//c/")}, owner=0, when=0)
def test_a_layer_holds_the_upper_directory(
    tree: dict[bytes, tuple[object, ...]], owner: int, when: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        upper = Path(name, "upper")
        upper.mkdir()
        build(os.fsencode(upper), tree, owner, when)
        layer = Path(name, "layer.vhd")
        convert_layer(upper_tar(upper), layer)
        with FixedVhd.open(layer) as disk:
            assert in_layer(Ext4.open(disk)) == on_disk(os.fsencode(upper))


def test_pythons_tarfile_reads_the_same_names(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ("x" * 200)).write_bytes(b"1")
    os.link(tmp_path / "d" / ("x" * 200), tmp_path / "hard")
    with tarfile.open(fileobj=upper_tar(tmp_path), mode="r|") as archive:
        members = [(member.name, member.type, member.linkname) for member in archive]
    assert members == [
        (".", tarfile.DIRTYPE, ""),
        ("d", tarfile.DIRTYPE, ""),
        ("d/" + "x" * 200, tarfile.REGTYPE, ""),
        ("hard", tarfile.LNKTYPE, "d/" + "x" * 200),
    ]


def test_the_same_directory_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / name).write_text(name)
    assert upper_tar(tmp_path).read() == upper_tar(tmp_path).read()

"""The kernel shows of a converted layer what `tar -x` makes of the same tar, in every respect."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapshotter.units import KIB, MIB
from snapshotter.vhd import FOOTER_SIZE
from tests.snapshotter.ext4.layers import convert
from tests.snapshotter.ext4.oracles import fsck, mounted

pytestmark = pytest.mark.root

# Linux include/uapi/linux/posix_acl_xattr.h: owner, a named user, group, mask, others.
_ANYBODY = 0xFFFF_FFFF
_ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in (
        (1, 7, _ANYBODY),
        (2, 5, 1000),
        (4, 5, _ANYBODY),
        (16, 7, _ANYBODY),
        (32, 5, _ANYBODY),
    )
)
_LATER_NS = 1_600_000_000 * 10**9
_CAPABILITY = struct.pack("<5I", 0x0200_0001, 1 << 10, 0, 0, 0)  # cap_net_bind_service=ep


def first_tree(root: Path) -> None:
    """Make one file of every kind, at the edges of what a layer can hold."""
    folder = root / "folder"
    folder.mkdir()
    (folder / "bottom").mkdir(mode=0o1777)
    os.setxattr(folder / "bottom", "system.posix_acl_default", _ACL)
    os.setxattr(folder, "system.posix_acl_access", _ACL)
    os.setxattr(folder, "trusted.overlay.opaque", b"y")
    file = root / "file"
    file.write_bytes(bytes(range(256)) * 40)
    os.chown(file, 2**31, 2**32 - 2)
    file.chmod(0o6755)
    for name, value in {
        "security.capability": _CAPABILITY,
        "trusted.many": b"v" * 3000,
        "user.empty": b"",
        "user." + "n" * 240: b"long",
        "user.\xfc": b"\0\xff",
    }.items():
        os.setxattr(file, name, value)
    (root / "link").symlink_to("t" * 300)
    os.setxattr(root / "link", "trusted.of-a-link", b"1", follow_symlinks=False)
    os.link(root / "link", root / "link-again", follow_symlinks=False)
    os.mknod(root / "tty", stat.S_IFCHR | 0o640, os.makedev(300, 70_000))
    os.setxattr(root / "tty", "trusted.of-a-device", b"2")
    os.link(root / "tty", folder / "tty-again")
    os.mknod(root / "disk", stat.S_IFBLK | 0o600, os.makedev(8, 1))
    os.mkfifo(root / "pipe", 0o622)
    with (root / "sparse").open("wb") as sparse:
        for at in (5 * MIB + 100, 9 * MIB, 30 * MIB - 3):
            sparse.seek(at)
            sparse.write(b"data" * KIB)
        sparse.truncate(40 * MIB)
    (root / ("n" * 255)).write_bytes(b"")
    below = root / ("deep" * 30) / ("er" * 60)
    below.mkdir(parents=True)
    (below / "\xfc-\udcff").write_bytes(b"of any bytes")
    for number in range(300):  # some hashed directories
        (folder / f"{number:03}-{'x' * 40}").write_bytes(b"%d" % number * 30)
    (root / "replaced").write_bytes(b"old" * 5000)
    (root / "becomes-a-folder").write_bytes(b"old")
    os.utime(root / "pipe", ns=(0, -5 * 10**9 + 123_456_789))
    os.utime(file, ns=(0, 8 * 10**18 + 1))


def second_tree(root: Path) -> None:
    """Make what comes later in the same tar and takes the place of some of the first."""
    (root / "replaced").write_bytes(b"newer and longer" * 5000)
    (root / "becomes-a-folder").mkdir()
    (root / "becomes-a-folder" / "file").write_bytes(b"below")
    os.utime(root / "becomes-a-folder", ns=(0, _LATER_NS))
    (root / "folder").mkdir(mode=0o700)
    (root / "folder" / "late").write_bytes(b"late")
    os.utime(root / "folder", ns=(0, _LATER_NS))


_GNU = ("tar", "--numeric-owner", "--sparse")
_PAX = (*_GNU, "--format=pax", "--xattrs", "--xattrs-include=*")
_WRITERS: dict[str, tuple[str, ...]] = {
    "pax": _PAX,
    "pax with maps of 0.1": (*_PAX, "--sparse-version=0.1"),
    "GNU": (*_GNU, "--format=gnu"),
}

_BSDTAR = ("bsdtar", "--numeric-owner", "--format=pax", "--xattrs")
_GNU_READER = ("tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", "-")


def pack(command: tuple[str, ...], *folders: Path) -> bytes:
    """Return one tar of the content of `folders`, one after the other."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    whole = b""
    for folder in folders:
        done = subprocess.run(
            [*command, "-C", str(folder), "-cf", "-", "."], capture_output=True, check=True
        )
        whole = whole.rstrip(b"\0")  # no file here ends in a block of zeros
        whole += bytes(-len(whole) % 512) + done.stdout
    return whole


def describe(root: Path) -> dict[str, dict[str, Any]]:
    """Return all that the kernel tells of everything at and below `root`, without lost+found."""
    found: dict[str, dict[str, Any]] = {}
    numbers: dict[int, int] = {}
    for folder, folders, names in os.walk(root):
        if Path(folder) == root and "lost+found" in folders:
            folders.remove("lost+found")
        folders.sort()
        for path in [Path(folder), *(Path(folder, name) for name in sorted([*names, *folders]))]:
            info = path.lstat()
            content: object = None
            if stat.S_ISREG(info.st_mode):
                content = info.st_size, hashlib.sha256(path.read_bytes()).hexdigest()
            elif stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            elif stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
                content = os.major(info.st_rdev), os.minor(info.st_rdev)
            is_folder = stat.S_ISDIR(info.st_mode)
            found[os.fspath(path.relative_to(root))] = {
                "mode": oct(info.st_mode),
                "owner": (info.st_uid, info.st_gid),
                "mtime": info.st_mtime_ns,
                "links": None if is_folder else info.st_nlink,
                "file": None if is_folder else numbers.setdefault(info.st_ino, len(numbers)),
                "content": content,
                "xattrs": {
                    name: os.getxattr(path, name, follow_symlinks=False)
                    for name in os.listxattr(path, follow_symlinks=False)
                },
            }
    return found


def shown_by_the_kernel(raw: bytes, folder: Path, *, sealed: bool = False) -> dict[str, Any]:
    """Convert a tar, have e2fsck look at the result, mount it and describe what is there."""
    layer = folder / "layer.vhd"
    done = convert(raw, layer, checksums=sealed, verity=sealed)
    size = done.verity.hash_offset if done.verity else layer.stat().st_size - FOOTER_SIZE
    with layer.open("rb+") as file:
        file.truncate(size)
    fsck(layer)
    with mounted(layer, folder / "mnt", "ro") as root:
        return describe(root)


def made(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return a new folder that `make` filled, or skip where the file system cannot hold it."""
    folder.mkdir()
    try:
        make(folder)
    except OSError as error:
        pytest.skip(f"the file system of the tests cannot hold the sample: {error}")
    return folder


@pytest.mark.parametrize(
    ("writer", "sealed"), [*((writer, False) for writer in _WRITERS), ("pax", True)]
)
def test_the_kernel_shows_what_tar_extracts(tmp_path: Path, writer: str, sealed: bool) -> None:
    first = made(tmp_path / "first", first_tree)
    raw = pack(_WRITERS[writer], first, made(tmp_path / "second", second_tree))
    extracted = tmp_path / "extracted"
    extracted.mkdir()
    subprocess.run([*_GNU_READER, "-C", extracted], input=raw, check=True)
    expected = describe(extracted)
    # Laid over other layers, the file that was there hid all that they have of the name. And GNU
    # tar forgets the time of a directory that it made in the place of a file.
    expected["becomes-a-folder"]["xattrs"]["trusted.overlay.opaque"] = b"y"
    expected["becomes-a-folder"]["mtime"] = _LATER_NS
    shown = shown_by_the_kernel(raw, tmp_path, sealed=sealed)
    assert shown.keys() == expected.keys()
    for path, facts in expected.items():
        assert shown[path] == facts, path


def test_the_kernel_shows_what_bsdtar_packed(tmp_path: Path) -> None:
    """The tree itself is compared: what bsdtar extracts is not all that it packed."""
    first = made(tmp_path / "first", first_tree)
    # It packs devices of two names twice, and ACLs as text, which no container engine reads.
    (first / "folder" / "tty-again").unlink()
    os.removexattr(first / "folder", "system.posix_acl_access")
    os.removexattr(first / "folder" / "bottom", "system.posix_acl_default")
    expected = describe(first)
    # So libarchive 3.6 writes names that are not ASCII, and -5 s + 0.123456789 s.
    xattrs = expected["file"]["xattrs"]
    xattrs["user.%C3%BC"] = xattrs.pop("user.\xfc")
    expected["pipe"]["mtime"] = -5_123_456_789
    shown = shown_by_the_kernel(pack(_BSDTAR, first), tmp_path)
    assert shown.keys() == expected.keys()
    for path, facts in expected.items():
        assert shown[path] == facts, path

"""linux-host mode: what Linux sees in the mounts, and what the layers hold."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapshotter import Kind, Snapshotter
from snapshotter.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
)
from snapshotter.ext4.reader import Ext4
from snapshotter.labels import OWNER_KEY, REUSE_SCRATCH
from snapshotter.linuxhost.mounting import mounted
from snapshotter.linuxhost.snapshotter import LinuxHostSnapshotter
from snapshotter.mounts import LAYER_NAME
from snapshotter.vhd import FixedVhd
from tests.conformance.leaks import assert_nothing_left, loops_below

pytestmark = pytest.mark.usefixtures("as_root")

OPAQUE = "trusted.overlay.opaque"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[LinuxHostSnapshotter]:
    (tmp_path / "mnt").mkdir()
    with LinuxHostSnapshotter.open(tmp_path / "root", durable=False) as snapshotter:
        yield snapshotter
    assert_nothing_left(tmp_path)


@contextlib.contextmanager
def written(host: LinuxHostSnapshotter, name: str, parent: str = "") -> Iterator[Path]:
    """Yield the files of a new snapshot; afterwards it is committed."""
    key = f"{name}-key"
    mounts = host.prepare(key, parent)
    target = host.store.root.parent / "mnt"
    with mounted(mounts, target):
        yield target
    host.commit(name, key)


@contextlib.contextmanager
def viewed(host: LinuxHostSnapshotter, parent: str) -> Iterator[Path]:
    target = host.store.root.parent / "mnt"
    mounts = host.view("view", parent)
    with mounted(mounts, target):
        yield target
    host.remove("view")


@contextlib.contextmanager
def layer(host: LinuxHostSnapshotter, name: str) -> Iterator[Ext4]:
    """The layer of a committed snapshot, read by our own reader."""
    with FixedVhd.open(host.store.directory(name) / LAYER_NAME) as disk:
        yield Ext4.open(disk)


def test_files_of_every_kind_come_back_as_they_were(host: LinuxHostSnapshotter) -> None:
    with written(host, "base") as files:
        (files / "file").write_bytes(b"x" * 100_000)
        os.chown(files / "file", 1234, 70_000)
        (files / "file").chmod(0o4755)
        os.utime(files / "file", ns=(0, 1_234_567_890_123_456_789))
        os.link(files / "file", files / "hard")
        (files / "d").mkdir(mode=0o1777)
        (files / "d").chmod(0o1777)
        (files / "d" / ("n" * 255)).touch()
        (files / "soft").symlink_to("d/../file")
        os.mknod(files / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mkfifo(files / "fifo")
        os.setxattr(files / "file", "user.bytes", bytes(range(256)))
        os.setxattr(
            files / "file",
            "security.capability",
            bytes.fromhex("010000020020000000000000" + "00" * 8),
        )
        (files / "old").touch()
        os.utime(files / "old", ns=(0, -1_500_000_000))
        files.chmod(0o711)
        os.chown(files, 5, 6)
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
            os.chdir(files)
            try:
                listening.bind("socket")
            finally:
                os.chdir("/")
    with viewed(host, "base") as files:
        status = (files / "file").stat()
        assert (files / "file").read_bytes() == b"x" * 100_000
        assert (status.st_uid, status.st_gid, status.st_nlink) == (1234, 70_000, 2)
        assert stat.S_IMODE(status.st_mode) == 0o4755
        assert status.st_mtime_ns == 1_234_567_890_123_456_789
        assert (files / "hard").stat().st_ino == status.st_ino
        assert stat.S_IMODE((files / "d").stat().st_mode) == 0o1777
        assert os.listdir(files / "d") == ["n" * 255]
        assert os.readlink(files / "soft") == "d/../file"
        assert (files / "null").stat().st_rdev == os.makedev(1, 3)
        assert stat.S_ISFIFO((files / "fifo").stat().st_mode)
        assert os.getxattr(files / "file", "user.bytes") == bytes(range(256))
        assert os.getxattr(files / "file", "security.capability")[0] == 1
        assert (files / "old").stat().st_mtime_ns == -1_500_000_000
        root = files.stat()
        assert (stat.S_IMODE(root.st_mode), root.st_uid, root.st_gid) == (0o711, 5, 6)
        assert "socket" not in os.listdir(files)
        assert "lost+found" not in os.listdir(files)


def test_removals_and_replaced_directories_become_overlay_marks(
    host: LinuxHostSnapshotter,
) -> None:
    with written(host, "base") as files:
        for name in ("gone", "replaced", "kept"):
            (files / name).mkdir()
            (files / name / "old").touch()
        (files / "file").touch()
    with written(host, "top", "base") as files:
        (files / "file").unlink()
        for name in ("gone", "replaced"):
            (files / name / "old").unlink()
            (files / name).rmdir()
        (files / "replaced").mkdir()
        (files / "replaced" / "new").touch()
        (files / "kept" / "new").touch()
    with layer(host, "top") as ext4:
        assert sorted(ext4.listdir("/")) == ["file", "gone", "kept", "lost+found", "replaced"]
        assert stat.S_ISCHR(ext4.stat("/file").mode)
        assert ext4.xattrs("/replaced") == {OPAQUE: b"y"}
        assert ext4.xattrs("/kept") == {}
    with viewed(host, "top") as files:
        assert sorted(os.listdir(files)) == ["kept", "replaced"]
        assert os.listdir(files / "replaced") == ["new"]
        assert sorted(os.listdir(files / "kept")) == ["new", "old"]


def test_the_root_of_the_parent_is_that_of_the_child(host: LinuxHostSnapshotter) -> None:
    with written(host, "base") as files:
        files.chmod(0o700)
        os.chown(files, 7, 8)
        os.setxattr(files, "user.mark", b"1")
    with written(host, "top", "base") as files:
        assert (files.stat().st_uid, stat.S_IMODE(files.stat().st_mode)) == (7, 0o700)
        assert os.getxattr(files, "user.mark") == b"1"
    with viewed(host, "top") as files:
        assert (files.stat().st_gid, stat.S_IMODE(files.stat().st_mode)) == (8, 0o700)


def test_a_view_is_read_only(host: LinuxHostSnapshotter) -> None:
    with written(host, "base") as files:
        (files / "file").touch()
    for parent in ("base", ""):
        with viewed(host, parent) as files, pytest.raises(OSError, match="Read-only"):
            (files / "new").touch()


def test_a_file_named_like_a_whiteout_is_refused_and_can_be_renamed(
    host: LinuxHostSnapshotter,
) -> None:
    target = host.store.root.parent / "mnt"
    with mounted(host.prepare("key"), target):
        (target / ".wh.file").touch()
    with pytest.raises(FailedPreconditionError, match=r"'\.wh\.file'"):
        host.commit("name", "key")
    assert host.stat("key").kind is Kind.ACTIVE
    with mounted(host.mounts("key"), target):
        (target / ".wh.file").rename(target / "file")
    host.commit("name", "key")
    with viewed(host, "name") as files:
        assert os.listdir(files) == ["file"]


def test_a_commit_to_a_taken_name_costs_nothing(host: LinuxHostSnapshotter) -> None:
    with written(host, "base"):
        pass
    host.prepare("key", "base")
    with pytest.raises(AlreadyExistsError):
        host.commit("base", "key")
    assert not (host.store.directory("key") / LAYER_NAME).exists()


def test_snapshots_that_share_a_scratch_share_the_disk_and_no_file(
    host: LinuxHostSnapshotter, tmp_path: Path
) -> None:
    host.prepare("owner")
    host.prepare("sharer", labels={REUSE_SCRATCH: "true", OWNER_KEY: "owner"})
    assert len(loops_below(tmp_path)) == 1
    target = tmp_path / "mnt"
    with mounted(host.mounts("owner"), target):
        (target / "of-owner").touch()
    with mounted(host.mounts("sharer"), target):
        assert os.listdir(target) == []
        (target / "of-sharer").touch()
    host.remove("owner")
    with mounted(host.mounts("sharer"), target):
        assert os.listdir(target) == ["of-sharer"]
    host.commit("c", "sharer")
    with viewed(host, "c") as files:
        assert os.listdir(files) == ["of-sharer"]


def test_what_is_written_counts_as_usage(host: LinuxHostSnapshotter) -> None:
    host.prepare("key")
    before = host.usage("key")
    target = host.store.root.parent / "mnt"
    with mounted(host.mounts("key"), target):
        (target / "file").write_bytes(os.urandom(1 << 20))
        os.sync()
    after = host.usage("key")
    assert after.size - before.size >= 1 << 20
    assert after.inodes == before.inodes + 1


def test_an_unpack_snapshot_can_be_written_to(host: LinuxHostSnapshotter) -> None:
    key = "ns/1/extract-1 sha256:aa"
    target = host.store.root.parent / "mnt"
    with mounted(host.prepare(key), target):
        (target / "file").touch()
    host.commit("name", key)
    with viewed(host, "name") as files:
        assert os.listdir(files) == ["file"]
    assert not list((host.store.root / "m").glob("*.ext4"))


def test_a_layer_of_lcow_mode_is_mounted_and_one_without_layer_is_named(
    host: LinuxHostSnapshotter,
) -> None:
    host.store.prepare("extract-1 x")
    host.store.commit("without", "extract-1 x")
    with pytest.raises(UnavailableError, match=r"layer\.vhd is missing"):
        host.prepare("key", "without")
    assert {info.name for info in host.walk()} == {"without"}


def test_only_one_process_serves_a_root_in_this_mode(host: LinuxHostSnapshotter) -> None:
    with pytest.raises(UnavailableError, match="another process"):
        LinuxHostSnapshotter.open(host.store.root)
    with Snapshotter.open(host.store.root) as lcow:
        assert list(lcow.walk()) == []


def test_lcow_mounts_are_none_that_linux_has(tmp_path: Path) -> None:
    with Snapshotter.open(tmp_path / "root", durable=False) as lcow:
        mounts = lcow.prepare("key")
        with (
            pytest.raises(InvalidArgumentError, match="lcow-layer"),
            mounted(mounts, tmp_path),
        ):
            pass


def test_an_ordinary_user_gets_a_clear_error(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from snapshotter.errors import UnavailableError\n"
        "from snapshotter.linuxhost.snapshotter import LinuxHostSnapshotter\n"
        "os.setuid(65534)\n"
        "try: LinuxHostSnapshotter.open(sys.argv[1])\n"
        "except UnavailableError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "run it as root" in done.stdout, done.stderr


def test_committed_and_removed_snapshots_leave_no_writable_disk(
    host: LinuxHostSnapshotter, tmp_path: Path
) -> None:
    for key in ("committed", "removed", "extract-1 x"):
        host.prepare(key)
    assert len(loops_below(tmp_path)) == 3
    host.commit("name", "committed")
    host.commit("layer", "extract-1 x")
    host.remove("removed")
    assert loops_below(tmp_path) == []
    assert list(tmp_path.rglob("*.ext4")) == []


def test_clients_at_the_same_time_do_not_meet(host: LinuxHostSnapshotter, tmp_path: Path) -> None:
    with written(host, "base") as files:
        (files / "base").touch()

    def chain(client: int) -> list[str]:
        target = tmp_path / f"mnt-{client}"
        target.mkdir()
        parent = "base"
        for number in range(4):
            name = f"{client}-{number}"
            with mounted(host.prepare(f"{name}-key", parent), target):
                (target / name).touch()
            host.commit(name, f"{name}-key")
            parent = name
        with mounted(host.view(f"{client}-view", parent), target):
            found = sorted(os.listdir(target))
        host.remove(f"{client}-view")
        for number in reversed(range(4)):
            host.remove(f"{client}-{number}")
        return found

    with ThreadPoolExecutor(8) as pool:
        for client, found in enumerate(pool.map(chain, range(8))):
            assert found == [*(f"{client}-{number}" for number in range(4)), "base"]
    assert {info.name for info in host.walk()} == {"base"}
    # The layer that is left stays mounted for the next one.
    assert [Path(path).name for path in loops_below(tmp_path)] == [LAYER_NAME]


KILLED = """
import os, sys
from pathlib import Path
from snapshotter.linuxhost.mounting import mounted
from snapshotter.linuxhost.snapshotter import LinuxHostSnapshotter
folder = Path(sys.argv[1])
host = LinuxHostSnapshotter.open(folder / "root", durable=False)
held = mounted(host.prepare("key"), folder / "mnt")
held.__enter__()
host.prepare("extract-1 x")
(folder / "mnt" / "file").write_text("kept")
os._exit(9)
"""


def test_a_killed_service_loses_nothing_and_its_mounts_are_swept(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == 9
    assert len(loops_below(tmp_path)) == 2
    with LinuxHostSnapshotter.open(tmp_path / "root", durable=False) as host:
        # The client still has it mounted: the disk must be that one, not a second instance of it.
        assert len(loops_below(tmp_path)) == 1
        host.mounts("key")
        assert len(loops_below(tmp_path)) == 1
        (tmp_path / "mnt" / "file").write_text("kept, and more")
        subprocess.run(["umount", str(tmp_path / "mnt")], check=True)
        host.commit("name", "key")
        with viewed(host, "name") as files:
            assert (files / "file").read_text() == "kept, and more"
    assert_nothing_left(tmp_path)

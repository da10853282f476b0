"""Scratch disks in a real utility VM: how much they grow in use, and that they can be enlarged."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.scsi import MountConfig
from harness.uvm import UtilityVm
from snapshotter.blockio import DiskContent
from snapshotter.ext4.mkfs import format_ext4
from snapshotter.units import GIB, MIB
from snapshotter.vhdx import VhdxDisk, emit_vhdx, write_content
from tests.snapshotter.ext4.oracles import fsck

pytestmark = pytest.mark.qemu

WORKLOAD = """
set -e; cd $1
cp -a /usr/lib copied
i=0; while [ $i -lt 200 ]; do mkdir d$i; echo $i > d$i/file; i=$((i+1)); done
rm -r copied; cp -a /usr/lib again
i=0; while [ $i -lt 200 ]; do rm -r d$i; i=$((i+3)); done
sync
"""
# EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64): what resize2fs calls on a mounted file system.
RESIZE = """
import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x40086610, struct.pack("<Q", int(sys.argv[2])))
space = os.statvfs(sys.argv[1]); print(space.f_blocks * space.f_frsize)
"""


def in_guest(uvm: UtilityVm, *command: str) -> str:
    done = uvm.processes.start(list(command)).wait()
    assert done.exit_code == 0, done.stderr
    return done.text


def check(disk: Path, size: int, raw: Path) -> None:
    """Have e2fsck look at the first `size` bytes of a VHDX."""
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(disk), str(raw)], check=True)
    with raw.open("r+b") as file:
        file.truncate(size)
    fsck(raw)
    raw.unlink()


def test_a_used_scratch_is_smaller_than_one_of_mke2fs_with_upstreams_options(
    uvm: UtilityVm, scratch: Path, tmp_path: Path
) -> None:
    raw, peer = tmp_path / "peer.raw", tmp_path / "peer.vhdx"
    with raw.open("wb") as file:
        file.truncate(20 * GIB)
    options = [
        "-E",
        "lazy_itable_init=0,nodiscard",
        "-O",
        "^has_journal,sparse_super2,^resize_inode",
    ]
    subprocess.run(["mke2fs", "-q", "-t", "ext4", *options, str(raw)], check=True)
    convert = ["qemu-img", "convert", "-O", "vhdx", "-o", "block_size=1M", str(raw), str(peer)]
    subprocess.run(convert, check=True)
    raw.unlink()
    fresh = {scratch: scratch.stat().st_size, peer: peer.stat().st_size}
    assert fresh[scratch] <= 5 * MIB < fresh[peer]
    for disk in fresh:
        with uvm.scsi.acquire(disk, mount=MountConfig(), holder="test") as held:
            assert held.guest_path is not None
            in_guest(uvm, "/bin/sh", "-c", WORKLOAD, "workload", held.guest_path)
    assert scratch.stat().st_size > fresh[scratch]
    assert scratch.stat().st_size < peer.stat().st_size
    check(scratch, 20 * GIB, raw)


def test_a_mounted_scratch_grows_to_its_maximum(uvm: UtilityVm, tmp_path: Path) -> None:
    size, most = 20 * GIB, 96 * GIB  # 256 groups to a descriptor block: another two are needed
    content = format_ext4(size, grow_to=most)
    disk = tmp_path / "growing.vhdx"
    wide = DiskContent(most, content.pieces, content.zeros)
    write_content(disk, emit_vhdx(wide, block_size=MIB))
    assert disk.stat().st_size <= 5 * MIB
    with uvm.scsi.acquire(disk, mount=MountConfig(), holder="test") as held:
        assert held.guest_path is not None
        in_guest(uvm, "/bin/sh", "-c", f"echo before > {held.guest_path}/file")
        command = ["/usr/bin/python3", "-S", "-c", RESIZE, held.guest_path, str(most // 4096)]
        assert int(in_guest(uvm, *command)) > 0.97 * most
        assert in_guest(uvm, "/bin/cat", f"{held.guest_path}/file") == "before"
    check(disk, most, tmp_path / "grown.raw")
    with VhdxDisk.open(disk) as opened:
        assert opened.size == most

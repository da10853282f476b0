"""Disks: emitting a formatted scratch, and giving each snapshot its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.measure import Comparison, Figure, compare
from snapshotter.scratch.reflink import ReflinkSource
from snapshotter.scratch.template import ScratchTemplate
from snapshotter.units import GIB, KIB, MIB
from snapshotter.vhdx import Allocation

_SCRATCH = 20 * GIB
# hcsshim internal/lcow/scratch.go
_UPSTREAM_MKFS = ["-q", "-E", "lazy_itable_init=0,nodiscard", "-O"]
_UPSTREAM_FEATURES = "^has_journal,sparse_super2,^resize_inode"


def run() -> Iterator[Comparison | Figure]:
    """Yield every result of this family."""
    with tempfile.TemporaryDirectory(prefix="lcowlab-bench-") as name:
        directory = Path(name)
        yield _formatted_scratch(directory, durable=False)
        yield _formatted_scratch(directory, durable=True)
        template = ScratchTemplate.build(_SCRATCH)
        ours = directory / "size.vhdx"
        template.write(ours)
        yield Figure("formatted 20 GB scratch: file", ours.stat().st_size / MIB, "MiB", 5.0)
        yield compare(
            "formatted 20 GB scratch: build in memory",
            lambda: ScratchTemplate.build(_SCRATCH),
            "the same, written to a file",
            lambda: _write_fresh(ScratchTemplate.build(_SCRATCH), directory, durable=False),
            target_ms=10.0,
        )
        yield _snapshot_disk(directory, template, Allocation.SPARSE, target_ratio=0.02)
        yield _snapshot_disk(directory, template, Allocation.DENSE, target_ratio=0.2)
        yield from _reflinked_disk(directory, template)


def _write_fresh(template: ScratchTemplate, directory: Path, *, durable: bool) -> None:
    path = directory / "fresh.vhdx"
    template.write(path, durable=durable)
    path.unlink()


def _formatted_scratch(directory: Path, *, durable: bool) -> Comparison:
    """Neither side flushes, or both do."""
    raw, converted = directory / "peer.raw", directory / "peer.vhdx"

    def peer() -> None:
        with raw.open("wb") as file:
            file.truncate(_SCRATCH)
        command = ["/sbin/mke2fs", "-t", "ext4", *_UPSTREAM_MKFS, _UPSTREAM_FEATURES, str(raw)]
        subprocess.run(command, check=True)
        subprocess.run(
            ["qemu-img", "convert", "-O", "vhdx", "-o", "block_size=1M", str(raw), str(converted)],
            check=True,
        )
        if durable:
            with converted.open("r+b") as file:
                os.fsync(file.fileno())
        raw.unlink()
        converted.unlink()

    return compare(
        f"formatted 20 GB scratch{', flushed' if durable else ''}",
        lambda: _write_fresh(ScratchTemplate.build(_SCRATCH), directory, durable=durable),
        "mke2fs with upstream's options + qemu-img convert",
        peer,
        target_ratio=None if durable else 0.05,
    )


def _snapshot_disk(
    directory: Path, template: ScratchTemplate, allocation: Allocation, *, target_ratio: float
) -> Comparison:
    def ours() -> None:
        path = directory / "sandbox.vhdx"
        template.write_staged(path, durable=False, allocation=allocation)
        path.unlink()

    return compare(
        f"disk for a snapshot, {allocation.value}",
        ours,
        "copy of 17 MiB, 32 KiB at a time",
        _upstream_copy(directory),
        rounds=25,
        target_ratio=target_ratio,
    )


def _upstream_copy(directory: Path) -> Callable[[], None]:
    """Upstream copies a template of 17 MiB with io.Copy's buffer of 32 KiB, without a flush."""
    source, copy = directory / "template.vhdx", directory / "copy.vhdx"
    source.write_bytes(b"\x5a" * (17 * MIB))

    def peer() -> None:
        with source.open("rb", buffering=0) as read, copy.open("wb", buffering=0) as write:
            while part := read.read(32 * KIB):
                write.write(part)
        copy.unlink()

    return peer


def _reflinked_disk(directory: Path, template: ScratchTemplate) -> Iterator[Comparison]:
    with _xfs(directory) as place:
        if place is None:
            return
        opened = ReflinkSource.open(place, template)
        assert opened is not None, "XFS shares blocks"
        with opened as source:

            def ours() -> None:
                path = place / "sandbox.vhdx"
                assert source.write_staged(path, durable=False)
                path.unlink()

            yield compare(
                "disk for a snapshot, reflink (XFS)",
                ours,
                "copy of 17 MiB, 32 KiB at a time",
                _upstream_copy(place),
                rounds=25,
                target_ratio=0.01,
            )


@contextmanager
def _xfs(directory: Path) -> Iterator[Path | None]:
    """Yield a mounted XFS, or None with the reason printed."""
    image, place = directory / "xfs.raw", directory / "xfs"
    program = shutil.which("mkfs.xfs", path="/sbin:/usr/sbin")
    if program is None or os.geteuid() != 0:
        print("skipped: reflink needs root and mkfs.xfs (package xfsprogs)", file=sys.stderr)
        yield None
        return
    with image.open("wb") as file:
        file.truncate(512 * MIB)
    place.mkdir()
    subprocess.run([program, "-q", str(image)], check=True)
    mount = ["mount", "-o", "loop", str(image), str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"skipped: reflink: {done.stderr.strip()}", file=sys.stderr)
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)

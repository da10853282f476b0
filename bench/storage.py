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
_BURST = 8  # pods that a node starts at once
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
        for allocation, target_ratio in ((Allocation.SPARSE, 0.02), (Allocation.DENSE, 0.2)):
            yield from _snapshot_disks(
                allocation.value, directory, _writer(template, allocation), target_ratio
            )
        yield from _reflinked_disks(directory, template)


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


def _writer(template: ScratchTemplate, allocation: Allocation) -> Callable[[Path], object]:
    return lambda path: template.write_staged(path, durable=False, allocation=allocation)


def _snapshot_disks(
    kind: str, directory: Path, make: Callable[[Path], object], target_ratio: float
) -> Iterator[Comparison]:
    """Upstream copies a template of 17 MiB with io.Copy's buffer of 32 KiB, without a flush.

    A copy empties the processor's caches, so that one disk after one copy is made twice as slowly
    as disks in a row: both are shown. Removing what was made is nobody's time.
    """
    source, place = directory / "template.vhdx", directory / "made"
    source.write_bytes(b"\x5a" * (17 * MIB))
    place.mkdir(exist_ok=True)

    def copy(path: Path) -> None:
        with source.open("rb", buffering=0) as read, path.open("wb", buffering=0) as write:
            while part := read.read(32 * KIB):
                write.write(part)

    def many(one: Callable[[Path], object], count: int) -> Callable[[], None]:
        paths = [place / f"{number}.vhdx" for number in range(count)]
        return lambda: [one(path) for path in paths].clear()

    def reset() -> None:
        for path in place.iterdir():
            path.unlink()

    for count, name, target in (
        (_BURST, f"disks for {_BURST} snapshots, {kind}", target_ratio),
        (1, f"disk for a snapshot, {kind}, after other work", None),
    ):
        yield compare(
            name,
            many(make, count),
            "copy of 17 MiB, 32 KiB at a time" + f", {count} times" * (count > 1),
            many(copy, count),
            rounds=25,
            target_ratio=target,
            reset=reset,
        )
    source.unlink()


def _reflinked_disks(directory: Path, template: ScratchTemplate) -> Iterator[Comparison]:
    with _xfs(directory) as place:
        if place is None:
            return
        opened = ReflinkSource.open(place, template)
        assert opened is not None, "XFS shares blocks"
        with opened as source:
            yield from _snapshot_disks(
                "reflink (XFS)",
                place,
                lambda path: source.write_staged(path, durable=False),
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

"""Disks: emitting a formatted scratch, and giving each snapshot its own."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.measure import Comparison, Figure, compare
from snapshotter.scratch.template import ScratchTemplate
from snapshotter.units import GIB, KIB, MIB

_SCRATCH = 20 * GIB
# hcsshim internal/lcow/scratch.go
_UPSTREAM_MKFS = ["-q", "-E", "lazy_itable_init=0,nodiscard", "-O"]
_UPSTREAM_FEATURES = "^has_journal,sparse_super2,^resize_inode"


def run() -> Iterator[Comparison | Figure]:
    """Yield every result of this family."""
    with tempfile.TemporaryDirectory(prefix="lcowlab-bench-") as name:
        directory = Path(name)
        yield _formatted_scratch(directory)
        template = ScratchTemplate.build(_SCRATCH)
        ours = directory / "size.vhdx"
        template.write(ours)
        yield Figure("formatted 20 GB scratch: file", ours.stat().st_size / MIB, "MiB", 5.0)
        yield compare(
            "formatted 20 GB scratch: build in memory",
            lambda: ScratchTemplate.build(_SCRATCH),
            "the same, written to a file",
            lambda: _write_fresh(ScratchTemplate.build(_SCRATCH), directory),
            target_ms=10.0,
        )
        yield _snapshot_disk(directory, template)


def _write_fresh(template: ScratchTemplate, directory: Path) -> None:
    path = directory / "fresh.vhdx"
    template.write(path)
    path.unlink()


def _formatted_scratch(directory: Path) -> Comparison:
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
        raw.unlink()
        converted.unlink()

    return compare(
        "formatted 20 GB scratch: in a durable file",
        lambda: _write_fresh(ScratchTemplate.build(_SCRATCH), directory),
        "mke2fs with upstream's options + qemu-img convert",
        peer,
        target_ratio=0.10,
    )


def _snapshot_disk(directory: Path, template: ScratchTemplate) -> Comparison:
    """Upstream copies a template of 17 MiB with io.Copy's buffer of 32 KiB, without a flush."""
    source, copy = directory / "template.vhdx", directory / "copy.vhdx"
    source.write_bytes(b"\x5a" * (17 * MIB))

    def peer() -> None:
        with source.open("rb", buffering=0) as read, copy.open("wb", buffering=0) as write:
            while part := read.read(32 * KIB):
                write.write(part)
        copy.unlink()

    def ours() -> None:
        path = directory / "sandbox.vhdx"
        template.write(path, durable=False)
        path.unlink()

    return compare(
        "disk for a snapshot",
        ours,
        "copy of 17 MiB, 32 KiB at a time",
        peer,
        rounds=25,
        target_ratio=0.05,
    )

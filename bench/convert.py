"""Disks between formats, and reads out of a VHDX, beside QEMU, libvhdi and dissect.hypervisor.

The two libraries are in requirements-bench.lock; without them their rows are left out.
`LCOWLAB_BENCH_CONVERT_MIB` makes the disk smaller than the 860 MB of the target.
"""

from __future__ import annotations

import importlib
import os
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from bench.measure import Comparison, Figure, compare
from snapshotter.convert import convert_disk
from snapshotter.units import KIB, MIB
from snapshotter.vhdx import VhdxDisk

_DATA_MIB: Final = int(os.environ.get("LCOWLAB_BENCH_CONVERT_MIB", "820"))
_RANDOM_READS: Final = 20_000
_ROUNDS: Final = 5
_LIBRARY_STEP: Final = MIB  # the fastest for both libraries


def run() -> Iterator[Comparison | Figure]:
    """Yield every result of this family."""
    with tempfile.TemporaryDirectory(prefix="lcowlab-bench-") as name:
        directory = Path(name)
        raw, vhdx = directory / "disk.raw", directory / "disk.vhdx"
        _write_disk(raw)
        _convert_with_qemu("vhdx", raw, vhdx)
        readers = _library_readers(vhdx)
        yield from _to_raw(directory, vhdx, readers)
        yield _to_vhdx(directory, raw)
        yield from _random_reads(vhdx, raw.stat().st_size, readers)


def _write_disk(path: Path) -> None:
    """Nine tenths of it is data that is never zero, the rest holes: as a layer in its disk."""
    part = bytearray(os.urandom(MIB))
    with path.open("wb") as file:
        for number in range(_DATA_MIB * 10 // 9):
            if number % 10 == 9:
                file.seek(MIB, os.SEEK_CUR)
            else:
                part[number % MIB] ^= 1  # no two blocks are equal
                file.write(part)
        file.truncate(file.tell() + MIB)


def _convert_with_qemu(to: str, source: Path, target: Path) -> None:
    options = ["-o", "block_size=1M"] if to == "vhdx" else []
    command = ["qemu-img", "convert", "-O", to, *options, str(source), str(target)]
    subprocess.run(command, check=True)


def _to_raw(
    directory: Path, vhdx: Path, readers: dict[str, Callable[[], Any]]
) -> Iterator[Comparison]:
    mine, theirs = directory / "ours.raw", directory / "peer.raw"

    def ours() -> None:
        convert_disk(vhdx, mine, durable=False)
        mine.unlink()

    def qemu() -> None:
        _convert_with_qemu("raw", vhdx, theirs)
        theirs.unlink()

    def library(open_disk: Callable[[], Any]) -> None:
        disk = open_disk()
        with theirs.open("wb", buffering=0) as file:
            while part := disk.read(_LIBRARY_STEP):
                file.write(part)
        disk.close()
        theirs.unlink()

    convert_disk(vhdx, mine, durable=False)
    _convert_with_qemu("raw", vhdx, theirs)
    subprocess.run(["cmp", mine, theirs], check=True)
    mine.unlink()
    theirs.unlink()
    name = f"VHDX to raw, {_DATA_MIB} MiB of data"
    yield compare(name, ours, "qemu-img convert", qemu, rounds=_ROUNDS, target_ratio=0.8)
    for peer, target in (("dissect.hypervisor", 0.5), ("libvhdi", 1.0)):
        if peer in readers:
            opener = readers[peer]
            yield compare(
                name,
                ours,
                peer,
                lambda opener=opener: library(opener),  # type: ignore[misc]
                rounds=_ROUNDS,
                target_ratio=target,
            )


def _to_vhdx(directory: Path, raw: Path) -> Comparison:
    mine, theirs = directory / "ours.vhdx", directory / "peer.vhdx"

    def ours() -> None:
        convert_disk(raw, mine, durable=False)
        mine.unlink()

    def qemu() -> None:
        _convert_with_qemu("vhdx", raw, theirs)
        theirs.unlink()

    name = f"raw to VHDX, {_DATA_MIB} MiB of data"
    return compare(name, ours, "qemu-img convert", qemu, rounds=_ROUNDS, target_ratio=0.8)


def _random_reads(
    vhdx: Path, size: int, readers: dict[str, Callable[[], Any]]
) -> Iterator[Comparison]:
    draw = random.Random(20)
    offsets = [draw.randrange(size // (4 * KIB)) * 4 * KIB for _ in range(_RANDOM_READS)]

    def ours() -> None:
        with VhdxDisk.open(vhdx) as disk:
            read_at = disk.read_at
            for offset in offsets:
                read_at(offset, 4 * KIB)

    def library(open_disk: Callable[[], Any]) -> None:
        disk = open_disk()
        for offset in offsets:
            disk.seek(offset)
            disk.read(4 * KIB)
        disk.close()

    for peer, target in (("dissect.hypervisor", 0.25), ("libvhdi", 0.7)):
        if peer in readers:
            opener = readers[peer]
            yield compare(
                f"{_RANDOM_READS} random reads of 4 KiB",
                ours,
                peer,
                lambda opener=opener: library(opener),  # type: ignore[misc]
                rounds=_ROUNDS,
                target_ratio=target,
            )


def _library_readers(vhdx: Path) -> dict[str, Callable[[], Any]]:
    """Return, by name, what opens the disk with each library that is installed."""
    readers: dict[str, Callable[[], Any]] = {}
    try:
        pyvhdi = importlib.import_module("pyvhdi")
    except ImportError:
        pass
    else:

        def open_libvhdi() -> object:
            file = pyvhdi.file()
            file.open(str(vhdx))
            return file

        readers["libvhdi"] = open_libvhdi
    try:
        dissect = importlib.import_module("dissect.hypervisor.disk.vhdx")
    except ImportError:
        pass
    else:
        # Given a path and not a file, it would look for the parents of the disk.
        readers["dissect.hypervisor"] = lambda: dissect.VHDX(vhdx.open("rb"))
    return readers

"""Disks between formats, beside QEMU, libvhdi and dissect.hypervisor.

`LCOWLAB_BENCH_CONVERT_MIB` makes the disk smaller than the 860 MB of the target.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from bench.measure import Comparison, Figure, compare
from snapshotter.convert import convert_disk
from snapshotter.units import MIB

_DATA_MIB: Final = int(os.environ.get("LCOWLAB_BENCH_CONVERT_MIB", "820"))
_ROUNDS: Final = 5
_LIBRARY_STEP: Final = MIB  # the fastest for both libraries


def run() -> Iterator[Comparison | Figure]:
    """Yield every result of this family."""
    with tempfile.TemporaryDirectory(prefix="lcowlab-bench-") as name:
        directory = Path(name)
        raw, vhdx = directory / "disk.raw", directory / "disk.vhdx"
        _write_disk(raw)
        _convert_with_qemu("vhdx", raw, vhdx)
        yield from _to_raw(directory, vhdx)
        yield _to_vhdx(directory, raw)


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


def _to_raw(directory: Path, vhdx: Path) -> Iterator[Comparison]:
    import pyvhdi
    from dissect.hypervisor.disk.vhdx import VHDX

    mine, theirs = directory / "ours.raw", directory / "peer.raw"

    def ours() -> None:
        convert_disk(vhdx, mine, durable=False)

    def qemu() -> None:
        _convert_with_qemu("raw", vhdx, theirs)

    def reset() -> None:
        mine.unlink(missing_ok=True)
        theirs.unlink(missing_ok=True)

    def write(read: Callable[[int], bytes]) -> None:
        with theirs.open("wb", buffering=0) as file:
            while part := read(_LIBRARY_STEP):
                file.write(part)

    def dissect() -> None:
        with vhdx.open("rb") as file:
            write(VHDX(file).read)

    def libvhdi() -> None:
        file = pyvhdi.file()
        file.open(str(vhdx))
        write(file.read)
        file.close()

    convert_disk(vhdx, mine, durable=False)
    _convert_with_qemu("raw", vhdx, theirs)
    subprocess.run(["cmp", mine, theirs], check=True)
    reset()
    name = f"VHDX to raw, {_DATA_MIB} MiB of data"
    yield compare(
        name, ours, "qemu-img convert", qemu, rounds=_ROUNDS, reset=reset, target_ratio=0.8
    )
    yield compare(
        name,
        ours,
        "dissect.hypervisor",
        dissect,
        rounds=_ROUNDS,
        reset=reset,
        target_ratio=0.5,
        note="most of both is the kernel's copying, into the page cache and out of it",
    )
    yield compare(name, ours, "libvhdi", libvhdi, rounds=_ROUNDS, reset=reset, target_ratio=1.0)


def _to_vhdx(directory: Path, raw: Path) -> Comparison:
    mine, theirs = directory / "ours.vhdx", directory / "peer.vhdx"

    def ours() -> None:
        convert_disk(raw, mine, durable=False)

    def qemu() -> None:
        _convert_with_qemu("vhdx", raw, theirs)

    def reset() -> None:
        mine.unlink(missing_ok=True)
        theirs.unlink(missing_ok=True)

    name = f"raw to VHDX, {_DATA_MIB} MiB of data"
    return compare(
        name, ours, "qemu-img convert", qemu, rounds=_ROUNDS, reset=reset, target_ratio=0.8
    )

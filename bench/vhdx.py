"""VHDX: random reads, opening the largest disk, and writing, beside what else reads VHDX."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.measure import Comparison, Figure, compare
from snapshotter.units import GIB, KIB, MIB, TIB
from snapshotter.vhdx import VhdxDisk, create_vhdx

_READS = 20_000
_DATA = 860 * MIB
_SEED = 20_000

# In a process of its own, so that nothing else's memory counts. Not ru_maxrss: that has the memory
# of the process that started it, [Linux] fs/exec.c setmax_mm_hiwater_rss.
_OPEN_LARGEST = """
import json, sys
import numpy, snapshotter.vhdx as vhdx
def peak_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
before = peak_kib()
with vhdx.VhdxDisk.open(sys.argv[1]) as disk:
    disk.read_at(disk.size - 512, 512)
    opened = peak_kib()
    for number in range(20000):
        disk.read_at(disk.size // 20000 * number // 512 * 512, 512)
print(json.dumps({"opened": opened / 1024, "used": peak_kib() / 1024, "imports": before / 1024}))
"""


def run() -> Iterator[Comparison | Figure]:
    """Yield every result of this family."""
    with tempfile.TemporaryDirectory(prefix="lcowlab-bench-") as name:
        directory = Path(name)
        yield from _largest_disk(directory)
        disk = _sample(directory)
        yield from _random_reads(disk)
        yield _writes(directory)


def _largest_disk(directory: Path) -> Iterator[Figure]:
    path = directory / "largest.vhdx"
    create_vhdx(path, 64 * TIB)
    with VhdxDisk.open(path, writable=True) as disk:
        for terabyte in range(64):
            disk.write_at(terabyte * TIB, b"x")
    command = [sys.executable, "-c", _OPEN_LARGEST, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    used = json.loads(done.stdout)
    path.unlink()
    imports = f"the process, {used['imports']:.0f} MiB of it imports"
    yield Figure(f"opening a 64 TiB disk: {imports}", used["opened"], "MiB", 64.0)
    yield Figure("reading all over it: the process", used["used"], "MiB", 64.0)


def _sample(directory: Path) -> Path:
    """A disk made by QEMU from random data."""
    raw, path = directory / "sample.raw", directory / "sample.vhdx"
    chance = random.Random(_SEED)
    with raw.open("wb") as file:
        for _ in range(_DATA // MIB):
            file.write(chance.randbytes(64 * KIB) * 16)
    command = ["qemu-img", "convert", "-O", "vhdx", "-o", "block_size=1M", str(raw), str(path)]
    subprocess.run(command, check=True)
    raw.unlink()
    return path


def _random_reads(path: Path) -> Iterator[Comparison]:
    import pyvhdi
    from dissect.hypervisor.disk.vhdx import VHDX

    chance = random.Random(_SEED)
    offsets = [chance.randrange(_DATA // 4096) * 4096 for _ in range(_READS)]

    def ours() -> None:
        with VhdxDisk.open(path) as disk:
            read = disk.read_at
            for offset in offsets:
                read(offset, 4096)

    def libvhdi() -> None:
        file = pyvhdi.file()
        file.open(str(path))
        read = file.read_buffer_at_offset
        for offset in offsets:
            read(4096, offset)
        file.close()

    def dissect() -> None:
        with path.open("rb") as file:
            stream = VHDX(file)
            for offset in offsets:
                stream.seek(offset)
                stream.read(4096)

    name = f"{_READS} random reads of 4 KiB, opening included"
    yield compare(name, ours, "libvhdi", libvhdi, target_ratio=0.7)
    yield compare(name, ours, "dissect.hypervisor", dissect, rounds=5, target_ratio=0.25)


def _writes(directory: Path) -> Comparison:
    """Both write 200 blocks of 64 KiB over a new disk and leave it closed and durable."""
    path = directory / "written.vhdx"
    chance = random.Random(_SEED)
    offsets = [block * 16 * MIB for block in chance.sample(range(1024), 200)]
    data = b"w" * (64 * KIB)

    def ours() -> None:
        path.unlink(missing_ok=True)
        create_vhdx(path, 16 * GIB)
        with VhdxDisk.open(path, writable=True) as disk:
            for offset in offsets:
                disk.write_at(offset, data)

    commands = [part for offset in offsets for part in ("-c", f"write -q -P 119 {offset} 64k")]

    def qemu() -> None:
        path.unlink(missing_ok=True)
        create_vhdx(path, 16 * GIB)
        subprocess.run(["qemu-io", "-f", "vhdx", *commands, str(path)], check=True)

    return compare("200 scattered writes of 64 KiB", ours, "qemu-io", qemu, rounds=5)

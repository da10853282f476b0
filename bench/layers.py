"""Layers: a tar becomes layer.vhd beside what copies the same bytes, decompresses or formats them.

Two layers stand for the two ends: a large one, whose time is the copying, and one of many small
files, whose time is the bookkeeping. The SHA-256 of the tar (its diff id) is part of our work and
not of any peer's.
"""

from __future__ import annotations

import gzip
import io
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import zstandard
from isal import igzip

from bench.measure import Comparison, Figure, compare
from snapshotter.ext4.layertar import convert_layer
from snapshotter.units import GIB, KIB, MIB

_ENTRIES: Final = 38_500
_LARGE: Final = 700 * MIB
_SMALL_FILES: Final = 36_000
_SMALL: Final = 200 * MIB
_ROUNDS: Final = 5
_MEMORY_ENTRIES: Final = 300_000
_MAX_RESIDENT_MB: Final = 150.0
_MKE2FS: Final = ("/sbin/mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-N", "60000")
_MKE2FS_NOTE: Final = (
    "mke2fs looks through a directory for each name that it adds: its time is that of the largest"
    " directories, and this layer has none; see the next row"
)
_POOL: Final = 32 * MIB
_READ_SIZE: Final = 512 * KIB


def run() -> Iterator[Comparison | Figure]:
    """Yield every result of this family."""
    with tempfile.TemporaryDirectory(prefix="lcowlab-bench-") as name:
        directory = Path(name)
        large = _large_layer(directory / "large.tar")
        small = _small_layer(directory / "small.tar")
        yield _against_copy("layer of 38k entries, over 700 MB", large, target_ratio=3.5)
        yield _against_copy("layer of 36k small files, 200 MB", small, target_ratio=5.0)
        yield _against_mke2fs(
            "layer of 38k entries, over 700 MB", large, target_ratio=1 / 45, note=_MKE2FS_NOTE
        )
        crowded = _crowded_layer(directory / "crowded.tar")
        yield _against_mke2fs("layer of 20k names in one directory", crowded)
        crowded.unlink()
        yield _against_isal(large)
        yield _against_zstandard(large)
        yield _resident("layer of 38k entries: memory", large)
        yield _resident("layer of 36k small files: memory", small)
        many = _many_entries(directory / "many.tar")
        yield _resident("layer of 300k entries: memory", many)


def _against_copy(name: str, tar: Path, *, target_ratio: float) -> Comparison:
    copy = tar.with_suffix(".copy")

    def peer() -> None:
        subprocess.run(["cp", str(tar), str(copy)], check=True)
        copy.unlink()

    return compare(
        f"{name} -> layer.vhd",
        lambda: _convert(tar),
        "cp of the same bytes",
        peer,
        rounds=_ROUNDS,
        target_ratio=target_ratio,
        note="ours hashes the tar too",
    )


def _against_mke2fs(
    name: str, tar: Path, *, target_ratio: float | None = None, note: str = ""
) -> Comparison:
    """One round only: the peer takes up to a minute."""
    tree, image = tar.with_suffix(".d"), tar.with_suffix(".raw")
    tree.mkdir()
    with tarfile.open(tar) as archive:
        archive.extractall(tree, filter="tar")
    with image.open("wb") as file:
        file.truncate(max(2 * tar.stat().st_size, GIB))
    ours_ms = min(_timed(lambda: _convert(tar)) for _ in range(2))
    peer_ms = _timed(
        lambda: subprocess.run(
            [*_MKE2FS, "-d", str(tree), str(image)],
            check=True,
        )
    )
    subprocess.run(["rm", "-rf", str(tree), str(image)], check=True)
    return Comparison(
        f"{name} -> layer.vhd",
        ours_ms=ours_ms,
        ours_min_ms=ours_ms,
        peer="mke2fs -d of the unpacked tree",
        peer_ms=peer_ms,
        rounds=1,
        target_ratio=target_ratio,
        note=note,
    )


def _against_isal(tar: Path) -> Comparison:
    packed = tar.with_suffix(".tar.gz")
    with tar.open("rb") as source, gzip.open(packed, "wb", compresslevel=1) as target:
        while part := source.read(MIB):
            target.write(part)

    def peer() -> None:
        buffer = bytearray(_READ_SIZE)
        opener: Callable[[Path, str], io.BufferedIOBase] = igzip.open  # its stub has no types
        with opener(packed, "rb") as stream:
            while stream.readinto(buffer):
                pass

    result = compare(
        "the large layer as .gz -> layer.vhd",
        lambda: _convert(packed),
        "isal decompression alone",
        peer,
        rounds=3,
        target_ratio=1.7,
    )
    packed.unlink()
    return result


def _against_zstandard(tar: Path) -> Comparison:
    packed = tar.with_suffix(".tar.zst")
    with tar.open("rb") as source, packed.open("wb") as target:
        zstandard.ZstdCompressor(level=3).copy_stream(source, target)

    def peer() -> None:
        buffer = bytearray(_READ_SIZE)
        with packed.open("rb") as file:
            stream = zstandard.ZstdDecompressor().stream_reader(file)
            while stream.readinto(buffer):
                pass

    result = compare(
        "the large layer as .zst -> layer.vhd",
        lambda: _convert(packed),
        "zstandard decompression alone",
        peer,
        rounds=3,
        target_ratio=1.8,
    )
    packed.unlink()
    return result


def _convert(tar: Path, *, durable: bool = False) -> None:
    target = tar.with_name("layer.vhd")
    with tar.open("rb", buffering=0) as stream:
        # No peer waits for the disk, so ours does not either; `durable` has a row of its own.
        convert_layer(stream, target, durable=durable)
    target.unlink()


# VmHWM and not ru_maxrss, which a child inherits from the process that started it.
_CHILD: Final = """
import sys
from pathlib import Path
from snapshotter.ext4.layertar import convert_layer
with open(sys.argv[1], "rb", buffering=0) as stream:
    convert_layer(stream, Path(sys.argv[2]))
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


def _resident(name: str, tar: Path) -> Figure:
    target = tar.with_name("layer.vhd")
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tar), str(target)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    target.unlink()
    return Figure(name, int(done.stdout) * KIB / 1e6, "MB resident", _MAX_RESIDENT_MB)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def _large_layer(path: Path) -> Path:
    """25k files below 4 KiB, 6k above, links, xattrs and directories; the same every time."""
    rng = random.Random(1)
    pool = _pool(rng)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        directories = _directories(tar, rng, 2_500)
        small = 25_500
        big = 6_000
        for number, directory in enumerate(_spread(directories, small + big, rng)):
            size = _LARGE // big if number % 21 < 4 else rng.randrange(4 * KIB)
            if number % 400 == 0:
                xattrs = {"SCHILY.xattr.security.capability": "\1\0\0\2" + "\0" * 16}
            else:
                xattrs = {}
            _add_file(tar, f"{directory}/file-{number:05}", size, rng, pool, xattrs)
        for number in range(_ENTRIES - small - big - len(directories)):
            info = tarfile.TarInfo(f"{directories[number % len(directories)]}/link-{number}")
            info.type, info.linkname = tarfile.SYMTYPE, f"../target-{number}"
            tar.addfile(info)
    return path


def _small_layer(path: Path) -> Path:
    rng = random.Random(2)
    pool = _pool(rng)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        directories = _directories(tar, rng, 2_000)
        for number, directory in enumerate(_spread(directories, _SMALL_FILES, rng)):
            size = rng.randrange(2 * _SMALL // _SMALL_FILES)
            _add_file(tar, f"{directory}/file-{number:05}", size, rng, pool, {})
    return path


def _crowded_layer(path: Path) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for number in range(20_000):
            tar.addfile(tarfile.TarInfo(f"spool/message-{number:05}"))
    return path


def _many_entries(path: Path) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for number in range(_MEMORY_ENTRIES):
            info = tarfile.TarInfo(f"usr/lib/node_modules/d{number // 40:05}/module-{number:06}.js")
            info.size = 10
            tar.addfile(info, io.BytesIO(b"0123456789"))
    return path


def _pool(rng: random.Random) -> bytes:
    """Bytes that compress about as well as programs do, longer than a compressor's window."""
    words = [rng.randbytes(rng.randrange(3, 12)) for _ in range(20_000)]
    frequency = [1 / rank for rank in range(1, len(words) + 1)]
    return b"".join(rng.choices(words, frequency, k=_POOL // 7))


def _directories(tar: tarfile.TarFile, rng: random.Random, count: int) -> list[str]:
    made = ["usr"]
    for number in range(count):
        parent = made[rng.randrange(max(0, len(made) - 200), len(made))]
        if parent.count("/") > 6:
            parent = "usr"
        made.append(f"{parent}/dir-{number:04}")
    for name in made:
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(info)
    return made


def _spread(directories: list[str], files: int, rng: random.Random) -> list[str]:
    """Return the directory of each file: those of one directory come together, as in any tar."""
    counts = [0] * len(directories)
    for _ in range(files):
        counts[rng.randrange(len(directories))] += 1
    return [name for name, count in zip(directories, counts, strict=True) for _ in range(count)]


def _add_file(
    tar: tarfile.TarFile,
    name: str,
    size: int,
    rng: random.Random,
    pool: bytes,
    xattrs: dict[str, str],
) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.pax_headers = size, 1_700_000_000, xattrs
    start = rng.randrange(max(len(pool) - size, 1))
    tar.addfile(info, io.BytesIO(pool[start : start + size].ljust(size, b"\5")))

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.blockio import DiskContent, LocalBlockFile
from snapshotter.convert import VhdxOptions, convert_disk, data_runs, write_disk
from snapshotter.diskformat import DiskFormat
from snapshotter.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    UnavailableError,
    VhdError,
    VhdxCorruptError,
)
from snapshotter.reservation import ReservingWriter
from snapshotter.units import GIB, KIB, MIB, TIB
from snapshotter.vhd import FixedVhd
from snapshotter.vhdx import (
    VhdxDisk,
    create_child,
    create_vhdx,
    emit_vhdx,
    open_chain,
    write_content,
)
from tests.snapshotter.vhdx import oracle


def sparse_file(path: Path, size: int, *pieces: tuple[int, bytes]) -> Path:
    with path.open("wb") as file:
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
        file.truncate(size)
    return path


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def sample(folder: Path) -> Path:
    """64 MiB with data at the start, across a block, alone in a block, and at the very end."""
    return sparse_file(
        folder / "disk.raw",
        64 * MIB,
        (0, noise(5000)),
        (3 * MIB - 70_000, noise(200_000, 2)),
        (40 * MIB + 4096, b"x"),
        (64 * MIB - 512, noise(512, 3)),
    )


@oracle.needs_qemu
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("block_size", [MIB, 32 * MIB])
def test_qemu_reads_a_vhdx_made_of_a_raw_disk(tmp_path: Path, fixed: bool, block_size: int) -> None:
    raw, made = sample(tmp_path), tmp_path / "disk.vhdx"
    convert_disk(raw, made, vhdx=VhdxOptions(fixed=fixed, block_size=block_size))
    oracle.check(made)
    assert oracle.to_raw(made, tmp_path / "back.raw").read_bytes() == raw.read_bytes()


@oracle.needs_qemu
def test_qemu_reads_a_fixed_vhd_made_of_a_raw_disk(tmp_path: Path) -> None:
    raw, made = sample(tmp_path), tmp_path / "disk.vhd"
    convert_disk(raw, made)
    assert oracle.info(made, image_format="vpc")["virtual-size"] == 64 * MIB
    back = oracle.to_raw(made, tmp_path / "back.raw", image_format="vpc")
    assert back.read_bytes() == raw.read_bytes()


@oracle.needs_qemu
@pytest.mark.parametrize("block_size", [MIB, 32 * MIB])
def test_a_vhdx_of_qemu_is_read_as_qemu_reads_it(tmp_path: Path, block_size: int) -> None:
    raw, made = sample(tmp_path), tmp_path / "qemu.vhdx"
    command = ["qemu-img", "convert", "-O", "vhdx", "-o", f"block_size={block_size}"]
    subprocess.run([*command, str(raw), str(made)], check=True)
    convert_disk(made, tmp_path / "back.raw")
    assert (tmp_path / "back.raw").read_bytes() == raw.read_bytes()


pieces = st.lists(
    st.tuples(
        st.integers(0, 5 * MIB // 512), st.integers(1, 600_000), st.integers(0, 3), st.booleans()
    ),
    max_size=5,
)


@settings(max_examples=25)
@given(
    pieces=pieces,
    tail=st.integers(1, 300),
    fixed=st.booleans(),
    block_size=st.sampled_from([MIB, 2 * MIB, 256 * MIB]),
    sector=st.sampled_from([512, 4096]),
)
def test_a_disk_survives_every_format(
    tmp_path_factory: pytest.TempPathFactory,
    pieces: list[tuple[int, int, int, bool]],
    tail: int,
    fixed: bool,
    block_size: int,
    sector: int,
) -> None:
    folder = tmp_path_factory.mktemp("formats")
    size = 5 * MIB + tail * 4096
    data = [
        (start * 512, (noise(length, seed) if seed else bytes(length))[: size - start * 512])
        for start, length, seed, _ in pieces
    ]
    raw = sparse_file(folder / "disk.raw", size, *data)
    expected = raw.read_bytes()
    options = VhdxOptions(fixed=fixed, block_size=block_size, logical_sector_size=sector)
    first = convert_disk(raw, folder / "1.vhdx", vhdx=options, durable=False)
    convert_disk(folder / "1.vhdx", folder / "2.vhd", durable=False)
    convert_disk(folder / "2.vhd", folder / "3.vhdx", durable=False)
    last = convert_disk(folder / "3.vhdx", folder / "4.raw", durable=False)
    assert (folder / "4.raw").read_bytes() == expected
    assert first.disk_size == last.disk_size == size
    with VhdxDisk.open(folder / "1.vhdx") as disk:
        assert disk.read_at(0, size) == expected
        assert disk.info().leave_blocks_allocated == fixed
        assert disk.info().logical_sector_size == sector
    shutil.rmtree(folder)


@given(
    pages=st.lists(st.sampled_from(["zero", "first", "last", "full"]), max_size=70),
    rest=st.integers(0, 4095),
    rest_is_zero=st.booleans(),
)
def test_runs_hold_all_data_and_leave_out_long_stretches_of_zeros(
    pages: list[str], rest: int, rest_is_zero: bool
) -> None:
    kinds = {
        "zero": bytes(4096),
        "first": b"x" + bytes(4095),
        "last": bytes(4095) + b"x",
        "full": b"y" * 4096,
    }
    part = b"".join(kinds[page] for page in pages) + (bytes(rest) if rest_is_zero else b"z" * rest)
    rebuilt = bytearray(len(part))
    runs = data_runs(part)
    for offset, length in runs:
        assert length > 0
        assert any(part[offset : offset + 4096])
        rebuilt[offset : offset + length] = part[offset : offset + length]
    assert rebuilt == part
    for (left, length), (right, _) in pairwise(runs):
        assert right - left - length >= 32 * KIB


def test_zeros_take_no_room_in_any_format(tmp_path: Path) -> None:
    raw = tmp_path / "zeros.raw"
    raw.write_bytes(bytes(40 * MIB))
    assert convert_disk(raw, tmp_path / "z.vhdx").stored == 0
    assert (tmp_path / "z.vhdx").stat().st_size == 4 * MIB
    for name in ("z.vhd", "again.raw"):
        convert_disk(raw, tmp_path / name)
        assert (tmp_path / name).stat().st_blocks * 512 < 64 * KIB
        assert (tmp_path / name).stat().st_size == 40 * MIB + (512 if name == "z.vhd" else 0)


@pytest.mark.root
def test_a_block_device_is_a_raw_disk(tmp_path: Path) -> None:
    raw = sample(tmp_path)
    done = subprocess.run(
        ["losetup", "--find", "--show", "--read-only", str(raw)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no loop devices here: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        made = convert_disk(device, tmp_path / "disk.vhdx")
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
    assert made.disk_size == 64 * MIB
    with VhdxDisk.open(tmp_path / "disk.vhdx") as disk:
        assert disk.read_at(0, 64 * MIB) == raw.read_bytes()


def test_a_sparse_disk_of_a_terabyte_is_quick_and_stays_sparse(tmp_path: Path) -> None:
    raw = sparse_file(tmp_path / "big.raw", TIB, (TIB - MIB, b"end"), (TIB // 2, b"middle"))
    convert_disk(raw, tmp_path / "big.vhdx")
    assert (tmp_path / "big.vhdx").stat().st_size < 16 * MIB
    convert_disk(tmp_path / "big.vhdx", tmp_path / "back.raw")
    with (tmp_path / "back.raw").open("rb") as file:
        file.seek(TIB - MIB)
        assert file.read(3) == b"end"
    assert (tmp_path / "back.raw").stat().st_blocks * 512 < MIB


@oracle.needs_qemu
def test_a_vhd_is_as_large_as_others_take_it_and_no_larger(tmp_path: Path) -> None:
    raw = sparse_file(tmp_path / "big.raw", 2040 * GIB, (0, b"start"))
    convert_disk(raw, tmp_path / "big.vhd")
    shown = oracle.info(tmp_path / "big.vhd", image_format="vpc")
    assert shown["virtual-size"] == 2040 * GIB
    os.truncate(raw, 2040 * GIB + 512)
    with pytest.raises(InvalidArgumentError, match="make it a VHDX"):
        convert_disk(raw, tmp_path / "larger.vhd")
    assert not (tmp_path / "larger.vhd").exists()


def test_room_that_was_reserved_and_not_used_is_given_back(tmp_path: Path) -> None:
    every = sparse_file(
        tmp_path / "holes.raw",
        64 * MIB,
        *((start, b"x" * 3 * MIB) for start in range(0, 64 * MIB, 4 * MIB)),
    )
    dense = tmp_path / "dense.raw"
    dense.write_bytes(every.read_bytes())  # the same with all its zeros written
    convert_disk(dense, tmp_path / "copy.raw", durable=False)
    assert (tmp_path / "copy.raw").read_bytes() == every.read_bytes()
    assert (tmp_path / "copy.raw").stat().st_blocks <= every.stat().st_blocks + 64


def test_a_writer_that_reserves_gives_back_behind_its_last_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with LocalBlockFile.open(tmp_path / "file", writable=True) as file:
        with ReservingWriter(file) as writer:
            writer.write_at(0, memoryview(b"a" * 3 * MIB))
            writer.write_at(40 * MIB, memoryview(b"b" * 3 * MIB))
        file.truncate(43 * MIB)
        assert file.read_at(0, 43 * MIB) == b"a" * 3 * MIB + bytes(37 * MIB) + b"b" * 3 * MIB
    assert (tmp_path / "file").stat().st_blocks * 512 <= 6 * MIB + 64 * KIB


def test_a_raw_disk_that_ends_within_a_sector_is_filled_up(tmp_path: Path) -> None:
    raw = tmp_path / "odd.raw"
    raw.write_bytes(b"x" * 1000)
    for name, sector, size in (("a.vhdx", 512, 1024), ("b.vhdx", 4096, 4096), ("c.vhd", 512, 1024)):
        options = VhdxOptions(logical_sector_size=sector) if name.endswith("x") else None
        assert convert_disk(raw, tmp_path / name, vhdx=options).disk_size == size
        convert_disk(tmp_path / name, tmp_path / f"{name}.raw")
        assert (tmp_path / f"{name}.raw").read_bytes() == b"x" * 1000 + bytes(size - 1000)


def test_a_dirty_log_is_replayed_for_the_copy_alone(tmp_path: Path) -> None:
    path = tmp_path / "dirty.vhdx"
    create_vhdx(path, 64 * MIB)
    before_kill = path.read_bytes()
    pid = os.fork()
    if pid == 0:  # killed with its log written: nothing is closed
        disk = VhdxDisk.open(path, writable=True)
        disk.write_at(5 * MIB, b"logged")
        disk.flush()
        os._exit(0)
    os.waitpid(pid, 0)
    dirty = path.read_bytes()
    assert dirty != before_kill
    convert_disk(path, tmp_path / "out.raw")
    assert (tmp_path / "out.raw").read_bytes()[5 * MIB : 5 * MIB + 6] == b"logged"
    assert path.read_bytes() == dirty


def test_a_chain_is_flattened(tmp_path: Path) -> None:
    content = DiskContent(8 * MIB, ((0, b"A" * MIB), (3 * MIB, b"B" * MIB)))
    write_content(tmp_path / "base.vhdx", emit_vhdx(content))
    create_child(tmp_path / "child.vhdx", tmp_path / "base.vhdx")
    with open_chain(tmp_path / "child.vhdx", writable=True) as chain:
        chain.top.write_at(100, b"child")
        chain.top.trim(3 * MIB, MIB)
        expected = chain.read_at(0, 8 * MIB)
    made = convert_disk(tmp_path / "child.vhdx", tmp_path / "flat.vhdx")
    with VhdxDisk.open(tmp_path / "flat.vhdx") as flat:
        assert not flat.info().has_parent
        assert flat.read_at(0, 8 * MIB) == expected
    assert made.stored == MIB


def test_progress_goes_up_to_the_size(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    convert_disk(sample(tmp_path), tmp_path / "a.vhdx", progress=lambda *step: steps.append(step))
    assert steps == sorted(steps)
    assert steps[-1] == (64 * MIB, 64 * MIB)
    assert len(steps) > 3


def test_a_file_that_is_there_is_kept_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    raw, target = sample(tmp_path), tmp_path / "out.vhdx"
    target.write_bytes(b"precious")
    with pytest.raises(AlreadyExistsError, match="remove it"):
        convert_disk(raw, target)
    assert target.read_bytes() == b"precious"
    convert_disk(raw, target, overwrite=True)
    with VhdxDisk.open(target) as disk:
        assert disk.read_at(0, 5000) == noise(5000)


class BreakingDisk:
    """A disk that fails after a while."""

    size = 8 * MIB

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def read_at(self, offset: int, length: int) -> bytes:
        if offset >= 4 * MIB:
            raise self._error
        return b"x" * length

    def allocated_ranges(self) -> Iterator[tuple[int, int]]:
        yield 0, self.size


@pytest.mark.parametrize(
    "error",
    [
        UnavailableError("cannot read it: Input/output error"),
        VhdxCorruptError("payload block", "the file ends inside", section="2.4", offset=0),
        KeyboardInterrupt(),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("target_format", list(DiskFormat))
def test_a_conversion_that_breaks_leaves_nothing(
    tmp_path: Path, error: BaseException, target_format: DiskFormat
) -> None:
    with pytest.raises(type(error)):
        write_disk(BreakingDisk(error), tmp_path / "out", target_format=target_format)
    assert os.listdir(tmp_path) == []
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(type(error)):
        write_disk(
            BreakingDisk(error), tmp_path / "out", target_format=target_format, overwrite=True
        )
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out").read_bytes() == b"old"


def test_a_disk_that_ends_early_is_an_error_and_no_short_copy(tmp_path: Path) -> None:
    class Short(BreakingDisk):
        def read_at(self, offset: int, length: int) -> bytes:
            return b"x" * length if offset < 4 * MIB else b""

    with pytest.raises(UnavailableError, match="ends at"):
        write_disk(Short(OSError()), tmp_path / "out", target_format=DiskFormat.RAW)
    assert os.listdir(tmp_path) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
@pytest.mark.parametrize("name", ["out.raw", "out.vhdx", "out.vhd"])
def test_a_full_disk_is_named_and_left_empty(tmp_path: Path, name: str) -> None:
    raw = tmp_path / "full.raw"
    raw.write_bytes(noise(MIB) * 12)
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)], check=True)
    try:
        with pytest.raises(UnavailableError, match=os.strerror(errno.ENOSPC)) as caught:
            convert_disk(raw, small / name)
        assert str(small / name) in str(caught.value)
        assert os.listdir(small) == []
        assert shutil.disk_usage(small).used == 0
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.root
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mkfs.xfs") is None,
    reason="a file system that shares blocks: needs root and mkfs.xfs (package xfsprogs)",
)
def test_blocks_are_shared_where_the_file_system_can(tmp_path: Path) -> None:
    mounted = tmp_path / "xfs"
    mounted.mkdir()
    sparse_file(tmp_path / "xfs.img", 400 * MIB)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(tmp_path / "xfs.img")], check=True)
    mount = ["mount", "-o", "loop", str(tmp_path / "xfs.img"), str(mounted)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this kernel mounts no XFS from a file")
    try:
        raw = sparse_file(
            mounted / "disk.raw", 40 * MIB, (0, noise(20 * MIB)), (30 * MIB, noise(5000))
        )
        expected = raw.read_bytes()
        convert_disk(raw, mounted / "disk.vhdx")
        for source, name in (("disk.raw", "a.vhd"), ("disk.vhdx", "b.raw"), ("a.vhd", "c.raw")):
            before = shutil.disk_usage(mounted).used
            made = convert_disk(mounted / source, mounted / name)
            assert shutil.disk_usage(mounted).used - before < 2 * MIB
            assert made.stored >= 20 * MIB
            assert (mounted / name).read_bytes()[: 40 * MIB] == expected
            assert made.file_size == 40 * MIB + (512 if name == "a.vhd" else 0)
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


@pytest.mark.parametrize(
    ("size", "name", "options"),
    [
        (0, "a.vhdx", None),
        (0, "a.vhd", None),
        (4096, "a.vhdx", VhdxOptions(block_size=3 * MIB)),
        (4096, "a.vhdx", VhdxOptions(logical_sector_size=520)),
        (4096, "a.raw", VhdxOptions()),
        (4096, "a.vhd", VhdxOptions(fixed=True)),
    ],
)
def test_what_a_target_cannot_be_is_refused(
    tmp_path: Path, size: int, name: str, options: VhdxOptions | None
) -> None:
    raw = sparse_file(tmp_path / "disk.raw", size)
    with pytest.raises(InvalidArgumentError):
        convert_disk(raw, tmp_path / name, vhdx=options)
    assert os.listdir(tmp_path) == ["disk.raw"]


def test_what_is_no_disk_of_the_named_format_is_refused(tmp_path: Path) -> None:
    raw = sample(tmp_path)
    with pytest.raises(VhdxCorruptError, match="file identifier"):
        convert_disk(raw, tmp_path / "out.raw", source_format=DiskFormat.VHDX)
    with pytest.raises(VhdError, match="no VHD footer"):
        convert_disk(raw, tmp_path / "out.raw", source_format=DiskFormat.VHD)
    with pytest.raises(FileNotFoundError):
        convert_disk(tmp_path / "none", tmp_path / "out.raw")
    assert os.listdir(tmp_path) == ["disk.raw"]


def test_a_raw_disk_that_imitates_another_format_is_copied_as_raw_where_one_says_so(
    tmp_path: Path,
) -> None:
    raw = sparse_file(tmp_path / "guest", MIB, (0, b"vhdxfile"), (MIB - 512, b"conectix"))
    with pytest.raises(VhdxCorruptError):
        convert_disk(raw, tmp_path / "out.raw")
    convert_disk(raw, tmp_path / "out.vhd", source_format=DiskFormat.RAW)
    with FixedVhd.open(tmp_path / "out.vhd") as disk:
        assert disk.read_at(0, MIB) == raw.read_bytes()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.vhdx", "vhdx"), ("a.AVHDX", "vhdx"), ("a.vhd", "vhd"), ("a.img", "raw"), ("a", "raw")],
)
def test_a_suffix_stands_for_a_format(name: str, expected: str) -> None:
    assert DiskFormat.of_name(name) == expected


def test_the_largest_disk_is_too_large_for_a_raw_file_and_says_so(tmp_path: Path) -> None:
    create_vhdx(tmp_path / "huge.vhdx", 64 * TIB, block_size=256 * MIB)
    if os.statvfs(tmp_path).f_bsize != 4096:
        pytest.skip("made for a file system with 16 TiB a file")
    try:
        with (tmp_path / "probe").open("wb") as file:
            file.truncate(64 * TIB)
    except OSError:
        with pytest.raises(UnavailableError, match=r"out\.raw"):
            convert_disk(tmp_path / "huge.vhdx", tmp_path / "out.raw")
    (tmp_path / "probe").unlink()
    assert "out.raw" not in os.listdir(tmp_path)


def test_many_blocks_are_placed_in_the_order_of_the_disk(tmp_path: Path) -> None:
    raw = sparse_file(
        tmp_path / "disk.raw", GIB, *((block * 7 * MIB, b"%d" % block) for block in range(100))
    )
    convert_disk(raw, tmp_path / "disk.vhdx")
    with VhdxDisk.open(tmp_path / "disk.vhdx") as disk:
        assert sum(length for _, length in disk.allocated_ranges()) == 100 * MIB
        for block in range(100):
            assert disk.read_at(block * 7 * MIB, 3).rstrip(b"\0") == b"%d" % block
